"""Says what is wrong with a config, before anything is read or written."""

import dataclasses

from mtl_jax import heads, models
from mtl_jax.algorithms import METHODS
from mtl_jax.config import ConfigDict, base_config, method_options
from mtl_jax.data import augment, sources, store
from mtl_jax.errors import UserError, check_choice
from mtl_jax.evaluate import adapters, tune_all
from mtl_jax.train import optimizer


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
        'learning_rate', 'epsilon', 'decay_epochs')},
    **{f'optimizer.{k}': _Range(0) for k in (
        'weight_decay', 'warmup_epochs', 'clip', 'plateau_patience',
        'plateau_threshold')},
    'optimizer.plateau_factor': _Range(0, above=True, high=1),
    **{f'augment.{k}': _Range(0) for k in (
        'padding', 'brightness', 'contrast', 'saturation')},
    'seed': _Range(0, high=2**32), 'eval.seed': _Range(0, high=2**32),
    'train.queries': _Range(0), 'train.stop_patience': _Range(0),
    'heads.centroid.scale': _POSITIVE, 'heads.gradient.steps': _COUNT,
    'heads.gradient.rate': _POSITIVE, 'heads.logistic.C': _POSITIVE,
    'heads.ridge.regulariser': _POSITIVE, 'heads.svm.C': _POSITIVE,
    'heads.svm.ridge': _Range(0),
    'tune_all.steps': _Range(0), 'tune_all.learning_rate': _POSITIVE,
    'tune_all.tasks_at_once': _COUNT,
    'eval.support_copies': _Range(0), 'eval.batch_size': _COUNT,
    'eval.tasks_at_once': _COUNT,
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
      ('data.name', sources.names()),
      ('data.store', store.PLACES),
      ('optimizer.name', optimizer.OPTIMIZERS),
      ('optimizer.schedule', optimizer.SCHEDULES),
      ('validation.head', (*heads.HEADS, adapters.OWN)),
      ('eval.data', ('', *sources.names())),
      ('eval.split', ('train', 'validation', 'test')),
      ('parallel.compile', ('jit', 'pmap'))):
    check_choice(f'config.{field}', _get(config, field), allowed)
  if not config.eval.heads:
    raise UserError('config.eval.heads is empty: name at least one head')
  for name in config.augment.operations:
    check_choice('config.augment.operations', name, augment.OPERATIONS)
  for head in config.eval.heads:
    check_choice('config.eval.heads', head, (
        *heads.HEADS, adapters.OWN, tune_all.NAME))
  _check_fields(METHODS[config.method.name].options(), ConfigDict(
      method_options(config)), 'method.', ())
  _check_schedule(config.optimizer)
  _check_eval(config)


def _check_eval(config):
  c = config.eval
  for shots in c.also_shots:
    if not isinstance(shots, int) or shots < 1:
      raise UserError(f'config.eval.also_shots has {shots!r}: must be whole '
                      'numbers of at least 1')
  for value in c.choose_C:
    if not isinstance(value, (int, float)) or value <= 0:
      raise UserError(f'config.eval.choose_C has {value!r}: must be numbers '
                      'above 0')
  if c.choose_C and 'logistic' not in c.heads:
    raise UserError("config.eval.choose_C is set, but 'logistic' is not in "
                    'config.eval.heads: it is the head that has a C')
  if c.support_copies and not config.augment.operations:
    raise UserError(f'config.eval.support_copies is {c.support_copies}, but '
                    'config.augment.operations is empty: the copies would '
                    'all be the image')
  for section, used in (('validation', (config.validation.head,)),
                        ('eval', config.eval.heads)):
    ways = config[section].ways
    fixed = not METHODS[config.method.name].any_ways
    if fixed and adapters.OWN in used and ways != config.train.ways:
      raise UserError(
          f'config.{section}.ways is {ways}: {config.method.name} adapts by '
          f'itself ({adapters.OWN!r}) to config.train.ways, '
          f'{config.train.ways}')
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
  if c.warmup_epochs >= c.decay_epochs:
    raise UserError(
        f'config.optimizer.warmup_epochs is {c.warmup_epochs}: must be below '
        f'decay_epochs, {c.decay_epochs}')


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
