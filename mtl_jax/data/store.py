"""A split as one array of pixels, sorted by class."""

import concurrent.futures
import contextlib
import io
import os
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from mtl_jax.data.builders import DATASETS
from mtl_jax.errors import UserError, check_choice, first_line

DIR_VARIABLE = 'MTL_JAX_DATA'


class Arrays(NamedTuple):
  """What a compiled step reads of a store."""

  images: Any  # uint8 [I, h, w, c]
  offsets: Any  # int32 [M + 1]
  mean: Any  # float32 [c], of pixels / 255
  std: Any  # float32 [c]


class Store(NamedTuple):
  """A split; class m owns the images offsets[m]:offsets[m + 1]."""

  images: np.ndarray  # uint8 [I, h, w, c]
  offsets: np.ndarray  # int32 [M + 1]; classes may differ in size
  class_names: tuple[str, ...]  # [M]
  mean: np.ndarray  # float32 [c], of pixels / 255
  std: np.ndarray  # float32 [c]
  name: str
  split: str

  @property
  def num_classes(self):
    """M."""
    return len(self.class_names)


def arrays(store):
  """Returns what a compiled step needs, on the device."""
  return Arrays(*(jnp.asarray(x) for x in (
      store.images, store.offsets, store.mean, store.std)))


def data_dir(directory=None):
  """Returns where data sets live: the argument, $MTL_JAX_DATA, TFDS's own."""
  return directory or os.environ.get(DIR_VARIABLE) or None


def builder(name, directory=None):
  """Returns the TFDS builder of 'name' or 'name/builder_config'."""
  base, _, builder_config = name.partition('/')
  check_choice('config.data.name', base, DATASETS)
  cls = DATASETS[base]
  configs = [c.name for c in cls.BUILDER_CONFIGS]
  if builder_config:
    check_choice('config.data.name', name, [f'{base}/{c}' for c in configs])
  return cls(config=builder_config or None, data_dir=data_dir(directory))


def prepare(name, directory=None):
  """Builds the data set unless it is there; returns its TFDS builder.

  TFDS builds beside the final folder and renames, so that a build that was
  killed leaves nothing that looks whole.
  """
  made = builder(name, directory)
  if not made.data_path.exists():
    print(f'Building {name} in {made.data_path}, once.', flush=True)
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
      with contextlib.redirect_stdout(io.StringIO()):
        made.download_and_prepare(file_format='array_record')
    except (OSError, RuntimeError) as error:
      raise UserError(f'{made.data_path} cannot be written '
                      f'({first_line(error)}): set config.data.dir or '
                      f'${DIR_VARIABLE} to a folder with room') from error
  return made


def load(name, split, directory=None):
  """Loads a split, building the data set first where needed.

  Args:
    name: of DATASETS, 'name' or 'name/builder_config'.
    split: 'train', 'validation' or 'test'.
    directory: TFDS data_dir; None as in `data_dir`.

  Returns:
    Store; classes in the order of the builder's label names, the images of a
    class in the order of the records.

  Raises:
    UserError: unknown data set, or files that cannot be read.
  """
  made = prepare(name, directory)
  try:
    source = made.as_data_source(split=split)
    images, labels = _decode(source)
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(f'{made.data_path}: the {split} split cannot be read '
                    f'({first_line(error)}): delete this folder, it is '
                    'built again at the next start') from error
  order = np.argsort(labels, kind='stable')
  classes, counts = np.unique(labels, return_counts=True)
  names = made.info.features['label'].names
  return Store(
      images=images[order],
      offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
      class_names=tuple(names[c] for c in classes),
      mean=np.array(made.MEAN, np.float32), std=np.array(made.STD, np.float32),
      name=name, split=split)


def _decode(source):
  """Decodes all records: uint8 [I, h, w, c] and int labels [I]."""
  first = source[0]['image']
  images = np.empty((len(source),) + first.shape, np.uint8)
  labels = np.empty(len(source), np.int64)

  def fill(start):
    ids = range(start, min(start + 256, len(source)))
    for i, record in zip(ids, source.__getitems__(list(ids)), strict=True):
      images[i] = record['image']
      labels[i] = record['label']

  # Decoding releases the interpreter's lock.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(fill, range(0, len(source), 256)))
  return images, labels

