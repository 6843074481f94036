"""The one place that documents every common field.

A config file in configs/ starts from `base_config()`, sets what its
benchmark needs and takes the fields of a method with `set_method`. There is
no second default anywhere, and no value that is derived from another.
"""

import dataclasses
import json

import ml_collections

from mtl_jax import evaluate, heads, models
from mtl_jax.algorithms import METHODS
from mtl_jax.data import augment, builders, store
from mtl_jax.errors import UserError, check_choice
from mtl_jax.train import optimizer

ConfigDict = ml_collections.ConfigDict


def base_config():
  """Returns all common fields with their defaults."""
  c = ConfigDict()
  c.seed = 0  # initial values, order of the training tasks, validation tasks
  c.source = ''  # where the settings stand, printed at the start

  # The method and its own fields: see `options` in mtl_jax/algorithms/*.py.
  # `:name` behind the config file chooses it.
  c.method = ConfigDict({'name': ''})

  # The backbone and its own fields: see mtl_jax/models/*.py.
  c.model = ConfigDict({'name': 'conv4', 'width': 64, 'pool': 'flat',
                        'dtype': 'float32'})

  c.data = ConfigDict()
  c.data.name = ''  # a data set of `python -m mtl_jax.data list`
  c.data.dir = ''  # TFDS data_dir; '': $MTL_JAX_DATA, then TFDS's default
  # Folder of the published files, read when the data set is built; '':
  # $MTL_JAX_MANUAL.
  c.data.manual_dir = ''
  # Where training pixels are: all on the 'device', or on the 'host', with a
  # thread that gathers the next steps' ones. The same episodes either way.
  c.data.store = 'device'

  # Of training images, in the order of `operations` (names in
  # data/augment.py), each image drawn afresh whenever it is seen.
  c.augment = ConfigDict()
  c.augment.operations = ()
  c.augment.padding = 8  # crop: pixels on every side, zero
  c.augment.brightness = 0.4  # jitter: factors U[1 - x, 1 + x]
  c.augment.contrast = 0.4
  c.augment.saturation = 0.4

  c.train = ConfigDict()
  c.train.ways = 5  # N, classes of a task
  c.train.shots = 5  # K, support images a class
  c.train.queries = 5  # Q, query images a class
  c.train.meta_batch = 2  # T, tasks of a step
  c.train.epoch_tasks = 1600  # tasks between two validations
  c.train.max_epochs = 1000
  c.train.stop_patience = 15  # epochs without gain before the end; 0: never

  c.optimizer = ConfigDict()
  c.optimizer.name = 'radam'  # radam, adam, sgd
  c.optimizer.learning_rate = 1e-3
  c.optimizer.beta1 = 0.9  # radam, adam
  c.optimizer.beta2 = 0.999
  c.optimizer.epsilon = 1e-8
  c.optimizer.momentum = 0.9  # sgd
  c.optimizer.nesterov = False
  # radam, adam: decoupled (times the rate); sgd: added to the gradient.
  c.optimizer.weight_decay = 0.
  # constant, step, cosine, or plateau (of the validation accuracy).
  c.optimizer.schedule = 'plateau'
  c.optimizer.step_epochs = ()  # step: from these epochs on ...
  c.optimizer.step_scales = ()  # ... the rate is learning_rate times these
  c.optimizer.cosine_epochs = 100  # cosine: epochs until the rate is zero
  c.optimizer.warmup_epochs = 0  # cosine: linear warm-up, part of the above
  c.optimizer.plateau_factor = 0.1
  c.optimizer.plateau_patience = 4  # epochs without gain that are forgiven
  c.optimizer.plateau_threshold = 1e-4  # relative gain that counts

  # Validation tasks, the same after every epoch; the best epoch is tested.
  c.validation = ConfigDict()
  c.validation.tasks = 400
  c.validation.ways = 5
  c.validation.shots = 5
  c.validation.queries = 15
  c.validation.head = 'logistic'
  c.validation.normalise_features = True  # unit length

  # The test: the same tasks for every method and every run.
  c.eval = ConfigDict()
  c.eval.split = 'test'
  c.eval.tasks = 2000
  c.eval.ways = 5
  c.eval.shots = 5
  c.eval.queries = 15
  c.eval.seed = 0
  # New heads on frozen features, by name; 'own' is the method's adaptation.
  # The first one's accuracy is the run's.
  c.eval.heads = ('logistic',)
  c.eval.normalise_features = True  # unit length
  # Scores of the untrained backbone and of raw pixels beside the run's.
  c.eval.baselines = False
  c.eval.batch_size = 250  # images of a forward pass
  # Tasks whose heads are fitted together; on a CPU about 100 stay in cache.
  c.eval.tasks_at_once = 100

  # Options of each head: see mtl_jax/heads/*.py.
  c.heads = ConfigDict({name: dict(module.OPTIONS)
                        for name, module in heads.HEADS.items()})

  c.parallel = ConfigDict()
  c.parallel.devices = 0  # 0: as many local ones as divide the meta-batch
  # Devices that a CPU is counted as, best one a core; 0: as jax finds it.
  c.parallel.cpu_devices = 0
  c.parallel.compile = 'jit'  # jit or pmap, the same step
  # None: train.meta_batch must divide; a number n: the meta-batch becomes n
  # times `devices`, which must be stated, and train.meta_batch is not read.
  c.parallel.tasks_per_device = ml_collections.config_dict.placeholder(int)
  # Tasks of a device in one pass; gradients of several passes are averaged,
  # with the same result and less memory. 0: all.
  c.parallel.tasks_at_once = 0

  c.log = ConfigDict()
  c.log.every_steps = 50  # how often losses are fetched from the device
  c.log.progress = True  # a bar on a terminal, plain lines elsewhere
  c.log.tensorboard = True  # events, where the extra is installed
  return c


def set_method(config, name, *, benchmark, shots):
  """Sets `config.method` and the method's published settings.

  Args:
    config: from base_config, changed in place.
    name: of algorithms.METHODS.
    benchmark: data set whose published settings are wanted.
    shots: K of the test.
  """
  check_choice('the method behind the config file', name, METHODS)
  config.method = METHODS[name].options()
  config.method.name = name
  published = METHODS[name].published(benchmark, shots)
  config.update_from_flattened_dict(published.overrides)
  config.source = published.source


def method_options(config):
  """Returns the keywords of the method's `build`."""
  return {k: v for k, v in config.method.items() if k != 'name'}


def model_options(config):
  """Returns the keywords of `models.create`."""
  return {k: v for k, v in config.model.items() if k != 'name'}


def to_json(config):
  """Returns the config as text, every field once, for config.json."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class _Range:
  """Numbers a field may hold."""

  low: float = 0
  above: bool = False  # low itself is not allowed
  high: float = float('inf')

  def __str__(self):
    text = f'{"above" if self.above else "at least"} {self.low}'
    return text + ('' if self.high == float('inf') else f', below {self.high}')

  def holds(self, value):
    lowest = value > self.low if self.above else value >= self.low
    return lowest and value < self.high


_POSITIVE = _Range(0, above=True)
_COUNT = _Range(1)
_RANGES = {
    **{f'train.{k}': _COUNT for k in (
        'shots', 'meta_batch', 'epoch_tasks', 'max_epochs')},
    **{f'{s}.{k}': _COUNT for s in ('validation', 'eval')
       for k in ('tasks', 'shots', 'queries')},
    **{f'{s}.ways': _Range(2) for s in ('train', 'validation', 'eval')},
    **{f'optimizer.{k}': _Range(0, high=1) for k in (
        'beta1', 'beta2', 'momentum')},
    **{f'optimizer.{k}': _POSITIVE for k in (
        'learning_rate', 'epsilon', 'cosine_epochs')},
    **{f'optimizer.{k}': _Range(0) for k in (
        'weight_decay', 'warmup_epochs', 'plateau_patience',
        'plateau_threshold')},
    'optimizer.plateau_factor': _Range(0, above=True, high=1),
    **{f'augment.{k}': _Range(0) for k in (
        'padding', 'brightness', 'contrast', 'saturation')},
    'seed': _Range(0, high=2**32), 'eval.seed': _Range(0, high=2**32),
    'train.queries': _Range(0), 'train.stop_patience': _Range(0),
    'eval.batch_size': _COUNT, 'eval.tasks_at_once': _COUNT,
    **{f'parallel.{k}': _Range(0) for k in (
        'devices', 'cpu_devices', 'tasks_at_once')},
    'parallel.tasks_per_device': _COUNT, 'log.every_steps': _COUNT,
}


def validate(config):
  """Raises UserError for the first field that cannot be meant.

  What depends on the data (ways above the class count) is checked where the
  data is: `data/episodes.check`.
  """
  _check_fields(base_config(), config, '', ('method', 'model'))
  for field, allowed in _RANGES.items():
    value = _get(config, field)
    if value is not None and not allowed.holds(value):
      raise UserError(f'config.{field} is {value}: must be {allowed}')
  for field, allowed in (
      ('method.name', METHODS), ('model.name', models.MODELS),
      ('data.name', builders.names()),
      ('data.store', store.PLACES),
      ('optimizer.name', optimizer.OPTIMIZERS),
      ('optimizer.schedule', optimizer.SCHEDULES),
      ('validation.head', (*heads.HEADS, evaluate.OWN)),
      ('eval.split', ('train', 'validation', 'test')),
      ('parallel.compile', ('jit', 'pmap'))):
    check_choice(f'config.{field}', _get(config, field), allowed)
  if not config.eval.heads:
    raise UserError('config.eval.heads is empty: name at least one head')
  for name in config.augment.operations:
    check_choice('config.augment.operations', name, augment.OPERATIONS)
  for head in config.eval.heads:
    check_choice('config.eval.heads', head, (*heads.HEADS, evaluate.OWN))
  _check_fields(METHODS[config.method.name].options(), ConfigDict(
      method_options(config)), 'method.', ())
  _check_schedule(config.optimizer)
  for section, used in (('validation', (config.validation.head,)),
                        ('eval', config.eval.heads)):
    ways = config[section].ways
    if evaluate.OWN in used and ways != config.train.ways:
      raise UserError(
          f'config.{section}.ways is {ways}: a method adapts by itself '
          f'({evaluate.OWN!r}) to config.train.ways, {config.train.ways}')
  if config.parallel.tasks_per_device and not config.parallel.devices:
    raise UserError('config.parallel.devices is 0: state their number with '
                    'config.parallel.tasks_per_device, they make the '
                    'meta-batch')


def _check_schedule(c):
  epochs, scales = list(c.step_epochs), list(c.step_scales)
  if len(epochs) != len(scales) or epochs != sorted(set(epochs)):
    raise UserError(
        f'config.optimizer.step_epochs is {tuple(epochs)} and step_scales '
        f'{tuple(scales)}: rising epochs and as many scales are needed')
  if c.warmup_epochs >= c.cosine_epochs:
    raise UserError(
        f'config.optimizer.warmup_epochs is {c.warmup_epochs}: must be below '
        f'cosine_epochs, {c.cosine_epochs}')


def _check_fields(base, config, path, free):
  """Checks names and types against `base`, but not below a `free` field."""
  for unknown in sorted(set(config) - set(base)):
    raise UserError(f'config.{path}{unknown} is unknown: config.{path[:-1]}'
                    ' has the fields ' + ', '.join(sorted(base)))
  for name in base:
    if name not in config:
      raise UserError(f'config.{path}{name} is missing')
    value, default = config.get(name), base.get(name)
    if isinstance(default, ConfigDict) != isinstance(value, ConfigDict):
      raise UserError(f'config.{path}{name} is {value!r}: must be a section '
                      'like the default' if isinstance(default, ConfigDict)
                      else f'config.{path}{name} must be a single value')
    if isinstance(default, ConfigDict):
      if name not in free:
        _check_fields(default, value, f'{path}{name}.', ())
    elif value is not None or default is not None:
      _check_type(f'config.{path}{name}', value,
                  int if default is None else type(default))


def _check_type(field, value, expected):
  numbers = (int, float) if expected is float else (expected,)
  wrong = not isinstance(value, numbers)
  if wrong and not (value is None and expected is int):
    raise UserError(f'{field} is {value!r}: must be of type '
                    f'{expected.__name__}')
  if isinstance(value, bool) and expected is not bool:
    raise UserError(f'{field} is {value!r}: must be of type '
                    f'{expected.__name__}')


def _get(config, field):
  for name in field.split('.'):
    config = config[name]
  return config
