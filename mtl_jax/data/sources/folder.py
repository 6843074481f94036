"""A user's folder of images as a data set.

    birds/train/robin/1.jpg           a folder of images for each class
    birds/validation/owl/1.png        (or val) ..
    birds/test/wren/1.png

Images of one size, 224 pixels at most, keep it. Otherwise all become squares:
the largest centred one of each image, resized to the median of their short
sides or to 84 pixels, whichever is less. They are grey if all of them are,
otherwise RGB. Where an image is added, removed or changes its size in bytes,
the data are built again.
"""

import collections
import functools
import hashlib
import os
from typing import NamedTuple

import numpy as np

from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS, Checked, DataSource, Example
from mtl_jax.errors import UserError

NAMES = {'train': ('train',), 'validation': ('validation', 'val'),
         'test': ('test',)}
LARGEST = 224  # pixels of a side that is kept
SIDE = 84  # pixels; images of several sizes are made no larger
_CHUNK = 256  # images
_WANTED = ('a folder of images has folders train, validation and test, each '
           'with a folder of images for each class')


class _Look(NamedTuple):
  """What a check needs to know of an image."""

  path: os.PathLike
  height: int
  width: int
  grey: bool


def source(path, name):
  """Returns the DataSource of a folder.

  Args:
    path: epath of the folder.
    name: of its built data.
  """
  return DataSource(
      name=name,
      classes=lambda variant: _classes(path),
      build=functools.partial(_build, path),
      image_shape=None,
      check=lambda request: _check(path),
      version=f'1.0.{_digest(path)}',
      description=f'The images of {pictures.text(path)}.')


def _digest(path):
  """Returns a number of the names and sizes of all files that may be images."""
  digest = hashlib.sha256()
  if '://' not in str(path):  # elsewhere, looking at each file takes long
    for folder, folders, names in os.walk(path):
      folders.sort()
      for name in sorted(names):
        if name.lower().endswith(pictures.SUFFIXES):
          file = os.path.join(folder, name)
          size = os.path.getsize(file) if os.path.exists(file) else None
          line = f'{os.path.relpath(file, path)} {size}\n'
          digest.update(line.encode('utf-8', 'surrogateescape'))
  return int(digest.hexdigest()[:7], 16)


def _split_folder(path, split):
  for name in NAMES[split]:
    if (path / name).is_dir():
      return path / name
  pictures.subfolders_of(path)  # an error, if it cannot be read
  raise UserError(f'{path} has no folder {split}: {_WANTED}')


def _classes(path):
  """Returns split -> names of its class folders, sorted."""
  classes = {split: tuple(folder.name for folder in pictures.subfolders_of(
      _split_folder(path, split))) for split in SPLITS}
  split_of = {}
  for split, names in classes.items():
    if not names:
      raise UserError(f'{_split_folder(path, split)} has no folders in it: '
                      f'{_WANTED}')
    for name in names:
      if name in split_of:
        raise UserError(f'{path}: the class {name!r} is in {split_of[name]} '
                        f'and in {split}: a class has one split')
      split_of[name] = split
  return classes


def _check(path):
  """Decodes every image once and chooses the shape of all."""
  looks, lines = [], []
  for split, names in _classes(path).items():
    for name in names:
      folder = _split_folder(path, split) / name
      images, others = pictures.images_of(folder)
      if not images:
        raise UserError(f'{folder} has no images directly in it: {_WANTED}')
      lines += pictures.left_out(folder, others)
      looks += pictures.in_threads(_look, images)
  height, width, channels = shape = _shape(looks)
  several = len({look[1:3] for look in looks}) > 1
  lines.append(
      f'{pictures.text(path)}: {len(looks)} images, {height}x{width}, '
      + ('grey' if channels == 1 else 'RGB')
      + ('; they differ in size: the largest centred square of each is resized'
         if several else '') + '.')
  return Checked(lines, shape, shape)


def _look(path):
  return _Look(path, *pictures.look(path, (LARGEST, LARGEST, 1)))


def _shape(looks):
  """Returns (h, w, c) of all images.

  Raises:
    UserError: an image is much smaller than the others.
  """
  channels = 1 if all(look.grey for look in looks) else 3
  sizes = collections.Counter(look[1:3] for look in looks)
  (height, width), count = sizes.most_common(1)[0]
  if count == len(looks) and max(height, width) <= LARGEST:
    return height, width, channels
  short = lambda look: min(look.height, look.width)
  side = min(SIDE, int(np.median([short(look) for look in looks])))
  smallest = min(looks, key=short)
  if 2 * short(smallest) < side:
    raise UserError(
        f'{smallest.path} is {smallest.height}x{smallest.width}, far smaller '
        f'than the other images, which become {side}x{side}: remove it, or '
        f'use images with short sides of at least {(side + 1) // 2} pixels')
  return side, side, channels


def _build(path, request, shape, split):
  """Yields the images of a split, by class and file name."""
  del request
  folder = _split_folder(path, split)
  rows = [(name, image) for name in _classes(path)[split]
          for image in pictures.images_of(folder / name)[0]]
  encode = lambda image: pictures.png(pictures.prepare(image, shape))
  for start in range(0, len(rows), _CHUNK):
    chunk = rows[start:start + _CHUNK]
    for (name, image), encoded in zip(
        chunk, pictures.in_threads(encode, [image for _, image in chunk]),
        strict=True):
      yield Example(name, encoded,
                    pictures.text(f'{image.parent.name}/{image.name}'))
