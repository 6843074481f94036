"""What the processes of a run must have in common, checked before it starts."""

import copy
import hashlib
import importlib.metadata
import pathlib
import platform

import numpy as np

from mtl_jax import fields, processes
from mtl_jax.config.check import validate

_ROOT = pathlib.Path(__file__).parent.parent
_SAMPLE = 4096  # images of a split whose pixels are compared
# Each process may have its own files and devices.
_OWN = ('data.dir', 'data.manual_dir', 'log.progress', 'recipe.command_line')


def check(config, trains=True):
  """Validates a config; returns it as this process needs it.

  Only process 0 shows progress.

  Args:
    config: of the run.
    trains: as in `validate`.

  Raises:
    AgreedError: in all processes, if it is invalid in one, or if they differ
      in config, code or libraries.
    UserError: it is invalid, in one process alone.
  """
  processes.together(lambda: validate(config, trains))
  if processes.count() == 1:
    return config
  processes.agree({'mode': 'train' if trains else 'evaluate'}, 'start')
  values = fields.flat_values(config.to_dict())
  processes.agree({f'config.{name}': value for name, value in values
                   if name not in _OWN}, 'config')
  processes.agree(code(), 'version')
  if not processes.leads():
    config = copy.deepcopy(config)
    config.log.progress = False
  return config


def code():
  """Returns versions, and the hash of the source of this package."""
  source = hashlib.sha256()
  for path in sorted(_ROOT.rglob('*.py')):
    source.update(path.relative_to(_ROOT).as_posix().encode())
    source.update(path.read_bytes())
  return {'the source of mtl_jax': source.hexdigest()[:16],
          'python': platform.python_version(),
          **{name: importlib.metadata.version(name)
             for name in ('jax', 'jaxlib', 'numpy', 'flax', 'optax')}}


def check_data(splits):
  """Raises AgreedError unless all processes have the same images.

  Args:
    splits: split -> Store.
  """
  if processes.count() > 1:
    processes.agree({f'the {name} split': describe(store)
                     for name, store in splits.items()}, 'data set')


def describe(store):
  """Returns a text that two different splits do not share.

  It has the hash of names, sizes, constants, and of the pixels of at most 4096
  images, evenly spaced.
  """
  digest = hashlib.sha256('\0'.join(store.class_names).encode(
      errors='surrogateescape'))
  for array in (store.offsets, store.mean, store.std):
    digest.update(np.ascontiguousarray(array).tobytes())
  step = -(-len(store.images) // _SAMPLE)
  for image in store.images[::step]:
    digest.update(image.tobytes())
  return (f'{store.name} of {store.num_classes} classes, {len(store.images)} '
          f'images, sha256 {digest.hexdigest()[:16]}')
