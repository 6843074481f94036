"""A split as one array of pixels, sorted by class."""

import concurrent.futures
import contextlib
import inspect
import io
import os
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax.data import building
from mtl_jax.data.sources import DATASETS
from mtl_jax.errors import UserError, check_choice, first_line

DIR_VARIABLE = 'MTL_JAX_DATA'
PLACES = ('device', 'host')


class Arrays(NamedTuple):
  """What a compiled step reads of a store."""

  images: Any  # uint8 [I, h, w, c]; None where the host gathers
  offsets: Any  # int32 [M + 1]
  mean: Any  # float32 [c], of pixels / 255
  std: Any  # float32 [c]


class Store(NamedTuple):
  """A split; class m owns the images offsets[m]:offsets[m + 1]."""

  images: np.ndarray  # uint8 [I, h, w, c], mapped from a file where it can
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


def arrays(store, place='device'):
  """Returns what a compiled step needs, on the device.

  Args:
    store: the split.
    place: where the pixels stay, 'device' or 'host' (then `images` is None).
  """
  check_choice('config.data.store', place, PLACES)
  return Arrays(
      jnp.asarray(store.images) if place == 'device' else None,
      *(jnp.asarray(x) for x in (store.offsets, store.mean, store.std)))


def data_dir(directory=None):
  """Returns where data sets live: the argument, $MTL_JAX_DATA, TFDS's own."""
  return directory or os.environ.get(DIR_VARIABLE) or None


def builder(name, directory=None, manual_dir=None, **options):
  """Returns the TFDS builder of 'name' or 'name/builder_config'.

  Args:
    name: of DATASETS.
    directory: TFDS data_dir; None as in `data_dir`.
    manual_dir: folder of published files, of a builder that reads some.
    **options: further keywords of the builder.

  Raises:
    UserError: unknown data set or option.
  """
  base, _, builder_config = name.partition('/')
  check_choice('config.data.name', base, DATASETS)
  cls = DATASETS[base]
  configs = [c.name for c in cls.BUILDER_CONFIGS]
  if builder_config:
    check_choice('config.data.name', name, [f'{base}/{c}' for c in configs])
  keywords = inspect.signature(cls.__init__).parameters
  if 'manual_dir' in keywords:
    options['manual_dir'] = manual_dir
  for option in options:
    check_choice(f'an option of {base}', option, list(keywords)[1:-1])
  return cls(config=builder_config or None, data_dir=data_dir(directory),
             **options)


def prepare(name, directory=None, manual_dir=None, **options):
  """Builds the data set unless it is there; returns its TFDS builder.

  A builder's `check_source`, if it has one, looks at the published files
  before anything is written. TFDS builds beside the final folder and renames,
  so that a build that was killed leaves nothing that looks whole.
  """
  make = lambda: builder(name, directory, manual_dir, **options)
  made = make()
  if not made.data_path.exists():
    tfds.display_progress_bar(sys.stderr.isatty())
    if hasattr(made, 'check_source'):
      made.check_source()
    print(f'Building {name} in {made.data_path}, once.', flush=True)
    try:
      with building.alone(made.data_path), contextlib.redirect_stdout(
          io.StringIO()):
        if not made.data_path.exists():  # or another process has built it
          made.download_and_prepare(file_format='array_record')
    except (OSError, RuntimeError) as error:
      raise UserError(f'{made.data_path} cannot be written '
                      f'({first_line(error)}): set config.data.dir or '
                      f'${DIR_VARIABLE} to a folder with room') from error
  # A builder knows only the splits that it found when it was made: another
  # process may have renamed its build into place since.
  return made if made.info.splits else make()


def load(name, split, directory=None, manual_dir=None):
  """Loads a split, building the data set first where needed.

  The decoded pixels are kept beside the records and mapped into memory at
  the next start: decoding takes longer than everything else that a run does
  before its first step.

  Args:
    name: of DATASETS, 'name' or 'name/builder_config'.
    split: 'train', 'validation' or 'test'.
    directory: TFDS data_dir; None as in `data_dir`.
    manual_dir: folder of published files, for a data set that is not built.

  Returns:
    Store; classes in the order of the builder's label names, the images of a
    class in the order of the records.

  Raises:
    UserError: unknown data set, or files that cannot be read.
  """
  made = prepare(name, directory, manual_dir)
  try:
    images, labels = _pixels(made, split)
  except (OSError, KeyError, ValueError, RuntimeError) as error:
    raise UserError(f'{made.data_path}: the {split} split cannot be read '
                    f'({first_line(error)}): delete this folder, it is '
                    'built again at the next start') from error
  classes, counts = np.unique(labels, return_counts=True)
  names = made.info.features['label'].names
  return Store(
      images=images,
      offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
      class_names=tuple(names[c] for c in classes),
      mean=np.array(made.MEAN, np.float32), std=np.array(made.STD, np.float32),
      name=name, split=split)


def image_names(store, directory=None):
  """Returns the name of each image of a store, in its order.

  The published file's where the data set knows it, else the image's number
  within its class.
  """
  made = builder(store.name, directory)
  if 'file_name' in made.info.features:
    found = [(record['label'], record['file_name'].decode())
             for record in _each(_records(made, store.split))]
    order = np.argsort([label for label, _ in found], kind='stable')
    names = [found[i][1] for i in order]
    if all(names):
      return names
  sizes = np.diff(store.offsets)
  return [str(number) for size in sizes for number in range(size)]


def _records(made, split):
  """Returns the records of a split, images as encoded bytes."""
  # Pillow decodes, so that the pixels are the same whether or not OpenCV,
  # which TFDS would prefer, is installed.
  return made.as_data_source(
      split=split, decoders={'image': tfds.decode.SkipDecoding()})


def _each(source):
  """Yields all records, in their order."""
  for ids in _chunks(len(source)):
    yield from source.__getitems__(list(ids))


def _pixels(made, split):
  """Returns images [I, h, w, c] and labels [I] of a split, by class."""
  source = _records(made, split)
  kept = [made.data_path / f'{split}.{part}.npy'
          for part in ('pixels', 'labels')]
  if not kept[1].exists():  # written last: the pixels are complete
    labels = np.array([record['label'] for record in _each(source)])
    order = np.argsort(labels, kind='stable')
    shape = (len(source),) + made.info.features['image'].shape
    try:
      with building.alone(made.data_path):
        _keep(source, order, labels[order], shape, kept)
    except OSError:
      # A data folder that is full, remote or not ours to write.
      images = np.empty(shape, np.uint8)
      _decode(source, order, images)
      return images, labels[order]
  images, labels = np.load(kept[0], mmap_mode='r'), np.load(kept[1])
  if not len(images) == len(labels) == len(source):
    raise ValueError(f'{kept[0].name} does not belong to the records')
  return images, labels


def _keep(source, order, labels, shape, kept):
  """Decodes a split into the files `kept` (pixels, labels), or none."""
  for left in kept[0].parent.glob(f'{kept[0].name}.*.tmp'):
    left.unlink()  # of a start that was killed
  if kept[1].exists():
    return  # another start was faster
  # A name of one's own, for file systems without locks.
  beside = [path.parent / f'{path.name}.{os.getpid()}.tmp' for path in kept]
  try:
    images = np.lib.format.open_memmap(beside[0], 'w+', np.uint8, shape)
    # A full disk is an error here, and would be a signal in a write below.
    if hasattr(os, 'posix_fallocate'):  # not on macOS
      with open(beside[0], 'r+b') as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(beside[0]))
    _decode(source, order, images)
    images.flush()
    with beside[1].open('wb') as file:
      np.save(file, labels)
    for temporary, path in zip(beside, kept, strict=True):
      temporary.replace(path)
  except BaseException:
    for path in beside:
      path.unlink(missing_ok=True)
    raise


def _decode(source, order, images):
  """Decodes record order[i] into images[i] [h, w, c], in threads."""
  def fill(rows):
    records = source.__getitems__([int(i) for i in order[rows]])
    for row, record in zip(rows, records, strict=True):
      with Image.open(io.BytesIO(record['image'])) as image:
        images[row] = np.asarray(image).reshape(images.shape[1:])

  # Decoding releases the interpreter's lock.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(fill, _chunks(len(source))))


def _chunks(count):
  return [range(i, min(i + 256, count)) for i in range(0, count, 256)]
