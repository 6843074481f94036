"""Reads lists of images or classes in a user's folder.

    train.csv val.csv test.csv        columns of names and of classes
    all.csv (list=all.csv)            the same; with a column split, or without
    train.json val.json test.json     class_names, class_roots (EasyFSL)
    base.json val.json novel.json     label_names, image_names, image_labels
                                      (CUB as Chen et al. 2019 list it)
    train.txt val.txt test.txt        a class in each line

Only images below the folder are taken, whatever a list names.
"""

import csv
import io
import json
import pathlib
from typing import NamedTuple

from mtl_jax import files
from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS
from mtl_jax.errors import UserError, first_line

_NAMES = {'train': ('train', 'base'), 'validation': ('val', 'validation'),
          'test': ('test', 'novel')}
_LABELS = ('label', 'class', 'class_name', 'classname', 'category', 'species',
           'target', 'wnid', 'id')
_SPLIT = ('split', 'set', 'phase', 'subset')
# What a split may be called.
SPLIT_OF = {name: split for split, names in {
    'train': ('train', 'training', 'base'),
    'validation': ('validation', 'val', 'valid'),
    'test': ('test', 'testing', 'novel')}.items() for name in names}
_FOLDERS = ('splits', 'split', 'lists')  # where lists may lie
_ROWS = 50  # that are looked at to find the columns


class Lists(NamedTuple):
  """What lists say."""

  text: str  # for the user
  splits: dict[str, dict[str, list]] | None  # split -> class -> paths
  classes: dict[str, list] | None = None  # class -> paths, without splits


class _Images(NamedTuple):
  """All images below a folder."""

  root: pathlib.Path
  by_name: dict[str, list[pathlib.Path]]
  folders: frozenset[str]  # names of the folders that they are in
  taken: dict[pathlib.Path, str]  # path -> the longest name in a list
  moved: list[str]  # names whose images lie in folders of other names
  kept: list[str]  # names whose images lie in folders of these names


def find(root, options):
  """Returns the Lists in a folder, None where there is none.

  Args:
    root: path of the folder.
    options: Options.

  Raises:
    UserError: a list is damaged, or names an image or class that is not there.
  """
  if options.list:
    path = root / options.list
    if not path.is_file():
      raise UserError(f'list={options.list}: {pictures.text(path)} is not '
                      'there: name a file in the folder')
    rows = _csv(path, _indexed(root), options)
    splits = _by_column(path, rows)
    return Lists(f'list {path.name}', splits,
                 _gather(rows) if splits is None else None)
  paths = there(root, options)
  if not paths:
    return None
  read = _READERS[paths['train'].suffix]
  images = _indexed(root)
  names = ', '.join(path.name for path in paths.values())
  return Lists(f'lists {names}', {
      split: _gather(read(path, images, options))
      for split, path in paths.items()})


def there(root, options):
  """Returns split -> path of the lists in a folder; '' -> that of all splits.

  It is {} where there are none.

  Raises:
    UserError: two of three lists are there.
  """
  if options.list:
    return {'': root / options.list}
  return next(filter(None, (_three(root, suffix) for suffix in _READERS)), {})


def _three(root, suffix):
  """Returns split -> list of one kind, in the folder or in one in it; or {}."""
  for folder in (root, *(root / name for name in _FOLDERS
                         if (root / name).is_dir())):
    there = {path.name: path for path in pictures.images_of(folder)[1]}
    paths = {split: there[f'{name}{suffix}'] for split in SPLITS
             for name in reversed(_NAMES[split]) if f'{name}{suffix}' in there}
    if len(paths) == 3:
      return {split: paths[split] for split in SPLITS}
    if len(paths) == 2:
      missing = next(s for s in SPLITS if s not in paths)
      raise UserError(
          f'{pictures.text(folder)} has '
          f'{" and ".join(p.name for p in paths.values())} and no '
          f'{_NAMES[missing][0]}{suffix}: put it there, or move these')
  return {}


def _indexed(root):
  """Returns the _Images of a folder."""
  by_name, folders = {}, set()
  for path in map(pathlib.Path, pictures.below(root)):
    by_name.setdefault(path.name, []).append(path)
    folders.update(path.relative_to(root).parts[:-1])
  return _Images(root, by_name, frozenset(folders), {}, [], [])


def _image(images, name):
  """Returns the path of an image that a list names, or None.

  Its end must be the name; the longest common end wins. The folder of the name
  may be another one, as where all images were put into one folder, but not if
  there is a folder of that name.
  """
  parts = _parts(name)
  candidates = images.by_name.get(parts[-1], ()) if parts else ()
  if not candidates:
    return None
  common = lambda path: _common_end(path.parts, parts)
  best = max(map(common, candidates))
  found = [path for path in candidates if common(path) == best]
  if best == 1 and len(parts) > 1 and parts[-2] in images.folders:
    found = [path for path in found
             if parts[-2] in path.relative_to(images.root).parts]
  if not found:
    return None
  if len(found) > 1:
    raise UserError(f'{name} of a list is {pictures.text(found[0])} or '
                    f'{pictures.text(found[1])}: write its folder, too')
  return found[0]


def _parts(name):
  """Returns the parts of a name in a list."""
  return pathlib.PurePosixPath(name.replace('\\', '/')).parts


def _common_end(a, b):
  """Returns how many parts at the end of two paths are the same."""
  return next((i for i, (x, y) in enumerate(zip(
      reversed(a), reversed(b), strict=False)) if x != y), min(len(a), len(b)))


def _take(images, name, where):
  """Returns the path of an image that a row names.

  Raises:
    UserError: there is none, or it has been taken for another name, or it is in
      a folder of another name and others are not.
  """
  image, parts = _image(images, name), _parts(name)
  if image is None:
    raise UserError(f'{where}: there is no image {name!r} below '
                    f'{pictures.text(images.root)}: put it there, or remove '
                    'it from the list')
  other = images.taken.setdefault(image, name)
  if _common_end(_parts(other), parts) < min(len(_parts(other)), len(parts)):
    raise UserError(f'{where}: {name!r} and {other!r} would both be '
                    f'{pictures.text(image)}: put the image that is missing '
                    f'below {pictures.text(images.root)}, or remove it from '
                    'the list')
  images.taken[image] = max(name, other, key=lambda text: len(_parts(text)))
  if len(parts) > 1 and image.parent != images.root:
    kept = parts[-2] in image.relative_to(images.root).parts
    (images.kept if kept else images.moved).append(name)
    if images.kept and images.moved:
      raise UserError(
          f'{where}: {images.moved[0]!r} would be an image in a folder of '
          f'another name, but {images.kept[0]!r} is in its own: put the image '
          f'where the list says, or remove it from the list')
  return image


def _gather(rows):
  """Returns class -> paths of (class, path, ..) rows."""
  classes = {}
  for name, path, *_ in rows:
    classes.setdefault(name, []).append(path)
  return {name: classes[name] for name in sorted(classes)}


def _by_column(path, rows):
  """Returns split -> class -> paths, None where no row has a split."""
  if not rows or rows[0][2] is None:
    return None
  splits = {split: _gather([row for row in rows if row[2] == split])
            for split in SPLITS}
  for split, classes in splits.items():
    if not classes:
      raise UserError(f'{pictures.text(path)} has no image of the {split} '
                      'split: add some, or give each split a list')
  return splits


def _text(path):
  """Returns the text of a list."""
  try:
    content = path.read_bytes()
    if files.is_html(content[:200]):
      raise UserError(f'{pictures.text(path)} is an HTML page: a download page '
                      'was saved in place of the file; fetch the file itself')
    return content.decode('utf-8-sig')
  except (OSError, ValueError) as error:
    raise UserError(f'{pictures.text(path)} cannot be read '
                    f'({first_line(error)}): replace it') from error


def _csv(path, images, options):
  """Returns (class, path, split or None) rows of a table with a header."""
  text = _text(path)
  try:
    delimiter = max(',;\t', key=text.partition('\n')[0].count)
    header, *rows = [row for row in csv.reader(
        io.StringIO(text), delimiter=delimiter) if row]
  except (ValueError, csv.Error) as error:
    raise UserError(f'{pictures.text(path)} is no table with a header: write '
                    'a line of column names and a line for each image'
                    ) from error
  of_image, of_label, of_split = _columns(path, header, rows, images, options)
  result = []
  for number, row in enumerate(rows, 2):
    if len(row) != len(header):
      raise UserError(f'{pictures.text(path)}, line {number} has {len(row)} '
                      f'columns, not {len(header)}: complete the line')
    image = _take(images, row[of_image].strip(),
                  f'{pictures.text(path)}, line {number}')
    split = None if of_split is None else SPLIT_OF.get(
        row[of_split].strip().lower())
    if of_split is not None and split is None:
      raise UserError(f'{pictures.text(path)}, line {number}: the split is '
                      f'{row[of_split]!r}: must be train, val or test')
    if not row[of_label].strip():
      raise UserError(f'{pictures.text(path)}, line {number} has no class: '
                      'complete the line')
    result.append((row[of_label].strip(), image, split))
  return result


def _columns(path, header, rows, images, options):
  """Returns the numbers of the columns of names, classes and splits."""
  names = [name.strip() for name in header]
  low = [name.lower() for name in names]
  def of(name):
    if name not in names:
      raise UserError(f'{pictures.text(path)} has no column {name!r}: it has '
                      + ', '.join(names))
    return names.index(name)

  of_split = next((low.index(n) for n in _SPLIT if n in low), None)
  if options.image:
    image = of(options.image)
  else:
    hits = [sum(_image(images, row[i].strip()) is not None
                for row in rows[:_ROWS]
                if len(row) == len(header)) for i in range(len(header))]
    image = max(range(len(header)), key=hits.__getitem__)
    if not hits[image]:
      raise UserError(f'{pictures.text(path)}: no column ({", ".join(names)}) '
                      f'names images below {pictures.text(images.root)}: put '
                      'the images there, or name the column by :image=NAME')
  if options.label:
    return image, of(options.label), of_split
  rest = [i for i in range(len(header)) if i not in (image, of_split)]
  label = next((low.index(n) for n in _LABELS
                if n in low and low.index(n) in rest), None)
  if label is None and len(rest) != 1:
    raise UserError(f'{pictures.text(path)}: which column has the classes? '
                    f'Name one of {", ".join(names[i] for i in rest)} by '
                    ':label=NAME after the folder')
  return image, rest[0] if label is None else label, of_split


def _json(path, images, options):
  """Returns (class, path) rows of a list of EasyFSL's or CUB's kind."""
  del options
  try:
    content = json.loads(_text(path))
    if 'class_roots' in content:
      rows = [(str(name), image) for name, folder in zip(
          content['class_names'], content['class_roots'], strict=True)
              for image in _of_folder(path, images, str(folder))]
    else:
      names = content['label_names']
      rows = [(str(names[label]), str(image)) for image, label in zip(
          content['image_names'], content['image_labels'], strict=True)]
  except UserError:
    raise
  except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
    raise UserError(
        f'{pictures.text(path)} has neither class_names and class_roots nor '
        f'label_names, image_names and image_labels ({first_line(error)}): '
        'write one of these forms, or a CSV') from error
  return [(name, image if isinstance(image, pathlib.Path) else
           _take(images, image, pictures.text(path))) for name, image in rows]


def _txt(path, images, options):
  """Returns (class, path) rows of a list of classes."""
  del options
  names = [line.strip() for line in _text(path).splitlines() if line.strip()]
  return [(name, image) for name in names
          for image in _of_folder(path, images, name)]


def _of_folder(path, images, folder):
  """Returns the images in the folder that a list names by its last parts."""
  parts = pathlib.PurePosixPath(folder.replace('\\', '/')).parts
  places = [place for place in images.root.rglob(parts[-1] if parts else '')
            if parts and place.is_dir()] if _plain(parts) else []
  for count in range(min(len(parts), 8), 0, -1):
    found = [place for place in places
             if place.parts[-count:] == parts[-count:]]
    if len(found) == 1:
      return [pathlib.Path(p) for p in pictures.below(found[0])]
  raise UserError(f'{pictures.text(path)}: there is '
                  f'{"no" if not places else "more than one"} folder '
                  f'{folder!r} below {pictures.text(images.root)}: '
                  + ('rename one, or write its folder, too' if places else
                     'put it there, or remove it from the list'))


def _plain(parts):
  """Returns whether the last part is a name, not a pattern or a way up."""
  return bool(parts) and parts[-1] not in ('..', '/') and not set(
      parts[-1]) & set('*?[]')


# Suffix -> (path, _Images, Options) -> (class, path, ..) rows.
_READERS = {'.csv': _csv, '.json': _json, '.txt': _txt}
