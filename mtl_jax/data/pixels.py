"""The decoded pixels of a split, kept beside its records.

    train.labels.npy test.pixels.npy     decoded
    test.84x84x3.pixels.npy              brought to another shape

Decoding takes longer than everything else that a run does before its first
step, so later starts map what the first one decoded into memory.
"""

import concurrent.futures
import functools
import os

import numpy as np

from mtl_jax import progress
from mtl_jax.data import building, pictures

_CHUNK = 256  # images


def records(built, split):
  """Returns the records of a split, images as encoded bytes.

  Pillow decodes, so that the pixels are the same whether or not OpenCV, which
  TFDS would prefer, is installed.
  """
  import tensorflow_datasets as tfds  # late, as in `building`
  return built.as_data_source(
      split=split, decoders={'image': tfds.decode.SkipDecoding()})


def each(source):
  """Yields all records, in their order."""
  for ids in _chunks(len(source)):
    yield from source.__getitems__(list(ids))


def load(built, split):
  """Returns the images uint8 [I, h, w, c] and labels [I] of a split, by class.

  Args:
    built: TFDS builder of a data set that is built.
    split: of its splits, or several joined by '+'.

  Raises:
    OSError, KeyError, ValueError, RuntimeError: files that cannot be read.
  """
  source = records(built, split)

  def decoded():
    labels = np.array([record['label'] for record in each(source)])
    order = np.argsort(labels, kind='stable')
    return labels[order], functools.partial(_decode, source, order)

  return _once(built, split, '', (
      len(source), *built.info.features['image'].shape), decoded)


def fitted(built, split, image_shape, invert=False):
  """Returns the images of a split in another shape, by class.

  Args:
    built, split: as in `load`.
    image_shape: (h, w, c); see pictures.prepare for how it is reached.
    invert: exchange black and white.

  Raises:
    OSError, KeyError, ValueError, RuntimeError: as `load`.
  """
  images, labels = load(built, split)
  name = 'x'.join(map(str, image_shape)) + '.inverted' * invert
  return _once(built, split, f'{name}.', (len(images), *image_shape), lambda: (
      labels, functools.partial(_fit, images, image_shape, invert)))[0]


def _once(built, split, name, shape, make):
  """Returns images and labels [I] that are made once and then mapped.

  Args:
    built, split: as in `load`.
    name: of these images among those of the split.
    shape: of the images.
    make: () -> (labels, function that fills an array of the images).
  """
  kept = [built.data_path / f'{split}.{part}.npy'
          for part in (f'{name}pixels', 'labels')]
  found = _read(kept, shape)
  if found is None:
    labels, fill = make()
    try:
      with building.alone(built.data_path):
        _keep(fill, labels, shape, kept)
      found = _read(kept, shape)
    except OSError:
      # The data folder is full or remote, or this user may not write to it.
      images = np.empty(shape, np.uint8)
      fill(images)
      return images, labels
  if found is None:
    raise ValueError(f'{kept[0].name} changes while it is read')
  return found


def mean_and_std(images):
  """Returns mean and standard deviation of pixels / 255, float64 [c] each.

  Exact, from counts of the 256 values, a few images at a time.

  Args:
    images: uint8 [I, h, w, c].
  """
  channels = images.shape[-1]
  counts = np.zeros((channels, 256), np.int64)
  for ids in progress.each(_chunks(len(images)), 'measuring',
                             unit='chunk'):
    pixels = np.asarray(images[ids.start:ids.stop])
    for c in range(channels):
      counts[c] += np.bincount(pixels[..., c].ravel(), minlength=256)
  weights = counts / counts.sum(1, keepdims=True)
  values = np.arange(256) / 255
  mean = weights @ values
  return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))


def _read(kept, shape):
  """Returns what the files `kept` hold, or None if they must be made again.

  They may be missing, damaged, or of other records.
  """
  try:
    images, labels = np.load(kept[0], mmap_mode='r'), np.load(kept[1])
  except Exception:  # a damaged head may raise any error of a parser
    return None
  fits = (images.shape == shape and images.dtype == np.uint8
          and labels.shape == shape[:1] and labels.dtype.kind == 'i'
          and (np.diff(labels) >= 0).all())
  return (images, labels) if fits else None


def _keep(fill, labels, shape, kept):
  """Fills the files `kept` (pixels, labels), or none."""
  for left in kept[0].parent.glob(f'{kept[0].name}.*.tmp'):
    left.unlink()  # of a start that was killed
  if _read(kept, shape) is not None:
    return  # another start was faster
  # A name of its own for each process, for file systems without locks.
  beside = [path.parent / f'{path.name}.{os.getpid()}.tmp' for path in kept]
  try:
    images = np.lib.format.open_memmap(beside[0], 'w+', np.uint8, shape)
    # Here a full disk is an error. In a write below it would be a signal that
    # ends the process.
    if hasattr(os, 'posix_fallocate'):  # not on macOS
      with open(beside[0], 'r+b') as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(beside[0]))
    fill(images)
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
  """Decodes record order[i] into images[i] [h, w, c]."""
  def fill(rows):
    encoded = source.__getitems__([int(i) for i in order[rows]])
    for row, record in zip(rows, encoded, strict=True):
      pixels = np.asarray(pictures.decode(record['image']))
      images[row] = pixels.reshape(images.shape[1:])

  _in_threads(fill, len(source), 'decoding')


def _fit(images, image_shape, invert, fitted):
  """Brings images [I] to a shape, in the array `fitted` [I, h, w, c]."""
  def fill(rows):
    for row in rows:
      fitted[row] = pictures.fit(images[row], image_shape, invert=invert)

  _in_threads(fill, len(images), 'resizing')


def _in_threads(fill, count, what):
  """Calls fill(rows) for all rows below `count`, and shows the progress."""
  chunks = _chunks(count)
  # Pillow releases the interpreter's lock.
  with concurrent.futures.ThreadPoolExecutor(
      os.cpu_count()) as pool, progress.bar(count, what) as bar:
    for rows, _ in zip(chunks, pool.map(fill, chunks), strict=True):
      bar.update(len(rows))


def _chunks(count):
  return [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
