"""Says what is wrong with a config, before anything is read or written.

`data/episodes.check` checks what depends on the data, such as more ways than
classes, once the data are loaded.
"""

from mtl_jax import algorithms, devices, fields, heads, models, writers
from mtl_jax.config.fields import FIELDS
from mtl_jax.data import sources
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters, tune_all
from mtl_jax.fields import Field


def validate(config, trains=True):
  """Raises UserError for the first field that is invalid.

  The network and the method are built once, which checks their own fields and
  may use a device. So a CPU is counted as config.parallel.cpu_devices before.

  Args:
    config: of a run.
    trains: whether the training data are needed. A finished run may be used
      where they are not.
  """
  validate_network(config)
  values = config.to_dict()
  _check_seeds(values, trains)
  method, options = _named(values['method'])
  if trains:
    writers.check(values['log']['writers'])
    sources.check_name('config.data.name', values['data']['name'])
  _check_names(values)
  _check_constants(values['data'])
  _check_schedule(values['optimizer'])
  if trains:
    _check_length(values)
    _check_counts(values['train'], values['optimizer'])
    _check_use(method, options, values)
  _check_classes(values, trains)
  _check_eval(values)


def validate_network(config):
  """Does that part of `validate` that a trained network needs.

  The data, the heads and the test of its run may be out of reach.
  """
  values = config.to_dict()
  fields.check({**FIELDS, 'method': _any_named(values, 'method'),
                'model': _any_named(values, 'model')}, values)
  devices.split_cpu(values['parallel']['cpu_devices'])
  devices.check_platform()
  algorithms.check(*_named(values['method']), config.train)
  build_method(values)


def _check_seeds(c, trains):
  """Refuses seeds that are no list of several runs."""
  seeds, given = c['seeds'], c.get('recipe', {}).get('command_line', ())
  if not trains and seeds:
    raise UserError(f'config.seeds is {seeds}: a finished run is tested by '
                    'its own workdir, --checkpoint=WORKDIR/seed_N')
  if len(set(seeds)) < len(seeds):
    twice = next(seed for seed in seeds if seeds.count(seed) > 1)
    raise UserError(f'config.seeds is {seeds}: {twice} is there twice; name '
                    'each seed once')
  if not seeds and 'seeds' in given:
    raise UserError('config.seeds is empty: name at least one seed, such as '
                    '--config.seeds=0,1,2')
  alone = 'seed' in given or (
      'seeds' not in given and c['seed'] != FIELDS['seed'].default)
  if seeds and alone:
    raise UserError(f'config.seeds is {seeds} and config.seed {c["seed"]}: '
                    'set one of them')


def build_method(config, num_classes=1):
  """Builds the method of a config over its backbone.

  Args:
    config: mapping with the sections method, model and train.
    num_classes: M, of the training split.

  Raises:
    UserError: a field of the method or of the network is invalid.
  """
  (method, own), (model, options) = (
      _named(config[section]) for section in ('method', 'model'))
  return algorithms.create(method, models.create(model, **options),
                           num_classes, config['train']['ways'], **own)


def _named(section):
  """Returns (the name in a section, its other fields)."""
  return section['name'], {k: v for k, v in section.items() if k != 'name'}


def _any_named(values, section):
  """Returns fields that allow whatever a section holds beside a name.

  The name decides which fields the section has; `algorithms.check` and
  `models.create` check them.
  """
  given = values.get(section)
  if not isinstance(given, dict):
    return FIELDS[section]  # its check says what is wrong
  return {'name': Field('', ''), **{
      name: Field(value, '') for name, value in given.items()
      if name != 'name'}}


def _check_names(c):
  """Checks the fields that hold names of heads and of the tested data."""
  sources.check_name('config.eval.data', c['eval']['data'], ('',))
  if c['validation']['head'] != adapters.OWN:
    heads.find(c['validation']['head'], 'config.validation.head')
  if not c['eval']['heads']:
    raise UserError('config.eval.heads is empty: name at least one head')
  for head in c['eval']['heads']:
    if head not in (adapters.OWN, tune_all.NAME):
      heads.find(head)


def _check_constants(data):
  """Refuses one of mean and standard deviation, or of other numbers."""
  if bool(data['mean']) != bool(data['std']):
    field, other = ('mean', 'std') if data['mean'] else ('std', 'mean')
    raise UserError(f'config.data.{field} is set and config.data.{other} is '
                    'not: set both, a number per channel, or none')
  if data['mean'] and not data['normalise']:
    raise UserError('config.data.mean is set, but config.data.normalise is '
                    'False: set one of them')


def _check_eval(c):
  test = c['eval']
  if test['choose_C'] and 'logistic' not in test['heads']:
    raise UserError("config.eval.choose_C is set, but 'logistic' is not in "
                    'config.eval.heads: it is the head that has a C')
  if test['support_copies'] and not c['augment']['operations']:
    raise UserError(f'config.eval.support_copies is {test["support_copies"]}, '
                    'but config.augment.operations is empty: the copies would '
                    'all be the image')
  any_ways = algorithms.find(c['method']['name']).ANY_WAYS
  for section, used in (('validation', (c['validation']['head'],)),
                        ('eval', test['heads'])):
    ways = c[section]['ways']
    if not any_ways and adapters.OWN in used and ways != c['train']['ways']:
      raise UserError(
          f'config.{section}.ways is {ways}: {c["method"]["name"]} adapts by '
          f'itself ({adapters.OWN!r}) to config.train.ways, '
          f'{c["train"]["ways"]}')


def _check_length(c):
  """Refuses epochs in which the rate would be zero."""
  epochs, rate = c['train']['max_epochs'], c['optimizer']
  if rate['schedule'] in ('cosine', 'linear') and epochs > rate['decay_epochs']:
    raise UserError(
        f'config.train.max_epochs is {epochs}, but the rate of the '
        f'{rate["schedule"]} schedule is zero after '
        f'config.optimizer.decay_epochs, {rate["decay_epochs"]}: set one to '
        'the other; --init_from starts another run from these weights')


def _check_counts(train, rate):
  """Refuses more tasks than devices count, up to the end or a new rate."""
  epochs = {'train.max_epochs': train['max_epochs']}
  if rate['schedule'] in ('cosine', 'linear'):
    epochs['optimizer.decay_epochs'] = rate['decay_epochs']
  elif rate['schedule'] == 'step':
    epochs['optimizer.step_epochs'] = max(rate['step_epochs'], default=0)
  an_epoch = max(train['epoch_tasks'], train['meta_batch'])
  for name, count in epochs.items():
    if count * an_epoch > fields.LARGEST_WHOLE:
      raise UserError(
          f'config.{name} has {count} epochs of {an_epoch} tasks '
          '(config.train.epoch_tasks, or train.meta_batch if that is larger): '
          f'together they must be at most {fields.LARGEST_WHOLE}')


def _check_use(method, options, c):
  """Refuses a C that no test of this config would read."""
  default = algorithms.find(method).OPTIONS.get('test_C')
  used = (c['validation']['head'], *c['eval']['heads'])
  if (default and options['test_C'] != default.default
      and adapters.OWN not in used):
    raise UserError(
        f'config.method.test_C is {options["test_C"]}, but only the head '
        f'{adapters.OWN!r} reads it, which is not in config.eval.heads: set '
        'config.heads.logistic.C, or name it there')


def _check_classes(c, trains):
  """Refuses what needs validation where no classes are left for it."""
  if c['train']['classes'] == FIELDS['train']['classes'].default:
    return
  schedule, train, test = c['optimizer']['schedule'], c['train'], c['eval']
  for used, field, value, mend in (
      (trains and schedule == 'plateau', 'optimizer.schedule', schedule,
       'take step, cosine, linear or constant'),
      (trains and train['stop_patience'], 'train.stop_patience',
       train['stop_patience'], 'set 0, and config.train.max_epochs'),
      (test['choose_C'], 'eval.choose_C', test['choose_C'],
       'set config.heads.logistic.C')):
    if used:
      raise UserError(
          f'config.{field} is {value}, but config.train.classes is '
          f'{train["classes"]!r}, which leaves no classes for validation: '
          f'{mend}')


def _check_schedule(c):
  epochs, scales = c['step_epochs'], c['step_scales']
  if len(epochs) != len(scales) or list(epochs) != sorted(set(epochs)):
    raise UserError(
        f'config.optimizer.step_epochs is {epochs} and step_scales '
        f'{scales}: rising epochs and as many scales are needed')
  if c['warmup_epochs'] >= c['decay_epochs']:
    raise UserError(
        f'config.optimizer.warmup_epochs is {c["warmup_epochs"]}: must be '
        f'below decay_epochs, {c["decay_epochs"]}')
