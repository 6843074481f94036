"""A user's folder of images as a data set.

    birds/robin/1.jpg                 a folder of images for each class, at any
                                      depth; the classes are split by seed
    birds/train/robin/1.jpg ..        or folders train, validation, test
    birds/train.csv ..                or lists

options.py says what a name may add, listing.py finds classes and splits.

Images of one size, 84 pixels at most, keep it. Otherwise all become squares:
the largest centred one of each image, resized to the median of their short
sides or to 84 pixels, whichever is less, or to `size`. They are grey if all of
them are, otherwise RGB. Where a list changes, or an image is added, removed or
changes its size in bytes, the data are built again.
"""

import collections
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS, Checked, DataSource, Example
from mtl_jax.data.sources.folder import listing
from mtl_jax.data.sources.folder.options import Options
from mtl_jax.errors import UserError

SIDE = 84  # pixels; larger images are made so small, unless `size` is given
_CHUNK = 256  # images
_NAMED = 12  # classes that a line names


class _Look(NamedTuple):
  """What a check needs to know of an image."""

  path: Any
  height: int
  width: int
  grey: bool
  bits: int | None  # per pixel, where they had to be guessed
  digest: bytes  # of the file


class Found(NamedTuple):
  """What a check hands on to `build`."""

  shape: tuple[int, int, int]
  skipped: frozenset  # paths of images that cannot be read


def source(path, name, options=Options()):  # noqa: B008 (a constant)
  """Returns the DataSource of a folder.

  Args:
    path: epath of the folder.
    name: of its built data.
    options: Options.
  """
  found = functools.cache(lambda: listing.find(path, options))
  return DataSource(
      name=name,
      classes=lambda variant: {split: tuple(classes) for split, classes in
                               found().splits.items()},
      build=lambda request, checked, split: _build(
          found(), checked, split),
      image_shape=None,
      check=lambda request: _check(path, found(), options),
      version=f'1.1.{listing.digest(path, options)}',
      description=f'The images of {pictures.text(path)}.')


def _check(path, found, options):
  """Decodes every image once and chooses the shape of all."""
  lines = [f'{pictures.text(path)}: {found.how}.', *found.left_out]
  looks, broken = {}, {}
  for split, classes in found.splits.items():
    for name, paths in classes.items():
      looks[split, name] = []
      if options.broken:
        paths = _with_heads(paths, broken)
      for look in pictures.in_threads(
          functools.partial(_look, skip=options.broken), paths):
        if isinstance(look, _Look):
          looks[split, name].append(look)
        else:
          broken[look[0]] = look[1]
      if not looks[split, name]:
        raise UserError(f'{pictures.text(path)}: no image of class '
                        f'{pictures.text(name)} can be read: remove it')
  if broken:
    lines.append(f'{len(broken)} images cannot be read and were left out: '
                 f'{next(iter(broken.values()))}')
  every = [look for of_class in looks.values() for look in of_class]
  height, width, channels = shape = _shape(every, options.size)
  for split in SPLITS:
    lines.append(_of_split(split, {
        name: of_class for (s, name), of_class in looks.items() if s == split}))
  lines += _duplicates(looks)
  lines += pictures.guesses([look.path for look in every],
                            [look.bits for look in every])
  several = len({look[1:3] for look in every}) > 1
  lines.append(
      f'{pictures.text(path)}: {len(every)} images, {height}x{width}, '
      + ('grey' if channels == 1 else 'RGB')
      + (f'; they differ in size ({_sizes(every)}): the largest centred square '
         'of each is resized' if several else
         f'; they are {every[0].height}x{every[0].width} and were resized'
         if every[0][1:3] != (height, width) else '') + '.')
  return Checked(lines, Found(shape, frozenset(broken)), shape)


def _with_heads(paths, broken):
  """Returns the paths of images; `broken` gets path -> line of the others."""
  images = []
  for path in paths:
    try:
      pictures.pixels_of(path)
      images.append(path)
    except UserError as error:
      broken[path] = str(error)
  return images


def _look(path, skip):
  """Returns the _Look of an image; with `skip` (path, line) of a broken one."""
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').digest()
    return _Look(path, *pictures.look(path, (SIDE, SIDE, 1)), digest)
  except UserError as error:
    if skip:
      return path, str(error)
    raise UserError(f'{error}; or add :broken=skip to the name of the folder '
                    'to leave such images out') from error


def _of_split(split, classes):
  """Returns the line on a split: its classes and how many images they have."""
  counts = sorted(len(looks) for looks in classes.values())
  named = ', '.join(map(pictures.text, list(classes)[:_NAMED]))
  return (f'{split}: {len(classes)} classes, {sum(counts)} images, '
          f'{counts[0]} to {counts[-1]} of a class: {named}'
          + (', ..' if len(classes) > _NAMED else ''))


def _sizes(looks):
  short = sorted(min(look.height, look.width) for look in looks)
  return (f'short sides {short[0]} to {short[-1]} pixels, median '
          f'{short[len(short) // 2]}')


def _duplicates(looks):
  """Returns lines on files that are the same, byte for byte."""
  owners = {}
  for (split, name), of_class in looks.items():
    for look in of_class:
      owners.setdefault(look.digest, []).append((split, name, look.path))
  lines = []
  several = [owner for owner in owners.values() if len(owner) > 1]
  for what, differ in (
      ('in classes of different splits, so that the test has seen them',
       lambda owner: len({split for split, *_ in owner}) > 1),
      ('in different classes of a split',
       lambda owner: len({split for split, *_ in owner}) == 1
       and len({name for _, name, _ in owner}) > 1),
      ('twice in a class', lambda owner: len({o[1] for o in owner}) == 1
       and len({o[0] for o in owner}) == 1)):
    same = [owner for owner in several if differ(owner)]
    if same:
      first, second = (_short(path) for *_, path in same[0][:2])
      lines.append(f'{len(same)} images are {what}, such as {first} and '
                   f'{second}: they were kept.')
  return lines


def _shape(looks, size):
  """Returns (h, w, c) of all images.

  Raises:
    UserError: an image is much smaller than the others.
  """
  channels = 1 if all(look.grey for look in looks) else 3
  sizes = collections.Counter(look[1:3] for look in looks)
  (height, width), count = sizes.most_common(1)[0]
  if size is None and count == len(looks) and max(height, width) <= SIDE:
    return height, width, channels
  short = lambda look: min(look.height, look.width)
  side = size or min(SIDE, int(np.median([short(look) for look in looks])))
  smallest = min(looks, key=short)
  if 2 * short(smallest) < side:
    raise UserError(
        f'{smallest.path} is {smallest.height}x{smallest.width}, far smaller '
        f'than the other images, which become {side}x{side}: remove it, or '
        f'use images with short sides of at least {(side + 1) // 2} pixels, or '
        'add :size=PIXELS to the name of the folder')
  return side, side, channels


def _build(found, checked, split):
  """Yields the images of a split, by class and file name."""
  rows = [(name, path) for name, paths in found.splits[split].items()
          for path in paths if path not in checked.skipped]
  encode = lambda path: pictures.png(pictures.prepare(path, checked.shape))
  for start in range(0, len(rows), _CHUNK):
    chunk = rows[start:start + _CHUNK]
    for (name, path), encoded in zip(
        chunk, pictures.in_threads(encode, [path for _, path in chunk]),
        strict=True):
      yield Example(name, encoded,
                    _short(path))


def _short(path):
  return pictures.text(f'{path.parent.name}/{path.name}')
