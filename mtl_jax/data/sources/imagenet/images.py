"""Checks and encodes images of ImageNet, 84x84, a few at a time."""

import collections
import concurrent.futures
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax import progress
from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS, Example
from mtl_jax.errors import UserError
from mtl_jax.files import is_html

SIZE = 84
# Of pixels / 255: the constants of Lee et al. (2019, MetaOptNet), measured over
# the training split of mini-ImageNet.
MEAN = (120.39586422 / 255, 115.59361427 / 255, 104.54012653 / 255)
STD = (70.68188272 / 255, 68.27635443 / 255, 72.54505529 / 255)
ORDERS = ('auto', 'rgb', 'bgr')
# Fewer images may be bluish by chance.
MIN_FOR_ORDER = 5000
_CHUNK = 256


class Resize(NamedTuple):
  """How an image of another size becomes 84x84."""

  text: str  # for the user
  apply: Callable[[Image.Image], np.ndarray]  # RGB -> uint8 [84, 84, 3]


# Finn et al. (2017) shrank the originals with this one.
LANCZOS = Resize('Pillow\'s LANCZOS filter', lambda image: np.asarray(
    image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)))


class Means(NamedTuple):
  """The mean colour of a split."""

  rgb: np.ndarray  # [3], 0 to 255
  images: int
  where: str  # the file or folder of its first image


class _Seen(NamedTuple):
  """What a check needs to know of an image."""

  size: tuple[int, int]
  mode: str
  mean: np.ndarray  # [3], 0 to 255


def in_threads(function, count):
  """Yields function(i) for i < count, in order, a few chunks ahead."""
  def chunk(start):
    return [function(i) for i in range(start, min(start + _CHUNK, count))]

  ahead = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    try:
      for start in range(0, count, _CHUNK):
        ahead.append(pool.submit(chunk, start))
        if len(ahead) > 2 * os.cpu_count():
          yield from ahead.popleft().result()
      while ahead:
        yield from ahead.popleft().result()
    finally:
      for future in ahead:
        future.cancel()


def _look(payload):
  """Decodes an image: _Seen, or a line about what is wrong with it."""
  try:
    image = _open(payload)
    size, mode = image.size, image.mode
    pixels = np.asarray(image.convert('RGB'))
  except pictures.NoImage as error:
    return 'it is an HTML page' if is_html(payload) else str(error)
  except pictures.Unreadable as error:
    return str(error)
  return _Seen(size, mode, pixels.mean((0, 1)))


def _open(payload):
  if isinstance(payload, bytes):
    return pictures.decode(payload)
  return Image.fromarray(np.ascontiguousarray(payload))


def look(layout, resize):
  """Decodes every image once.

  Args:
    layout: the files, of files.find.
    resize: Resize of images of another size.

  Returns:
    split -> Means, and lines that the user should read.

  Raises:
    UserError: an image that cannot be decoded.
  """
  means, counts, first = {}, collections.Counter(), {}

  def note(kind, text):
    counts[kind] += 1
    first.setdefault(kind, text)

  for split in SPLITS:
    images = layout.open(split)
    total, mean = len(images.classes), np.zeros(3)
    seen = in_threads(lambda i, images=images: _look(images.read(i)), total)
    for i, image in enumerate(progress.each(seen, f'checking {split}',
                                            total=total)):
      if isinstance(image, str):
        note(split, f'{images.where(i)} cannot be decoded ({image}')
        continue
      mean += image.mean / total
      if image.size != (SIZE, SIZE):
        note('sizes', f'{images.where(i)}, {image.size[0]}x{image.size[1]}')
      if image.mode != 'RGB':
        note('modes', f'{images.where(i)}, mode {image.mode}')
    if split in first:
      raise UserError(f'{first[split]}; {counts[split]} of {total} images '
                      f'of the {split} split): fetch it again')
    means[split] = Means(mean, total, images.where(0).rpartition(' in ')[2])
    del images, seen  # a pickle is large
  return means, _notices(sum(mean.images for mean in means.values()), counts,
                         first, resize)


def _notices(total, counts, first, resize):
  """Returns lines on the images that are changed before they are stored."""
  notices = []
  if counts['sizes']:
    notices.append(
        f'{counts["sizes"]} of {total} images are not {SIZE}x{SIZE} (first: '
        f'{first["sizes"]}): resized with {resize.text}.')
  if counts['modes']:
    notices.append(
        f'{counts["modes"]} of {total} images are not RGB (first: '
        f'{first["modes"]}): converted by Pillow.')
  return notices


def check_order(means, name):
  """Checks that the means of the channels fall from R to B in every split.

  Args:
    means: split -> Means.
    name: what the data set is called.

  Returns:
    Lines that the user should read.

  Raises:
    UserError: they do not.
  """
  notices = []
  for split, of_split in means.items():
    mean = of_split.rgb
    if mean[0] > mean[1] > mean[2]:
      continue
    text = (f'the channel means of the {split} split ({of_split.where}) are '
            f'{mean[0]:.1f}, {mean[1]:.1f}, {mean[2]:.1f}, but fall from red '
            f'to blue in {name}: '
            + ('this is BGR' if mean[0] < mean[1] < mean[2]
               else 'these are other images or other colours'))
    if of_split.images >= MIN_FOR_ORDER:
      raise UserError(f'{text}; build with --channel_order=bgr to swap them, '
                      'or --channel_order=rgb to keep them')
    notices.append(f'Warning: {text}, or too few images to tell.')
  return notices


def encode(payload, swap, resize=LANCZOS):
  """Returns the bytes to store: a JPEG or PNG of 84x84 RGB.

  Args:
    payload: encoded bytes, kept as they are where they will do, or uint8
      [h, w, 3].
    swap: whether the channels are in reverse order.
    resize: Resize of images of another size.
  """
  image = _open(payload)
  if (isinstance(payload, bytes) and not swap and image.mode == 'RGB'
      and image.size == (SIZE, SIZE) and image.format in ('JPEG', 'PNG')):
    return payload
  image = image.convert('RGB')
  if swap:
    image = Image.merge('RGB', image.split()[::-1])
  pixels = (np.asarray(image) if image.size == (SIZE, SIZE)
            else resize.apply(image))
  return pictures.png(pixels, compress_level=1)


def examples(opened, swap, resize=LANCZOS):
  """Yields the Examples of a split, encoded in threads.

  Args:
    opened: Split of a layout.
    swap, resize: as in `encode`.
  """
  encoded = in_threads(lambda i: encode(opened.read(i), swap, resize),
                       len(opened.classes))
  for wnid, name, image in zip(
      opened.classes, opened.names, encoded, strict=True):
    yield Example(wnid, image, pictures.text(name))
