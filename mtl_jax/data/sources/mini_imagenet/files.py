"""Finds the published files of mini-ImageNet in one of four layouts.

See docs/mini_imagenet.md for the layouts.
"""

import functools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS
from mtl_jax.data.sources.mini_imagenet import lists, pickles
from mtl_jax.errors import UserError, first_line

SUFFIXES = ('.jpg', '.jpeg', '.png')
WHAT_TO_PUT = (
    'train.csv, val.csv, test.csv and the images (a folder images '
    'or *.zip), or mini-imagenet-cache-{train,val,test}.pkl, or '
    'miniImageNet_category_split_{train_phase_train,val,test}.pickle, or '
    'folders {train,val,test}/WNID/*.jpg')


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


class _Kind(NamedTuple):
  text: str
  pieces: tuple[tuple[str, ...], ...]  # of each piece the names it may have
  read: Callable  # (folder, path of each piece, wanted) -> open


def find(top, wanted):
  """Finds the first complete layout and checks its lists.

  Looks in the folder `top`, in its folder mini_imagenet, then in its others.

  Raises:
    UserError: nothing complete, or lists that are not those of the data set.
  """
  own = top / 'mini_imagenet'
  folders = [top, own] + sorted(
      folder for folder in top.iterdir()
      if folder.is_dir() and folder != own and _may_be_read(folder))
  partial = []
  for folder in folders:
    for kind in KINDS:
      paths = [_first(folder, names) for names in kind.pieces]
      missing = [names[0] for names, path in zip(
          kind.pieces, paths, strict=True) if path is None]
      if not missing:
        return Layout(f'mini_imagenet: found {kind.text} in {folder}.',
                      kind.read(folder, paths, wanted))
      present = [path.name for path in paths if path]
      # Half of a layout elsewhere belongs to another data set.
      if present and (folder in (top, own) or len(missing) == 1):
        partial.append((len(missing), folder, missing, present))
  if partial:
    _, folder, missing, present = min(partial, key=lambda part: part[0])
    source = f'; {lists.LISTS}' if missing[0].endswith('.csv') else ''
    raise UserError(f'{", ".join(missing)} is missing in {folder} beside '
                    f'{", ".join(present)}: put it there{source}')
  raise UserError(f'{top} holds nothing of mini_imagenet: put {WHAT_TO_PUT} '
                  'into it')


def _may_be_read(folder):
  """Returns False for a folder of the system's, such as lost+found."""
  try:
    os.listdir(folder)
  except PermissionError:
    return False
  return True


def _first(folder, names):
  """Returns the first path of `names` (patterns) in a folder, or None."""
  for name in names:
    if '*' not in name and (folder / name).exists():
      return folder / name
    if '*' in name:
      for path in folder.glob(name):
        return path
  return None


def _sorted(rows, classes):
  """Returns rows by class (in the order of the labels), then by file name."""
  number = {wnid: i for i, wnid in enumerate(classes)}
  return sorted(rows, key=lambda row: (number[row[0]], row[1]))


def _files(rows, places):
  """Returns a Split of (class, name) rows; places: name -> _Place."""

  def where(i):
    wnid, name = rows[i]
    return f'{name} of class {wnid} in {places[wnid, name].archive}'

  def read(i):
    try:
      return places[rows[i]].read()
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error,
            NotImplementedError, pictures.Unreadable) as error:
      raise UserError(f'{where(i)} cannot be read ({first_line(error)}): '
                      'fetch this file again') from error

  return Split([wnid for wnid, _ in rows], [name for _, name in rows],
               read, where)


def _reads(*how):
  """Returns () -> bytes of the picture that how[0](how[1], ..) opens."""
  return functools.partial(pictures.encoded, functools.partial(*how))


class _Place(NamedTuple):
  archive: pathlib.Path
  read: Callable[[], bytes]


def _open_zip(path):
  """Opens an archive of images."""
  with path.open('rb') as file:
    lists.refuse_html(path, file.read(200))
  try:
    return zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
    raise UserError(f'{path} ({path.stat().st_size} bytes) is no whole zip '
                    f'({first_line(error)}): it was cut short or damaged, '
                    'fetch it again') from error


def _image_places(folder):
  """Returns file name -> _Place of all images in a folder and its zips."""
  places = {}
  for loose in (folder / 'images', folder):
    if loose.is_dir():
      for entry in os.scandir(loose):
        if entry.name.lower().endswith(SUFFIXES):
          places.setdefault(entry.name, _Place(
              loose, _reads(open, entry.path, 'rb')))
  for path in sorted(folder.glob('*.zip')):
    opened = _open_zip(path)
    for member in opened.namelist():
      inside = pathlib.PurePosixPath(member)
      if (inside.parent.name in ('', 'images')
          and inside.suffix.lower() in SUFFIXES):
        places.setdefault(inside.name, _Place(
            path, _reads(opened.open, member)))
  return places


def _read_lists(folder, paths, wanted):
  """Layout c: lists, and images loose or in zips."""
  csvs = dict(zip(SPLITS, paths, strict=False))
  rows = {split: lists.read_csv(path) for split, path in csvs.items()}
  lists.check(rows, csvs, wanted)
  places = _image_places(folder)
  for split, of_split in rows.items():
    missing = [row for row in of_split if row[1] not in places]
    if missing:
      wnid, name = missing[0]
      raise UserError(
          f'{name} of class {wnid} is in {csvs[split]} but in no folder or '
          f'zip of {folder} ({len(missing)} of {len(of_split)} images are '
          'missing): fetch the archives again, all of them')
  splits = {split: _files(
      _sorted(of_split, wanted.classes[split]),
      {row: places[row[1]] for row in of_split})
            for split, of_split in rows.items()}
  return splits.__getitem__


def _read_folders(folder, paths, wanted):
  """Layout d: a folder for each class."""
  del folder
  folders = dict(zip(SPLITS, paths, strict=True))
  rows, places = {}, {}
  for split, path in folders.items():
    rows[split] = []
    for of_class in path.iterdir():
      if of_class.is_dir() and not of_class.name.startswith('.'):
        for entry in os.scandir(of_class):
          if entry.name.lower().endswith(SUFFIXES):
            row = (of_class.name, entry.name)
            rows[split].append(row)
            places[row] = _Place(of_class, _reads(open, entry.path, 'rb'))
  # Other folders may give two classes the same file names.
  lists.check({split: [(wnid, '') for wnid, _ in of_split]
               for split, of_split in rows.items()}, folders, wanted)
  return {split: _files(_sorted(of_split, wanted.classes[split]), places)
          for split, of_split in rows.items()}.__getitem__


def _read_pickles(load, folder, paths, wanted):
  """Layouts a and b. A file is large: it is opened when its split is read."""
  del folder

  def open_split(split):
    path = paths[SPLITS.index(split)]
    images, ids = load(path)  # wnid -> rows, in the order of the file
    lists.check({split: [(wnid, '') for wnid, of in ids.items() for _ in of]},
                {split: path}, wanted)
    rows = [(wnid, i) for wnid in wanted.classes[split] for i in ids[wnid]]
    return Split(
        [wnid for wnid, _ in rows], [''] * len(rows),
        lambda i: images[rows[i][1]],
        lambda i: f'image {rows[i][1]} of class {rows[i][0]} in {path}')

  return open_split


def _names(pattern, *splits):
  return tuple(tuple(pattern.format(name) for name in names)
               for names in splits)


KINDS = (
    _Kind('lists and JPEGs (layout c)',
            _names('{}.csv', ('train',), ('val',), ('test',))
            + (('images', '*.zip', '*.jpg'),), _read_lists),
    _Kind('mini-imagenet-cache pickles (layout a)',
            _names('mini-imagenet-cache-{}.pkl', ('train',),
                   ('val', 'validation'), ('test',)),
            functools.partial(_read_pickles, pickles.load_cache)),
    _Kind('category_split pickles (layout b)',
            _names('miniImageNet_category_split_{}.pickle',
                   ('train_phase_train',), ('val',), ('test',)),
            functools.partial(_read_pickles, pickles.load_category_split)),
    _Kind('class folders (layout d)',
            _names('{}', ('train',), ('val', 'validation'), ('test',)),
            _read_folders),
)
