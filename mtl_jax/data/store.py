"""A split as one array of pixels, sorted by class."""

import contextlib
import json
import math
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import files
from mtl_jax.data import building, feed, pixels, sources
from mtl_jax.data.source import names_of
from mtl_jax.errors import UserError, check_choice, first_line

# Of a device's free memory, the part that pixels may take.
_PART = 0.5
# Bytes of a tile of an accelerator's memory, to which images are padded there.
# A TPU keeps other arrays in an order from which it cannot gather images, and
# copies all of them at every step.
_TILE = 8, 128
MEASURED = 'normalisation.json'  # mean and std, where the source has none

prepare = building.prepare
builder = building.builder


class Arrays(NamedTuple):
  """The part of a store that a compiled step reads."""

  images: Any  # uint8 [I, h, w, c], or as `padded`; None: the host gathers
  offsets: Any  # int32 [M + 1]
  mean: Any  # float32 [c], of pixels / 255
  std: Any  # float32 [c]


class Store(NamedTuple):
  """A split; class m owns the images offsets[m]:offsets[m + 1]."""

  images: np.ndarray  # uint8 [I, h, w, c], mapped from a file if possible
  offsets: np.ndarray  # int32 [M + 1]; classes may differ in size
  class_names: tuple[str, ...]  # [M]
  mean: np.ndarray  # float32 [c], of pixels / 255
  std: np.ndarray  # float32 [c]
  name: str
  split: str
  tested: Mapping[str, Any] = MappingProxyType({})  # of run/tested_split.py

  @property
  def num_classes(self):
    """M."""
    return len(self.class_names)


def arrays(store, place='device'):
  """Returns what a compiled step needs, on the device.

  Args:
    store: the split.
    place: where the pixels are, of PLACES; for 'host' `images` is None. On a
      CPU they stay where they are, in the mapped file.
  """
  check_choice('config.data.store', place, feed.PLACES)
  images = None
  if place != 'host':
    images = (store.images if jax.default_backend() == 'cpu'
              else padded(store.images))
  return Arrays(
      images if images is None else jax.device_put(images),
      *(jnp.asarray(x) for x in (store.offsets, store.mean, store.std)))


def padded(images):
  """Returns images [I, h, w, c] as [I, R, 128], with zeros after each."""
  count, size = len(images), math.prod(images.shape[1:])
  rows, columns = padded_shape(images.shape[1:])
  result = np.zeros((count, rows * columns), np.uint8)
  result[:, :size] = images.reshape(count, size)
  return result.reshape(count, rows, columns)


def padded_shape(image_shape):
  """Returns the shape of an image as `padded` keeps it: [R, 128]."""
  rows, columns = _TILE
  tiles = -(-math.prod(image_shape) // (rows * columns))
  return tiles * rows, columns


def place(wanted, store, device):
  """Returns where the pixels of a store are kept: 'device' or 'host'.

  Args:
    wanted: of PLACES; 'auto' takes the host if they need more than half of the
      free memory of the device.
    store: the split.
    device: one of those that compute.
  """
  known = device.memory_stats() if device.platform != 'cpu' else None
  memory = {'bytes_limit': math.inf, 'bytes_in_use': 0} | (known or {})
  free = memory['bytes_limit'] - memory['bytes_in_use']
  return place_of(wanted, store.images.nbytes, free)


def place_of(wanted, size, free):
  """Returns where pixels are kept: 'device' or 'host'.

  Args:
    wanted: as of `place`.
    size: of the pixels, in bytes.
    free: bytes of the device's memory.
  """
  check_choice('config.data.store', wanted, feed.PLACES)
  if wanted != 'auto':
    return wanted
  return 'device' if size <= _PART * free else 'host'


def constants(normalise=True, mean=(), std=()):
  """Returns the `constants` of `load` that a section config.data asks for."""
  return (mean, std) if mean else None if normalise else ((0.,), (1.,))


def load(name, split, directory=None, manual_dir=None, constants=None):
  """Loads a split, building the data set first where needed.

  Args:
    name: as `config.data.name`: of a registered data set, or the path of a
      user's source or folder of images.
    split: 'train', 'validation' or 'test'; or several, as 'train+validation'.
    directory: TFDS data_dir; None as in `building.data_dir`.
    manual_dir: folder of published files, for a data set that is not built.
    constants: mean and standard deviation that the store has, a number per
      channel or one for all; None: those of the training pixels.

  Returns:
    Store; classes in the order of the source's lists, the images of a class in
    the order of the records.

  Raises:
    UserError: unknown data set, files that cannot be read, other classes than
      the published ones, or constants for other images.
  """
  built = prepare(name, directory, manual_dir)
  images, labels = _read(built, split, pixels.load)
  mean, std = per_channel(
      constants or _normalisation(sources.find(name).source, built),
      images.shape[-1])
  classes, counts = np.unique(labels, return_counts=True)
  names = built.info.features['label'].names
  if classes.max() >= len(names):
    raise UserError(f'{built.data_path}: the {split} split has a class of the '
                    f'number {classes.max()}, and names of {len(names)} '
                    'classes: delete this folder, and build the data set again')
  class_names = tuple(names[c] for c in classes)
  _check_classes(name, split, class_names, built)
  return Store(
      images=images,
      offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
      class_names=class_names, mean=mean, std=std, name=name, split=split)


def _check_classes(name, split, found, built):
  """Raises UserError unless a split has the classes of the published lists.

  Args:
    name, split: as in `load`.
    found: names of the classes of the split.
    built: the builder.
  """
  source, variant = sources.find(name)
  if not source.put:
    return  # no lists are published
  wanted = names_of(source.classes(variant), split)
  strange = sorted({*wanted} ^ {*found})
  if strange:
    raise UserError(
        f'{built.data_path}: the {split} split has {len(found)} classes, and '
        f'{name} {len(wanted)} there ({strange[0]} is '
        + ('missing' if strange[0] in wanted else 'none of them')
        + '): delete this folder, and build the data set again')


def fitted(store, image_shape, directory=None, invert=False):
  """Returns a store whose images are brought to a shape, made once and mapped.

  Args:
    store: of `load`.
    image_shape: (h, w, c); see pictures.prepare for how it is reached.
    directory: TFDS data_dir of the store.
    invert: exchange black and white.

  Raises:
    UserError: files that cannot be read.
  """
  return store._replace(images=_read(
      builder(store.name, directory), store.split, pixels.fitted, image_shape,
      invert))


def per_channel(constants, channels):
  """Returns mean and standard deviation as float32 [c] each.

  Args:
    constants: as in `load`.
    channels: c.

  Raises:
    UserError: they have another number of channels.
  """
  for field, values in zip(('mean', 'std'), constants, strict=True):
    if len(values) not in (1, channels):
      raise UserError(f'config.data.{field} has {len(values)} numbers: the '
                      f'images have {channels} channels')
  return tuple(np.broadcast_to(np.array(values, np.float32), channels)
               for values in constants)


def image_names(store, directory=None):
  """Returns the name of each image of a store, in its order.

  The name of the published file where the data set knows it, and a class has no
  name twice; otherwise the image's number within its class.
  """
  built = builder(store.name, directory)
  if 'file_name' in built.info.features:
    names_of = [(record['label'], record['file_name'].decode())
                for record in pixels.each(pixels.records(built, store.split))]
    order = np.argsort([label for label, _ in names_of], kind='stable')
    names = [names_of[i][1] for i in order]
    if all(names) and len(set(names_of)) == len(names):
      return names
  sizes = np.diff(store.offsets)
  return [str(number) for size in sizes for number in range(size)]


def _read(built, split, read, *how):
  """Returns what a function of pixels.py returns of a split."""
  try:
    return read(built, split, *how)
  except (OSError, KeyError, ValueError, RuntimeError) as error:
    raise UserError(f'{built.data_path}: the {split} split cannot be read '
                    f'({first_line(error)}): delete this folder, and build '
                    'the data set again') from error


def _normalisation(source, built):
  """Returns mean and std of training pixels / 255, [c] each.

  The constants of the source, or those of its training split, which are
  measured once and kept beside the records.

  Raises:
    UserError: the source has one of them alone, or not a number per channel.
  """
  channels = built.info.features['image'].shape[-1]
  if source.mean is not None or source.std is not None:
    for what, value in (('mean', source.mean), ('std', source.std)):
      if value is None or len(value) != channels or not np.isfinite(
          value).all() or (what == 'std' and min(value) <= 0):
        raise UserError(f'{what} of the data source {source.name} is {value}: '
                        f'must be {channels} numbers, one per channel'
                        + ', above 0' * (what == 'std'))
    return source.mean, source.std
  file = built.data_path / MEASURED
  # A file that is missing or damaged is measured again.
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError,
                           RecursionError):
    kept = json.loads(file.read_text())
    mean, std = (np.array(kept[name], float) for name in ('mean', 'std'))
    if mean.shape == std.shape == (channels,) and np.isfinite(
        [mean, std]).all() and (std > 0).all():
      return mean, std
  mean, std = pixels.mean_and_std(_read(built, 'train', pixels.load)[0])
  for channel in np.flatnonzero(std == 0):
    print(f'note: channel {channel} of the training images of {source.name} is '
          'constant: it is not scaled', file=sys.stderr)
    std[channel] = 1.
  with contextlib.suppress(UserError):  # a folder that takes no file
    files.write(file, json.dumps({'mean': mean.tolist(), 'std': std.tolist()}))
  return mean, std
