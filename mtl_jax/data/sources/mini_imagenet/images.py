"""Checks and encodes the pixels of mini-ImageNet, a few images at a time."""

import collections
import concurrent.futures
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax import progress
from mtl_jax.data import pictures
from mtl_jax.errors import UserError
from mtl_jax.files import is_html

SIZE = 84
# Finn et al. (2017) shrank the originals with this one.
FILTER = Image.Resampling.LANCZOS
ORDERS = ('auto', 'rgb', 'bgr')
# Fewer images may be bluish by chance.
MIN_FOR_ORDER = 5000
_CHUNK = 256


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


def check(layout, splits, channel_order):
  """Decodes every image once.

  Args:
    layout: the files, of files.find.
    splits: split -> number of images.
    channel_order: of ORDERS; 'auto' takes RGB and checks the means.

  Returns:
    Lines that the user should read.

  Raises:
    UserError: an image that cannot be decoded, or colours in another order.
  """
  notices, resized, converted = [], [], []
  with progress.bar(sum(splits.values()), 'checking') as bar:
    for split in splits:
      images = layout.open(split)
      broken, mean = [], np.zeros(3)
      looks = in_threads(lambda i, images=images: _look(images.read(i)),
                         len(images.classes))
      for i, look in enumerate(looks):
        bar.update()
        if isinstance(look, str):
          broken.append(f'{images.where(i)} cannot be decoded ({look}')
          continue
        mean += look.mean / len(images.classes)
        if look.size != (SIZE, SIZE):
          resized.append(f'{images.where(i)}, {look.size[0]}x{look.size[1]}')
        if look.mode != 'RGB':
          converted.append(f'{images.where(i)}, mode {look.mode}')
      if broken:
        raise UserError(f'{broken[0]}; {len(broken)} of {len(images.classes)} '
                        f'images of the {split} split): fetch it again')
      if channel_order == 'auto':
        notices += _check_order(mean, split, images)
      del images, looks  # a pickle is large
  total = sum(splits.values())
  if resized:
    notices.append(
        f'{len(resized)} of {total} images are not {SIZE}x{SIZE} (first: '
        f'{resized[0]}): resized with Pillow\'s {FILTER.name} filter.')
  if converted:
    notices.append(
        f'{len(converted)} of {total} images are not RGB (first: '
        f'{converted[0]}): converted by Pillow.')
  return notices


def _check_order(mean, split, images):
  """Returns notices on the means of the channels, which fall from R to B."""
  if mean[0] > mean[1] > mean[2]:
    return []
  text = (f'the channel means of the {split} split '
          f'({images.where(0).rpartition(" in ")[2]}) are '
          f'{mean[0]:.1f}, {mean[1]:.1f}, {mean[2]:.1f}, but fall from red to '
          'blue in mini-ImageNet: '
          + ('this is BGR' if mean[0] < mean[1] < mean[2]
             else 'these are other images or other colours'))
  if len(images.classes) < MIN_FOR_ORDER:
    return [f'Warning: {text}, or too few images to tell.']
  raise UserError(f'{text}; build with --channel_order=bgr to swap them, or '
                  '--channel_order=rgb to keep them')


def encode(payload, swap):
  """Returns the bytes to store: a JPEG or PNG of 84x84 RGB.

  Args:
    payload: encoded bytes, kept as they are where they will do, or uint8
      [h, w, 3].
    swap: whether the channels are in reverse order.
  """
  image = _open(payload)
  if (isinstance(payload, bytes) and not swap and image.mode == 'RGB'
      and image.size == (SIZE, SIZE) and image.format in ('JPEG', 'PNG')):
    return payload
  image = image.convert('RGB')
  if swap:
    image = Image.merge('RGB', image.split()[::-1])
  if image.size != (SIZE, SIZE):
    image = image.resize((SIZE, SIZE), FILTER)
  return pictures.png(np.asarray(image), compress_level=1)
