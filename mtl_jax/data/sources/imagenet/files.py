"""Finds published files of images of ImageNet, in one of several layouts.

A layout is a function (Tree, Wanted) -> Candidates. Class folders, which are
common to all data sets, are here.
"""

import functools
import itertools
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtl_jax.data import published
from mtl_jax.data.source import SPLITS
from mtl_jax.data.sources.imagenet import wanted as wanted_files
from mtl_jax.data.sources.imagenet.wanted import IMAGES, WNID
from mtl_jax.errors import UserError, first_line

_PACKED = ('.tar.gz', '.tgz', '.tar.bz2', '.7z', '.rar')
_TAR_OF_CLASS = re.compile(r'(n\d{8})\.tar')
# What stands for a split in the names of lists, pickles and folders.
NAMES = {'train': ('train',), 'validation': ('val', 'validation'),
         'test': ('test',)}


class Split(NamedTuple):
  """Images of a split in their final order; `read` may be called by threads."""

  classes: list[str]  # [I], wnids
  names: list[str]  # [I], file names; '' where the layout has none
  read: Callable[[int], bytes | np.ndarray]  # encoded, or uint8 [h, w, 3]
  where: Callable[[int], str]  # says for a message where image i is


class Layout(NamedTuple):
  """A complete layout."""

  text: str  # for the user
  open: Callable[[str], Split]  # by split; an opened pickle takes memory


class Tree(NamedTuple):
  """What lies below the folder of the published files."""

  top: pathlib.Path
  found: published.Found
  folders: dict  # folder -> name -> published.File
  images: list[published.File]


class Candidate(NamedTuple):
  """A layout in a folder: its pieces, of which some may be missing."""

  folder: pathlib.Path
  text: str
  present: list[str]
  missing: list[str]
  open: Callable[[], Callable[[str], Split]]  # checks it
  likely: bool = True  # False: it may be another data set


def find(top, wanted, kinds, suffixes=()):
  """Finds the first complete layout and checks its classes.

  It is looked for in the folder `top`, in its folder of the data set's name,
  then deeper and deeper, and in zips and tars.

  Args:
    top: pathlib.Path of the folder.
    wanted: Wanted.
    kinds: the layouts, in the order in which they are taken.
    suffixes: of files that are no images.

  Returns:
    Layout.

  Raises:
    UserError: nothing complete, or classes that are not those of the data set.
  """
  classes = set(itertools.chain(*wanted.classes.values()))

  def tars(name):
    of_class = _TAR_OF_CLASS.fullmatch(name)
    return not of_class or of_class[1] in classes  # others are not even opened

  found = published.look(top, IMAGES + suffixes, tars)
  tree = Tree(top, found, found.in_folders(), [
      file for file in found.files if file.name.lower().endswith(IMAGES)])
  candidates = [candidate for kind in kinds for candidate in kind(tree, wanted)]
  near = (top, top / wanted.name)
  candidates.sort(key=lambda c: (
      not c.likely, near.index(c.folder) if c.folder in near else len(near),
      len(c.folder.parts), c.folder))
  for candidate in candidates:
    if not candidate.missing:
      return Layout(f'{wanted.name}: found {candidate.text} in '
                    f'{candidate.folder}.', candidate.open())
  raise UserError(_what_is_missing(top, near, candidates, found, wanted))


def _what_is_missing(top, near, candidates, found, wanted):
  """Returns the line about files of which no layout is complete."""
  # Half of a layout elsewhere belongs to another data set.
  partial = [c for c in candidates
             if c.folder in near or len(c.missing) == 1]
  if partial:
    best = min(partial, key=lambda c: len(c.missing))
    for path, what in found.damaged.items():
      if path.parent == best.folder and path.stem in best.missing:
        return f'{path} is {what}: fetch it again'
    source = f'; {wanted.lists}' if best.missing[0].endswith('.csv') else ''
    return (f'{", ".join(best.missing)} is missing in {best.folder} beside '
            f'{", ".join(best.present)}: put it there{source}')
  packed = [path for path in sorted(top.iterdir())
            if path.name.lower().endswith(_PACKED)]
  if packed:
    return (f'{top} holds nothing of {wanted.name} that can be read, but '
            f'{packed[0].name}: unpack it there')
  for path, what in found.damaged.items():
    if path.parent in near or path.suffix == '.tar':
      return f'{path} is {what}: fetch it again'
  return f'{top} holds nothing of {wanted.name}: put {wanted.put} into it'


def sorted_rows(rows, classes):
  """Returns rows by class (in the order of the labels), then by file name."""
  number = {wnid: i for i, wnid in enumerate(classes)}
  return sorted(rows, key=lambda row: (number[row[0]], row[1]))


def of_files(rows, files):
  """Returns a Split of (class, name) rows; files: row -> published.File."""

  def where(i):
    wnid, name = rows[i]
    return f'{name} of class {wnid} in {files[rows[i]].holder}'

  def read(i):
    try:
      return files[rows[i]].image()
    except published.ERRORS as error:
      raise UserError(f'{where(i)} cannot be read ({first_line(error)}): '
                      'fetch this file again') from error

  return Split([wnid for wnid, _ in rows], [name for _, name in rows],
               read, where)


def pieces(tree, text, patterns, read):
  """Yields the Candidates of a layout of one file for each split.

  Args:
    tree: what there is.
    text: what the layout is called.
    patterns: split -> the names that its file may have.
    read: (split -> published.File) -> what Candidate.open returns.
  """
  for folder, files in tree.folders.items():
    of_split = {split: next((files[name] for name in names if name in files),
                            None) for split, names in patterns.items()}
    present = [file.name for file in of_split.values() if file]
    if present:
      yield Candidate(
          folder, text, present,
          [patterns[split][0] for split, file in of_split.items() if not file],
          functools.partial(read, of_split))


def patterns(pattern, **names):
  """Returns split -> names of its file, such as 'train.csv' of '{}.csv'."""
  return {split: tuple(map(pattern.format, of_split))
          for split, of_split in (NAMES | names).items()}


def class_folders(tree, wanted):
  """Layouts d, in folders of the splits, and e, in one folder.

  The images of a class may lie in folders of its folder. If no archive and no
  folder holds all classes, archives count as unpacked where they lie.
  """
  apart = list(_class_folders(tree, wanted, lambda folder, file: folder))
  yield from apart
  if all(candidate.missing or not candidate.likely for candidate in apart):
    yield from (candidate for candidate in _class_folders(
        tree, wanted, _unpacked) if candidate.likely)


def _unpacked(folder, file):
  """Returns where the folder of a file were if its archive was unpacked."""
  if file.holder == file.folder or WNID.fullmatch(file.holder.stem):
    return folder
  return file.holder.parent / folder.relative_to(file.holder)


def _class_folders(tree, wanted, place):
  """Yields the Candidates; place: (folder, a file in it) -> where it counts."""
  split_of = {name: split for split, names in NAMES.items() for name in names}
  divided, whole = {}, {}  # folder -> split's folder -> rows; folder -> rows
  for folder, files in tree.folders.items():
    of_class = _class_folder(
        tree.top, place(folder, next(iter(files.values()))))
    if of_class is None:
      continue
    above, wnid = of_class.parent, of_class.name[:len('n01234567')]
    rows = (divided.setdefault(above.parent, {}).setdefault(above, {})
            if above.name in split_of and above != tree.top
            else whole.setdefault(above, {}))
    for file in files.values():
      if file.name.lower().endswith(IMAGES):
        rows.setdefault((wnid, file.name), file)
  for folder, of_folder in list(divided.items()):
    for above, rows in of_folder.items():
      if _is_whole(rows, wanted):  # ILSVRC's train has the classes of all
        whole[above] = rows
        divided.pop(folder, None)
  for folder, of_folder in divided.items():
    named = {split_of[above.name]: above for above in of_folder}
    yield _folders(
        tree, wanted, 'class folders (layout d)', folder, named,
        {split: of_folder[above] for split, above in named.items()})
  for folder, rows in whole.items():
    of_split = {split: {row: file for row, file in rows.items()
                        if row[0] in wanted.classes[split]} for split in SPLITS}
    if any(of_split.values()):
      yield _folders(
          tree, wanted, 'undivided class folders (layout e)', folder,
          dict.fromkeys(SPLITS, folder), of_split)


def _is_whole(rows, wanted):
  """Returns whether (class, name) rows have most classes of every split."""
  held = {wnid for wnid, _ in rows}
  return all(len(held & set(of_split)) > len(of_split) / 2
             for of_split in wanted.classes.values())


def _class_folder(top, folder):
  """Returns the outermost folder, or tar, below `top` named after a class."""
  inside = folder.relative_to(top).parts
  for i, part in enumerate(inside):
    if WNID.fullmatch(part.removesuffix('.tar')):
      return top.joinpath(*inside[:i + 1])
  return None


def _folders(tree, wanted, text, folder, named, of_split):
  """Returns the Candidate of class folders.

  Args:
    tree, wanted, text, folder: as of the others.
    named: split -> the folder with its class folders.
    of_split: split -> (class, name) -> published.File.
  """
  held = {wnid for rows in of_split.values() for wnid, _ in rows}
  likely = held.issuperset(itertools.chain(*wanted.classes.values()))
  return Candidate(
      folder, text, sorted(path.name for path in named.values()),
      [NAMES[split][0] for split in SPLITS if split not in named],
      functools.partial(_read_folders, tree, wanted, named, of_split), likely)


def _read_folders(tree, wanted, named, of_split):
  for closed in tree.found.closed:
    if set(closed.parents) & set(named.values()):
      raise UserError(f'{closed} may not be read: make it readable')
  # Other folders may give two classes the same file names.
  wanted_files.check(
      {split: [(wnid, '') for wnid, _ in rows]
       for split, rows in of_split.items()}, named, wanted)
  return {split: of_files(sorted_rows(rows, wanted.classes[split]), rows)
          for split, rows in of_split.items()}.__getitem__
