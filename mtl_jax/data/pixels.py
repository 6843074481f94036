"""The decoded pixels of a split, kept beside its records.

Decoding takes longer than everything else that a run does before its first
step, so later starts map what the first one decoded into memory.
"""

import concurrent.futures
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
    split: of its splits.

  Raises:
    OSError, KeyError, ValueError, RuntimeError: files that cannot be read.
  """
  source = records(built, split)
  kept = [built.data_path / f'{split}.{part}.npy'
          for part in ('pixels', 'labels')]
  shape = (len(source),) + built.info.features['image'].shape
  found = _read(kept, shape)
  if found is None:
    labels = np.array([record['label'] for record in each(source)])
    order = np.argsort(labels, kind='stable')
    try:
      with building.alone(built.data_path):
        _keep(source, order, labels[order], shape, kept)
      found = _read(kept, shape)
    except OSError:
      # The data folder is full or remote, or this user may not write to it.
      images = np.empty(shape, np.uint8)
      _decode(source, order, images)
      return images, labels[order]
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
  except (OSError, ValueError, EOFError, MemoryError):
    return None
  fits = (images.shape == shape and images.dtype == np.uint8
          and labels.shape == shape[:1] and labels.dtype.kind == 'i'
          and (np.diff(labels) >= 0).all())
  return (images, labels) if fits else None


def _keep(source, order, labels, shape, kept):
  """Decodes a split into the files `kept` (pixels, labels), or none."""
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
    encoded = source.__getitems__([int(i) for i in order[rows]])
    for row, record in zip(rows, encoded, strict=True):
      pixels = np.asarray(pictures.decode(record['image']))
      images[row] = pixels.reshape(images.shape[1:])
    return len(rows)

  # Decoding releases the interpreter's lock.
  with concurrent.futures.ThreadPoolExecutor(
      os.cpu_count()) as pool, progress.bar(len(source), 'decoding') as bar:
    for count in pool.map(fill, _chunks(len(source))):
      bar.update(count)


def _chunks(count):
  return [range(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK)]
