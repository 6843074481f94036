"""The folder of a run: which run it belongs to, and what it holds.

    config.json settings.md data.json env.json metrics.jsonl checkpoints/ best/
    test.json tasks.npz curves.png tensorboard/
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re

import jax
import ml_collections

from mtl_jax import algorithms, fields, files
from mtl_jax.config import FIELDS, base_config, settings, to_json
from mtl_jax.errors import UserError, first_line, reason
from mtl_jax.run import checkpoint

CONFIG = 'config.json'
DATA = 'data.json'
ENV = 'env.json'
_GONE = (('log', 'tensorboard'),)  # fields that older versions wrote


def read_config(path):
  """Returns the ConfigDict of a run.

  Raises:
    UserError: the folder is not that of a run, or its file is damaged.
  """
  file = path / CONFIG
  try:
    values = json.loads(file.read_text())
    if not isinstance(values, dict):
      raise ValueError('it holds no fields')
    for section in ('model', 'method'):
      if not isinstance(values.get(section), dict):
        raise ValueError(f'the section {section} is missing')
    return ml_collections.ConfigDict(_tuples(values))
  except FileNotFoundError as error:
    of_seed = next(iter(sorted(path.glob(f'seed_*/{CONFIG}'))), None)
    name = f'that of a seed, such as {of_seed.parent}' if of_seed else 'one'
    raise UserError(f'{file} is missing: {path} is not the workdir of a run; '
                    f'name {name}') from error
  except (OSError, ValueError) as error:
    raise UserError(f'{file} cannot be read ({error}): restore it or choose '
                    'an empty --workdir') from error


def saved_config(path):
  """Returns the config of the run in a workdir.

  Fields that were added later have their defaults.

  Raises:
    UserError: as `read_config`.
  """
  path = files.at(path)
  saved = read_config(path)
  config = base_config()
  for section, field in _GONE:
    if section in saved and field in saved[section]:
      del saved[section][field]
  for section in ('model', 'method'):  # these have fields of their own
    config[section] = saved[section]
  try:
    config.update(saved)
  except (KeyError, TypeError) as error:
    raise UserError(f'{path / CONFIG} has fields that this version does not '
                    f'know ({first_line(error)}): use the version that wrote '
                    'it') from error
  options = algorithms.find(config.method.name).OPTIONS
  config.method = ml_collections.ConfigDict(
      {**fields.defaults(options), **config.method.to_dict()})
  return config


def _tuples(value):
  """Returns JSON's value with tuples for lists, as configs have them."""
  if isinstance(value, dict):
    return {name: _tuples(item) for name, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check(path, config, testing=False):
  """Raises UserError unless a run of `config` can start or resume in `path`.

  Reads only. A run that has saved no state has nothing to lose: the folder may
  be taken by another one, such as the same command with a mistake corrected.

  Args:
    path: the workdir.
    config: of the start.
    testing: whether a finished run is tested, which leaves more fields free.
  """
  try:
    if path.exists() and not path.is_dir():
      raise UserError(f'{path} is a file: --workdir must be a folder')
    entries = list(path.iterdir()) if path.exists() else []
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({reason(error)}): choose '
                    'another --workdir') from error
  if not (path / CONFIG).exists():
    # What a start that was killed before it wrote config.json may leave.
    if any(entry.name != files.LOCK and not re.fullmatch(
        rf'{re.escape(CONFIG)}\.\d+\.tmp', entry.name) for entry in entries):
      raise UserError(f'{path} holds other files and no run: choose an empty '
                      'or a new --workdir')
    return
  saved = saved_config(path)
  if not testing and not checkpoint.has_state(path):
    if (path / 'test.json').exists():
      raise UserError(f'{path} holds a finished test, and no state of its '
                      'training any more, which would have to start anew: '
                      'remove test.json, or choose another --workdir')
    return
  old = _identity(saved, testing)
  new = _identity(config, testing)
  for field in sorted(set(old) | set(new)):
    if old.get(field) != new.get(field):
      raise UserError(
          f'{path} holds a run with config.{field}={old.get(field)}, not '
          f'{new.get(field)}: set it so, or choose another --workdir')


def check_data(path, data):
  """Raises UserError where the run in `path` was trained on other images.

  Args:
    path: the workdir.
    data: of the training split now, of build.describe_data.
  """
  try:
    before = json.loads((path / DATA).read_text())
    if not checkpoint.has_state(path):
      return
  except (OSError, ValueError):
    return  # no run yet; or one whose file is written once more
  for name in ('classes', 'image_shape', 'mean', 'std'):
    if isinstance(before, dict) and before.get(name, data[name]) != data[name]:
      raise UserError(
          f'{path} holds a run on other images than {data["name"]} has now: '
          f'their {name} differ; restore them, or choose another --workdir')


def kept_before(path):
  """Returns {'before': what data.json has}; {} where it has none."""
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    return {'before': json.loads((path / DATA).read_text())['before']}
  return {}


def check_meta_batch(path, meta_batch):
  """Raises UserError where the run in `path` has steps of other tasks.

  Args:
    path: the workdir.
    meta_batch: T of this start.
  """
  if not checkpoint.has_state(path):
    return
  before = None
  with contextlib.suppress(OSError, ValueError, AttributeError):
    before = json.loads((path / ENV).read_text()).get('meta_batch')
  if before is None:  # of an older version
    saved = saved_config(path)
    before = (saved.parallel.tasks_per_device or 0) * saved.parallel.devices
  if before and before != meta_batch:
    raise UserError(
        f'{path} holds a run whose steps have {before} tasks, and here they '
        f'would have {meta_batch}: choose config.parallel.tasks_per_device and '
        f'a number of devices whose product is {before}, or another --workdir')


def check_epochs(path, max_epochs, epoch_steps):
  """Raises UserError where the run in `path` is further than it may be.

  Args:
    path: the workdir.
    max_epochs: of this start.
    epoch_steps: steps of an epoch.
  """
  latest, best = (checkpoint.last_step(path, which) or 0
                  for which in ('latest', 'best'))
  epochs = -(-max(latest, best) // epoch_steps)
  if epochs > max_epochs:
    raise UserError(
        f'config.train.max_epochs is {max_epochs}, but {path} holds a run of '
        f'{epochs} epochs: set at least {epochs}, or choose another --workdir')
  # The best state is saved before the latest one, so it may be an epoch ahead.
  if best > latest + epoch_steps:
    raise UserError(
        f'{path / checkpoint.FOLDERS["best"]} holds step {best}, but training '
        f'would resume at step {latest}: restore '
        f'{path / checkpoint.FOLDERS["latest"]}, or choose another --workdir')


def claim(path, config, data, meta_batch=None):
  """Writes the files that describe the run; call `check` first.

  config.json is the first: a start that is killed here leaves the folder of a
  run, and the next start writes all three. `meta_batch` is kept for
  `check_meta_batch`.

  Raises:
    UserError: the folder cannot be written.
  """
  about = {**environment(), 'meta_batch': meta_batch}
  files.make(path)
  files.write(path / CONFIG, to_json(config))
  files.write(path / 'settings.md', settings.page(config))
  files.write(path / DATA, files.json_text(data))
  files.write(path / ENV, files.json_text(about, indent=2))


def for_results(path):
  """Returns the path of a folder for results; UserError for that of a run."""
  path = files.at(path)
  if (path / CONFIG).exists():
    raise UserError(f'{path} is the workdir of a run, whose own results would '
                    'be lost: choose another --workdir')
  return path


@contextlib.contextmanager
def alone(path):
  """Holds the lock of a workdir, which dies with its process.

  Raises:
    UserError: another process trains or tests in it, or it cannot be written.
  """
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(files.lock(path, wait=False))
    except BlockingIOError as error:
      raise UserError(f'{path}: another process trains or tests in this '
                      'folder: wait for its end, or choose another --workdir'
                      ) from error
    except OSError as error:
      raise UserError(f'{path}: cannot be written ({reason(error)}): choose '
                      'another --workdir') from error
    yield


def environment():
  """Returns versions and devices, for env.json."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
              'chex', 'ml-collections', 'tensorflow-datasets', 'pillow')
  return {
      'python': platform.python_version(), 'platform': platform.platform(),
      'backend': jax.default_backend(),
      'devices': [device.device_kind for device in jax.devices()],
      'processes': jax.process_count(), 'processor': _processor(),
      'packages': {name: importlib.metadata.version(name)
                   for name in packages}}


def _processor():
  """Returns the name of the processor, and its cores."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
    name = re.search(r'model name\s*: (.*)', text)[1]
  except (OSError, TypeError):  # not Linux, or a machine that does not say
    name = platform.processor() or platform.machine()
  return f'{name}, {os.cpu_count()} cores'


def of_training(config):
  """Returns what a test says of the run: its seed, and what it shares.

  Runs that differ in nothing but the seed have the same `settings_sha256`, and
  chose their epochs alike if they have the same `validation_sha256`. What a
  finished run may change to be tested is no part of either.

  Args:
    config: of the run, as it was trained.
  """
  trained = {name: value for name, value in _values(config).items()
             if name.startswith('augment.') or name in (
                 'train.max_epochs', 'parallel.tasks_per_device')}
  values = _identity(config, testing=True) | trained
  if config.parallel.tasks_per_device is not None:  # it sets the meta-batch
    values['parallel.devices'] = config.parallel.devices
  del values['seed']
  return {'seed': config.seed, 'network': config.model.name,
          'classes': config.train.classes,
          'max_epochs': config.train.max_epochs,
          'settings_sha256': _sha256(values),
          'validation_sha256': _sha256(_of_validation(config))}


def _of_validation(config):
  """Returns field -> value of what an epoch is chosen by; {} for nothing."""
  if config.train.classes != 'train':  # nothing is validated
    return {}
  section = f'heads.{config.validation.head}.'
  return {name: value for name, value in _values(config).items()
          if name.startswith(('validation.', section))}


def _sha256(values):
  return hashlib.sha256(
      files.json_text(values, sort_keys=True).encode()).hexdigest()


def _identity(config, testing):
  """Returns field -> value of all that two starts of a run must share."""
  values = _values(config)
  free = {name for name, field in fields.flat(FIELDS)
          if field.free or (testing and field.free_to_test)}
  # Validation during training reads the options of one head.
  free |= {name for name in values if name.startswith('heads.')
           and name.split('.')[1] != values['validation.head']}
  return {name: value for name, value in values.items() if name not in free}


def _values(config):
  """Returns field -> value, through JSON, so that tuples are lists."""
  return _flat(json.loads(to_json(config)))


def _flat(section, prefix=''):
  values = {}
  for name, value in section.items():
    values |= (_flat(value, f'{prefix}{name}.') if isinstance(value, dict)
               else {prefix + name: value})
  return values
