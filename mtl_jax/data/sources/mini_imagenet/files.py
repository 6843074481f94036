"""Finds the published files of mini-ImageNet, in one of five layouts.

See docs/mini_imagenet.md for the layouts.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtl_jax.data import published
from mtl_jax.data.source import SPLITS
from mtl_jax.data.sources.mini_imagenet import lists, pickles
from mtl_jax.errors import UserError, first_line

_OTHERS = ('.csv', '.pkl', '.pickle')
_PACKED = ('.tar', '.tar.gz', '.tgz', '.tar.bz2', '.7z', '.rar')
WHAT_TO_PUT = (
    'train.csv, val.csv, test.csv and the images (a folder images '
    'or *.zip), or mini-imagenet-cache-{train,val,test}.pkl, or '
    'miniImageNet_category_split_{train_phase_train,val,test}.pickle, or '
    'folders {train,val,test}/WNID/*.jpg, or the 100 folders WNID/*.jpg')
# What stands for a split in the names of lists, pickles and folders.
_NAMES = {'train': ('train',), 'validation': ('val', 'validation'),
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


class _Tree(NamedTuple):
  """What lies below the folder of the published files."""

  top: pathlib.Path
  found: published.Found
  folders: dict  # folder -> name -> published.File
  images: list[published.File]


class _Candidate(NamedTuple):
  """A layout in a folder: its pieces, of which some may be missing."""

  folder: pathlib.Path
  text: str
  present: list[str]
  missing: list[str]
  open: Callable[[], Callable[[str], Split]]  # checks it
  likely: bool = True  # False: it may be another data set


def find(top, wanted):
  """Finds the first complete layout and checks its lists.

  It is looked for in the folder `top`, in its folder mini_imagenet, then
  deeper and deeper, and in zips.

  Raises:
    UserError: nothing complete, or lists that are not those of the data set.
  """
  found = published.look(top, lists.IMAGES + _OTHERS)
  tree = _Tree(top, found, found.in_folders(), [
      file for file in found.files if file.name.lower().endswith(lists.IMAGES)])
  candidates = [candidate for kind in KINDS for candidate in kind(tree, wanted)]
  near = (top, top / 'mini_imagenet')
  candidates.sort(key=lambda c: (
      not c.likely, near.index(c.folder) if c.folder in near else len(near),
      len(c.folder.parts), c.folder))
  for candidate in candidates:
    if not candidate.missing:
      return Layout(f'mini_imagenet: found {candidate.text} in '
                    f'{candidate.folder}.', candidate.open())
  raise UserError(_what_is_missing(top, near, candidates, found))


def _what_is_missing(top, near, candidates, found):
  """Returns the line about files of which no layout is complete."""
  # Half of a layout elsewhere belongs to another data set.
  partial = [c for c in candidates
             if c.folder in near or len(c.missing) == 1]
  if partial:
    best = min(partial, key=lambda c: len(c.missing))
    source = f'; {lists.LISTS}' if best.missing[0].endswith('.csv') else ''
    return (f'{", ".join(best.missing)} is missing in {best.folder} beside '
            f'{", ".join(best.present)}: put it there{source}')
  packed = [path for path in sorted(top.iterdir())
            if path.name.lower().endswith(_PACKED)]
  if packed:
    return (f'{top} holds nothing of mini_imagenet that can be read, but '
            f'{packed[0].name}: unpack it there')
  for path, what in found.damaged.items():
    if path.parent in near:
      return f'{path} is {what}: fetch it again'
  return f'{top} holds nothing of mini_imagenet: put {WHAT_TO_PUT} into it'


def _sorted(rows, classes):
  """Returns rows by class (in the order of the labels), then by file name."""
  number = {wnid: i for i, wnid in enumerate(classes)}
  return sorted(rows, key=lambda row: (number[row[0]], row[1]))


def _files(rows, files):
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


def _pieces(tree, text, patterns, read):
  """Yields the Candidates of a layout of one file for each split.

  Args:
    tree: what there is.
    text: what the layout is called.
    patterns: split -> the names that its file may have.
    read: (split -> published.File) -> what _Candidate.open returns.
  """
  for folder, files in tree.folders.items():
    of_split = {split: next((files[name] for name in names if name in files),
                            None) for split, names in patterns.items()}
    present = [file.name for file in of_split.values() if file]
    if present:
      yield _Candidate(
          folder, text, present,
          [patterns[split][0] for split, file in of_split.items() if not file],
          functools.partial(read, of_split))


def _patterns(pattern, **names):
  return {split: tuple(map(pattern.format, of_split))
          for split, of_split in (_NAMES | names).items()}


def _lists(tree, wanted):
  """Layout c: lists, and images anywhere, which are found by their names."""
  read = functools.partial(_read_lists, tree, wanted)
  for candidate in _pieces(tree, 'lists and JPEGs (layout c)',
                           _patterns('{}.csv'), read):
    if not candidate.missing and not _may_have_images(tree, candidate.folder):
      candidate.missing.append('images')
    yield candidate


def _may_have_images(tree, folder):
  """Returns whether images or zips lie beside lists, or listed ones anywhere.

  Other images may belong to another data set.
  """
  if (folder / 'images').is_dir() or any(
      path.parent == folder for path in tree.found.damaged) or any(
          _beside(file, folder) for file in tree.images):
    return True
  try:
    listed = {name for _, name in lists.read_csv(
        tree.folders[folder]['train.csv'])}
  except UserError:
    return True  # the list itself is wrong
  return any(file.name in listed for file in tree.images)


def _beside(file, folder):
  """Returns whether an image lies in a folder, or in a zip in it."""
  return (file.holder.parent if file.zip else file.folder) == folder


def _read_lists(tree, wanted, csvs):
  folder = csvs['train'].folder
  paths = {split: file.path for split, file in csvs.items()}
  rows = {split: lists.read_csv(file) for split, file in csvs.items()}
  lists.check(rows, paths, wanted)
  files = {}
  # Those beside the lists come first; the others are the nearest ones.
  for file in sorted(tree.images, key=lambda file: (
      file.folder != folder / 'images', not _beside(file, folder))):
    files.setdefault(file.name, file)
  for split, of_split in rows.items():
    missing = [row for row in of_split if row[1] not in files]
    if missing:
      raise UserError(_missing_images(tree, paths[split], missing, of_split))
  return {split: _files(
      _sorted(of_split, wanted.classes[split]),
      {row: files[row[1]] for row in of_split})
          for split, of_split in rows.items()}.__getitem__


def _missing_images(tree, path, missing, of_split):
  """Returns the line about images of a list that are nowhere."""
  wnid, name = missing[0]
  for damaged, what in tree.found.damaged.items():
    return (f'{damaged} is {what}, and {name} of class {wnid} is in no other '
            'file: fetch it again')
  for closed in tree.found.closed:
    return (f'{closed} may not be read, and {name} of class {wnid} is in no '
            'other folder: make it readable')
  return (f'{name} of class {wnid} is in {path} but in no folder or zip beside '
          f'or below it ({len(missing)} of {len(of_split)} images are '
          'missing): fetch the archives again, all of them')


def _read_pickles(load, wanted, files):
  """Layouts a and b. A file is large: it is opened when its split is read."""

  def open_split(split):
    file = files[split]
    path = file.path
    images, ids = load(file)  # wnid -> rows, in the order of the file
    lists.check({split: [(wnid, '') for wnid, of in ids.items() for _ in of]},
                {split: path}, wanted)
    rows = [(wnid, i) for wnid in wanted.classes[split] for i in ids[wnid]]
    return Split(
        [wnid for wnid, _ in rows], [''] * len(rows),
        lambda i: images[rows[i][1]],
        lambda i: f'image {rows[i][1]} of class {rows[i][0]} in {path}')

  return open_split


def _caches(tree, wanted):
  return _pieces(
      tree, 'mini-imagenet-cache pickles (layout a)',
      _patterns('mini-imagenet-cache-{}.pkl'),
      functools.partial(_read_pickles, pickles.load_cache, wanted))


def _category_splits(tree, wanted):
  return _pieces(
      tree, 'category_split pickles (layout b)',
      _patterns('miniImageNet_category_split_{}.pickle',
                train=('train_phase_train',), validation=('val',)),
      functools.partial(_read_pickles, pickles.load_category_split, wanted))


def _class_folders(tree, wanted):
  """Layouts d, in folders of the splits, and e, in one folder.

  The images of a class may lie in folders of its folder.
  """
  split_of = {name: split for split, names in _NAMES.items() for name in names}
  divided, whole = {}, {}  # folder -> split's folder -> rows; folder -> rows
  for folder, files in tree.folders.items():
    of_class = _class_folder(tree.top, folder)
    if of_class is None:
      continue
    above = of_class.parent
    rows = (divided.setdefault(above.parent, {}).setdefault(above, {})
            if above.name in split_of and above != tree.top
            else whole.setdefault(above, {}))
    for file in files.values():
      if file.name.lower().endswith(lists.IMAGES):
        rows.setdefault((of_class.name, file.name), file)
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


def _class_folder(top, folder):
  """Returns the outermost folder below `top` with the name of a class."""
  inside = folder.relative_to(top).parts
  for i, part in enumerate(inside):
    if lists.WNID.fullmatch(part):
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
  return _Candidate(
      folder, text, sorted(path.name for path in named.values()),
      [_NAMES[split][0] for split in SPLITS if split not in named],
      functools.partial(_read_folders, tree, wanted, named, of_split), likely)


def _read_folders(tree, wanted, named, of_split):
  for closed in tree.found.closed:
    if set(closed.parents) & set(named.values()):
      raise UserError(f'{closed} may not be read: make it readable')
  # Other folders may give two classes the same file names.
  lists.check({split: [(wnid, '') for wnid, _ in rows]
               for split, rows in of_split.items()}, named, wanted)
  return {split: _files(_sorted(rows, wanted.classes[split]), rows)
          for split, rows in of_split.items()}.__getitem__


KINDS = (_lists, _caches, _category_splits, _class_folders)
