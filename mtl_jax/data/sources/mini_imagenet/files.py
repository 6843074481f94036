"""Finds the published files of mini-ImageNet, in one of six layouts.

See docs/mini_imagenet.md for the layouts.
"""

import functools
import re

from mtl_jax.data.source import PublishedFile, what_to_put
from mtl_jax.data.sources.imagenet import files, ilsvrc
from mtl_jax.data.sources.imagenet import wanted as wanted_files
from mtl_jax.data.sources.mini_imagenet import lists, pickles
from mtl_jax.errors import UserError

_OTHERS = ('.csv', '.pkl', '.pickle')
_RANKED = re.compile(r'(n\d{8})(\d{8})\.jpe?g', re.IGNORECASE)
# Those of Ravi & Larochelle (2017).
_LISTS = tuple(PublishedFile(f'{name}.csv', size, f'sha256 {checksum}')
               for name, size, checksum in (
    ('train', 1_228_815, '498519cd8e49ce97ed26a4a3638966698'
     'ae41ab35e9c68538319fc9b46ba7d2f'),
    ('val', 307_215, '5658a59921ca027ee76af92949869c5d6f'
     '41d77592ff3b18db325a9d10c893b9'),
    ('test', 384_015, '2b7cfa78342995761a572a8158e539bc4e'
     '0a80f9bbd7d00c1e17a460fbbb93fa')))
LAYOUTS = {
    'lists and JPEGs (layout c)': (*_LISTS, PublishedFile(
        'images/*.jpg', note='or beside the lists, or in zips')),
    'pickles of Ren et al. (layout a)': (PublishedFile(
        'mini-imagenet-cache-{train,val,test}.pkl'),),
    'pickles of Gidaris & Komodakis (layout b)': (PublishedFile(
        'miniImageNet_category_split_{train_phase_train,val,test}.pickle'),),
    'class folders of splits (layout d)': (PublishedFile(
        '{train,val,test}/WNID/*.jpg'),),
    'the 100 class folders (layout e)': (PublishedFile(
        'WNID/*.jpg', note='of one folder'),),
    'lists and originals (layout f)': (*_LISTS, ilsvrc.TAR),
}
WHAT_TO_PUT = what_to_put(LAYOUTS)


def find(top, wanted):
  """Finds the first complete layout: see files.find of imagenet."""
  return files.find(top, wanted, KINDS, _OTHERS)


def _lists(tree, wanted):
  """Layout c: lists, and images anywhere, which are found by their names."""
  read = functools.partial(_read_lists, tree, wanted)
  for candidate in files.pieces(tree, 'lists and JPEGs (layout c)',
                                files.patterns('{}.csv'), read):
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
  wanted_files.check(rows, paths, wanted)
  by_name = {}
  # Those beside the lists come first; the others are the nearest ones.
  for file in sorted(tree.images, key=lambda file: (
      file.folder != folder / 'images', not _beside(file, folder))):
    by_name.setdefault(file.name, file)
  for split, of_split in rows.items():
    missing = [row for row in of_split if row[1] not in by_name]
    if missing:
      raise UserError(_missing_images(tree, paths[split], missing, of_split))
  return {split: files.of_files(
      files.sorted_rows(of_split, wanted.classes[split]),
      {row: by_name[row[1]] for row in of_split})
          for split, of_split in rows.items()}.__getitem__


def _originals(tree, wanted):
  """Layout f: lists, and the training images of ILSVRC-2012.

  The name of a list, n0153282900000005.jpg, is that of the fifth image of a
  class in the order of the numbers that ILSVRC gives.
  """
  of_class = {}
  for file in tree.images:
    name = ilsvrc.NAME.fullmatch(file.name)
    if name:
      of_class.setdefault(name[1], {}).setdefault(int(name[2]), file)
  if any(len(of_class.get(wnid, ())) > size
         for wnid, size in wanted.sizes.items()):
    for candidate in files.pieces(
        tree, 'lists and originals of ILSVRC-2012 (layout f)',
        files.patterns('{}.csv'),
        functools.partial(_read_originals, of_class, wanted)):
      if not _may_have_images(tree, candidate.folder):
        yield candidate


def _read_originals(of_class, wanted, csvs):
  paths = {split: file.path for split, file in csvs.items()}
  rows = {split: lists.read_csv(file) for split, file in csvs.items()}
  wanted_files.check(rows, paths, wanted)
  ranked = {wnid: [file for _, file in sorted(numbered.items())]
            for wnid, numbered in of_class.items()}
  opened = {}
  for split, of_split in rows.items():
    for wnid, size in ilsvrc.sizes(wanted.classes[split]).items():
      have = ranked.get(wnid, [])
      if len(have) != size:
        where = have[0].holder if have else paths[split].parent
        raise UserError(
            f'{where}: class {wnid} has {len(have)} images, not {size} as in '
            'ILSVRC-2012. The lists count the images of a class, so it must be '
            'whole: fetch it again')
    opened[split] = files.of_files(
        files.sorted_rows(of_split, wanted.classes[split]),
        {(wnid, name): ranked[wnid][_rank(paths[split], wnid, name) - 1]
         for wnid, name in of_split})
  return opened.__getitem__


def _rank(path, wnid, name):
  """Returns which image of its class a name of a list means, from 1 on."""
  rank = _RANKED.fullmatch(name)
  if not rank or not 1 <= int(rank[2]) <= ilsvrc.sizes([wnid])[wnid]:
    raise UserError(f'{path}: image {name} of class {wnid} is not numbered as '
                    f'{wnid}00000005.jpg is: {lists.LISTS}')
  return int(rank[2])


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


def _read_pickles(load, wanted, of_split):
  """Layouts a and b. A file is large: it is opened when its split is read."""

  def open_split(split):
    file = of_split[split]
    path = file.path
    images, ids = load(file)  # wnid -> rows, in the order of the file
    wanted_files.check(
        {split: [(wnid, '') for wnid, of in ids.items() for _ in of]},
        {split: path}, wanted)
    rows = [(wnid, i) for wnid in wanted.classes[split] for i in ids[wnid]]
    return files.Split(
        [wnid for wnid, _ in rows], [''] * len(rows),
        lambda i: images[rows[i][1]],
        lambda i: f'image {rows[i][1]} of class {rows[i][0]} in {path}')

  return open_split


def _caches(tree, wanted):
  return files.pieces(
      tree, 'mini-imagenet-cache pickles (layout a)',
      files.patterns('mini-imagenet-cache-{}.pkl'),
      functools.partial(_read_pickles, pickles.load_cache, wanted))


def _category_splits(tree, wanted):
  return files.pieces(
      tree, 'category_split pickles (layout b)',
      files.patterns('miniImageNet_category_split_{}.pickle',
                train=('train_phase_train',), validation=('val',)),
      functools.partial(_read_pickles, pickles.load_category_split, wanted))


KINDS = (_originals, _lists, _caches, _category_splits, files.class_folders)
