"""Finds the classes of a folder of images, and the split of each class."""

import hashlib
import pathlib
from typing import NamedTuple

from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS
from mtl_jax.data.sources.folder import lists
from mtl_jax.errors import UserError

_SPLIT_OF = lists.SPLIT_OF | {
    'meta-train': 'train', 'meta-val': 'validation', 'meta-test': 'test'}
_WANTED = ('a folder of images holds a folder of images for each class, or '
           'folders train, validation and test with such folders, or lists '
           '(see docs/own.md)')


class Listing(NamedTuple):
  """What is in a folder."""

  how: str  # says for the user how the classes were found
  splits: dict[str, dict[str, list]]  # split -> class -> paths of its images
  left_out: list[str]  # lines


def find(top, options):
  """Returns the Listing of a folder.

  Args:
    top: its path.
    options: Options.

  Raises:
    UserError: no images or classes, or a class that is in two splits.
  """
  top = pathlib.Path(top)
  if not top.is_dir():
    raise UserError(f'{pictures.text(top)} is no folder: {_WANTED}')
  root = _unwrapped(top)
  found = (_listed(root, options) or _split_folders(root, options)
           or _whole(root, options))
  return _checked(root, found, options)


def _unwrapped(folder):
  """Returns the first folder on the way down with more than one thing in it."""
  while True:
    inside = pictures.subfolders_of(folder)
    files = [p for p in folder.iterdir()
             if p.is_file() and not p.name.startswith('.')]
    if len(inside) != 1 or files or _split_of(inside[0].name):
      return folder
    folder = inside[0]


def _split_of(name):
  """Returns the split that the name of a folder means, or None."""
  return _SPLIT_OF.get(name.lower())


def _listed(root, options):
  """Takes lists, or returns None without any."""
  found = lists.find(root, options)
  if found is None or found.splits is not None:
    return found and Listing(found.text, found.splits, [])
  how, splits = divided(found.classes, options)
  return Listing(f'{found.text}, classes {how}', splits, [])


def _split_folders(root, options):
  """Takes folders named as the splits, or returns None without any."""
  named = {}
  for folder in pictures.subfolders_of(root):
    split = _split_of(folder.name)
    if split and split in named:
      raise UserError(f'{pictures.text(root)} has the folders '
                      f'{named[split].name} and {folder.name}, both for '
                      f'{split}: keep one')
    if split:
      named[split] = folder
  if not named:
    return None
  left_out, of_split = [], {}
  for split, folder in named.items():
    of_split[split], lines = classes_below(folder, strict=True)
    left_out += lines
    if not of_split[split]:
      raise UserError(f'{pictures.text(folder)} has no folders in it: '
                      f'{_WANTED}')
  if options.merge:
    merged = {}
    for classes in of_split.values():
      for name, paths in classes.items():
        merged.setdefault(name, []).extend(paths)
    how, splits = divided(merged, options)
    return Listing(f'the images of the folders {", ".join(of_split)} together, '
                   + how, splits, left_out)
  for split in SPLITS:
    if split not in named:
      raise UserError(f'{pictures.text(root)} has no folder {split}: make one '
                      'with classes of its own, or add :merge=yes to the name '
                      'to split all classes by seed')
  return Listing('folders of the splits', {s: of_split[s] for s in SPLITS},
                 left_out)


def _whole(root, options):
  """Takes all class folders, and splits the classes by seed."""
  classes, left_out = classes_below(root)
  if not classes:
    raise UserError(f'{pictures.text(root)} has no images in folders: '
                    f'{_WANTED}')
  how, splits = divided(classes, options)
  return Listing(f'class folders, {how}', splits, left_out)


def classes_below(base, strict=False):
  """Returns class -> paths of its images, and lines on what was left out.

  A class is an outermost folder that directly holds images; what lies deeper
  belongs to it. Its name is its path from `base`.

  Args:
    base: folder.
    strict: whether each folder in `base` must hold images.

  Raises:
    UserError: a folder cannot be read, or one in `base` has no images.
  """
  classes, left_out, others = {}, [], {}
  for folder in pictures.subfolders_of(base):
    found, rest = _below(folder, (_number(base),))
    if not found and strict:
      raise UserError(f'{pictures.text(folder)} has no images in it: put some '
                      'there, or remove it')
    if not found:
      left_out.append(f'{pictures.text(folder)} has no images: left out.')
    for place, images in found.items():
      name = place.relative_to(base).as_posix()
      classes[name] = images
    others |= rest
  loose = pictures.images_of(base)[0]
  if loose:
    left_out.append(f'{pictures.text(base)}: {len(loose)} images lie beside '
                    f'the class folders, such as {pictures.text(loose[0].name)}'
                    ': left out.')
  for folder, files in others.items():
    left_out += pictures.left_out(folder, files)
  return classes, left_out


def _number(folder):
  """Returns what a folder is known by, whatever link leads to it."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def _below(folder, above):
  """Returns folder -> images of the classes in a folder, and other files.

  Args:
    folder: path.
    above: the `_number` of the folders that it is in. A link to one of these
      would show its images once more.
  """
  here = _number(folder)
  if here in above:
    return {}, {}
  found, others = {}, {}
  images, rest = pictures.images_of(folder)
  if rest:
    others[folder] = rest
  deeper = [_below(inside, (*above, here))
            for inside in pictures.subfolders_of(folder)]
  for classes, files in deeper:
    others |= files
    if images:
      images += [path for paths in classes.values() for path in paths]
    else:
      found |= classes
  return ({folder: images} if images else found), others


def divided(classes, options):
  """Splits classes by a seed.

  The classes are put in the order of a hash of seed and name, so that another
  class moves few others. With options.group those of one folder stay together.

  Args:
    classes: class -> paths.
    options: Options.

  Returns:
    What was done, for the user, and split -> class -> paths.

  Raises:
    UserError: there are not enough classes.
  """
  unit_of = lambda name: name.split('/')[0] if options.group else name
  units = {}
  for name in classes:
    units.setdefault(unit_of(name), []).append(name)
  if len(units) < len(SPLITS):
    what = 'groups of classes' if options.group else 'classes'
    raise UserError(f'there are {len(units)} {what} ({", ".join(units)[:80]}): '
                    'at least 3 are needed, one for each split')
  order = sorted(units, key=lambda unit: hashlib.sha256(
      f'{options.seed}/{unit}'.encode('utf-8', 'surrogateescape')).digest())
  counts = _counts(len(units), options.shares)
  split_of, at = {}, 0
  for split, count in zip(SPLITS, counts, strict=True):
    for unit in order[at:at + count]:
      split_of |= dict.fromkeys(units[unit], split)
    at += count
  shares = '/'.join(f'{share:g}' for share in options.shares)
  how = f'split by seed {options.seed} as {shares}' + (
      ' in groups' if options.group else '')
  return how, {split: {name: classes[name] for name in sorted(classes)
                       if split_of[name] == split} for split in SPLITS}


def _counts(total, shares):
  """Returns how many of `total` each split gets, at least one."""
  exact = [total * share / sum(shares) for share in shares]
  counts = [max(1, round(x)) for x in exact]
  while sum(counts) != total:
    step = 1 if sum(counts) < total else -1
    where = [i for i in range(len(counts)) if counts[i] + step >= 1]
    i = max(where, key=lambda i: step * (exact[i] - counts[i]))
    counts[i] += step
  return counts


def _checked(root, found, options):
  """Leaves small classes out; refuses a class in two splits."""
  split_of, splits, left_out = {}, {}, list(found.left_out)
  for split, classes in found.splits.items():
    splits[split] = {}
    for name, paths in classes.items():
      if name in split_of:
        raise UserError(
            f'{pictures.text(root)}: the class {name!r} is in '
            f'{split_of[name]} and in {split}: a class has one split; if these '
            'folders split images and not classes, add :merge=yes to the name')
      split_of[name] = split
      if len(paths) < options.least:
        left_out.append(f'class {pictures.text(name)} has {len(paths)} images, '
                        f'fewer than {options.least}: left out.')
      else:
        splits[split][name] = paths
    if not splits[split]:
      raise UserError(f'{pictures.text(root)}: the {split} split has no class '
                      f'with {options.least} images: lower least, or add '
                      'images')
  return Listing(found.how, splits, left_out)


def digest(path, options):
  """Returns a number of the options and of all that counts.

  That is the names and sizes of images, and the contents of lists.

  Raises:
    UserError: a folder that cannot be read, or a list that is missing.
  """
  text = hashlib.sha256(repr(options).encode('utf-8', 'surrogateescape')
                        if options != type(options)() else b'')
  top = pathlib.Path(path)
  if top.is_dir():
    for path in _images_below(top):
      text.update(f'{path.relative_to(top)} {path.stat().st_size}\n'.encode(
          'utf-8', 'surrogateescape'))
    for path in lists.there(_unwrapped(top), options).values():
      if path.is_file():
        text.update(hashlib.sha256(path.read_bytes()).digest())
  return int(text.hexdigest()[:7], 16)


def _images_below(folder, above=()):
  """Yields the images at any depth; links are followed as in `_below`."""
  if (here := _number(folder)) in above:
    return
  yield from pictures.images_of(folder)[0]
  for inside in pictures.subfolders_of(folder):
    yield from _images_below(inside, (*above, here))
