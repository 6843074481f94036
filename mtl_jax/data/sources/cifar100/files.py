"""Finds and reads CIFAR-100's images in one of the layouts in use.

See docs/cifar100.md for the layouts.
"""

import functools
import io
import tarfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import pickled, pictures, published
from mtl_jax.data.source import PublishedFile, what_to_put
from mtl_jax.errors import UserError, first_line

SIZE = 32
_IMAGES = ('.png', '.jpg', '.jpeg')
_TARS = ('.tar.gz', '.tgz', '.tar')
_HDF5 = ('.hdf5', '.h5')
_SUFFIXES = ('train', 'test', '.bin', '.pickle', '.pkl', '.npz', *_IMAGES,
             *_TARS, *_HDF5)
_SPLITS = {'train': 'train', 'val': 'validation', 'validation': 'validation',
           'test': 'test'}
_LARGEST = 2**29  # bytes of a file in a tar; the published ones have 155 MB
_ROW = 2 + 3 * SIZE**2  # bytes of an image of the binary version
_PREFIX = {'cifar_fs': 'CIFAR_FS', 'fc100': 'FC100'}
_TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, OSError)


class Table(NamedTuple):
  """The classes of CIFAR-100 by number."""

  fine: tuple[str, ...]  # [100]
  coarse: tuple[str, ...]  # [20], superclasses
  coarse_of: tuple[int, ...]  # [100]


class Wanted(NamedTuple):
  """What the files must hold."""

  name: str  # of the data set
  table: Table
  classes: dict[str, tuple[str, ...]]  # split -> its classes
  images: int  # of each class


class Class(NamedTuple):
  """The images of a class, in the order of the files."""

  images: np.ndarray  # uint8 [I, 32, 32, 3]
  names: list[str]  # [I], of the image files; '' where the layout has none


class Found(NamedTuple):
  """A complete layout."""

  text: str  # for the user
  where: Any  # path
  classes: dict[str, Class]


class _Part(NamedTuple):
  """Images of one file, or of one class folder."""

  where: Any  # path
  images: np.ndarray  # uint8 [I, 32, 32, 3]
  classes: list[str]  # [I]
  names: list[str]  # [I]
  split: str | None = None  # that the file claims; None: any


class _Bytes(NamedTuple):
  """A file of a tar; see published.File."""

  path: Any
  content: bytes

  def read(self):
    return self.content


def layouts(name):
  """Returns the layouts of a data set: see DataSource."""
  home = 'https://www.cs.toronto.edu/~kriz/'
  return {
      # As in TFDS's list of checksums.
      'the published archive, binary version': (PublishedFile(
          'cifar-100-binary.tar.gz', 168_513_733,
          'sha256 58a81ae192c23a4be8b1804d68e518ed'
          '807d710a4eb253b1f2a199162a40d8ec', f'{home}cifar-100-binary.tar.gz'),
      ),
      # As in the data sets of torchvision and torchmeta.
      'the published archive, Python version': (PublishedFile(
          'cifar-100-python.tar.gz', 169_001_437,
          'md5 eb9058c3a382ffc7106e4002c42a8d85',
          f'{home}cifar-100-python.tar.gz'),),
      'the binary version, unpacked': tuple(
          PublishedFile(f'{part}.bin', _ROW * count)
          for part, count in (('train', 50_000), ('test', 10_000))),
      'the Python version, unpacked': (PublishedFile('{train,test}'),),
      'pickles of MetaOptNet': (PublishedFile(
          f'{_PREFIX[name]}_{{train,val,test}}.pickle'),),
      'pickles of RFS': (PublishedFile('{train,val,test}.pickle'),),
      'npz files of TADAM': (PublishedFile('few-shot-{train,val,test}.npz'),),
      'an HDF5 file of torchmeta': (PublishedFile('data.hdf5'),),
      'class folders': (PublishedFile(
          'apple/*.png', note='a folder for each of the 100 classes, in a zip '
          'or not, or in folders train, val, test'),)}


def read(top, wanted):
  """Reads the first layout that a folder has, at any depth and in zips.

  Args:
    top: pathlib.Path.
    wanted: Wanted.

  Returns:
    Found, with the wanted classes.

  Raises:
    UserError: there is no layout, or it does not hold the images.
  """
  found = published.look(top, _SUFFIXES)
  folders = found.in_folders()
  whats = (layout(folder, files, wanted) for layout in _LAYOUTS
           for folder, files in folders.items())
  what = next(filter(None, whats), None) or _folders(found, wanted)
  if what:
    text, where, parts = what
    return Found(f'{wanted.name}: found {text} in {where}.', where,
                 _collect(parts, where, wanted))
  for path, kind in found.damaged.items():
    raise UserError(f'{path} is {kind}: fetch it again')
  for path in found.closed:
    raise UserError(f'{path} may not be read: make it readable')
  raise UserError(f'{top} holds nothing of {wanted.name}: put '
                  f'{what_to_put(layouts(wanted.name))} into it')


def _collect(parts, where, wanted):
  """Returns name -> Class of the wanted classes; UserError if any is not."""
  split_of = {name: split for split, names in wanted.classes.items()
              for name in names}
  found = {name: [] for name in split_of}
  for part in parts:
    for name in sorted(set(part.classes)):
      if part.split and name in split_of and split_of[name] != part.split:
        raise UserError(
            f'{part.where} has class {name}, which is of the {split_of[name]} '
            f'split of {wanted.name}: use the files of {wanted.name}')
    labels = np.array(part.classes)
    for name in sorted(set(part.classes) & set(found)):
      rows = np.flatnonzero(labels == name)
      found[name].append((part.images[rows], [part.names[i] for i in rows]))
  lacking = [name for name, pieces in found.items() if not pieces]
  if lacking:
    raise UserError(f'{where} lacks class {lacking[0]} ({len(lacking)} of '
                    f'{len(found)} classes are missing): fetch it again, whole')
  classes = {}
  for name, pieces in found.items():
    images = np.concatenate([images for images, _ in pieces])
    if len(images) != wanted.images:
      raise UserError(f'{where}: class {name} has {len(images)} images, not '
                      f'{wanted.images}: fetch it again, whole')
    classes[name] = Class(images, [n for _, names in pieces for n in names])
  return classes


def _unpacked(raw, folder, files, wanted):
  """A published archive, unpacked; `raw` is one of _RAW."""
  text, names, part = raw
  if not all(name in files for name in names):
    return None
  return f'CIFAR-100, {text} version', folder, [
      part(files[name], wanted) for name in names]


def _python_part(file, wanted):
  data, fine, coarse, names = pickled.load(
      file, 'data', 'fine_labels', 'coarse_labels', 'filenames')
  if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or (
      data.ndim != 2 or data.shape[1] != 3 * SIZE**2):
    raise UserError(f'{file.path}: data is no array of uint8, images x 3072: '
                    f'{pickled.AGAIN}')
  fine, coarse = (_labels(file.path, key, values, len(data))
                  for key, values in (('fine_labels', fine),
                                      ('coarse_labels', coarse)))
  try:
    names = [pickled.text(name) for name in names]
    if len(names) != len(data) or not all(
        isinstance(name, str) for name in names):
      raise ValueError
  except (TypeError, ValueError) as error:
    raise UserError(f'{file.path}: filenames is no list of {len(data)} names: '
                    f'{pickled.AGAIN}') from error
  return _raw_part(file.path, data, fine, coarse, names, wanted)


def _raw_part(path, rows, fine, coarse, names, wanted):
  """Returns the _Part of rows [I, 3072], planes R, G, B one after another."""
  table = wanted.table
  for i, (f, c) in enumerate(zip(fine, coarse, strict=True)):
    if not 0 <= f < len(table.fine) or c != table.coarse_of[f]:
      what = table.fine[f] if 0 <= f < len(table.fine) else 'not known'
      raise UserError(
          f'{path}: image {i} has the fine label {f} ({what}) and the coarse '
          f'label {c}, which do not belong together in CIFAR-100: '
          f'{pickled.AGAIN}')
  images = rows.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
  return _Part(path, images, [table.fine[f] for f in fine],
               [pictures.text(name) for name in names])


def _labels(path, key, values, count):
  try:
    labels = pickled.integers(values, 2 * count)
    if len(labels) != count:
      raise ValueError(f'{len(labels)} for {count} images')
  except Exception as error:  # values of any kind may lie in it
    raise UserError(f'{path}: {key} is no list of one number per image '
                    f'({first_line(error)}): {pickled.AGAIN}') from error
  return labels


def _binary_part(file, wanted):
  content = _read(file)
  published.refuse_html(file.path, content[:200])
  if not content or len(content) % _ROW:
    raise UserError(f'{file.path} has {len(content)} bytes, no multiple of '
                    f'{_ROW}: it was cut short, fetch it again')
  rows = np.frombuffer(content, np.uint8).reshape(-1, _ROW)
  return _raw_part(file.path, rows[:, 2:], rows[:, 1].tolist(),
                   rows[:, 0].tolist(), [''] * len(rows), wanted)


def _read(file):
  try:
    return file.read()
  except published.ERRORS as error:
    raise UserError(f'{file.path} cannot be read ({first_line(error)}): fetch '
                    'it again') from error


def _tar(folder, files, wanted):
  """The published archives as they are."""
  del folder
  for name, file in files.items():
    if name.lower().endswith(_TARS) and not file.zip:
      members = _members(file.path,
                         [name for _, names, _ in _RAW for name in names])
      for _, names, part in _RAW:
        if all(name in members for name in names):
          return ('CIFAR-100, the published archive,', file.path,
                  [part(members[name], wanted) for name in names])
      if 'cifar' in name.lower():
        raise UserError(f'{file.path} holds no train and test of CIFAR-100: '
                        'it is another file or was cut short; fetch it again')
  return None


def _members(path, names):
  """Returns name -> _Bytes of the files of a tar that have one of the names."""
  with path.open('rb') as file:
    published.refuse_html(path, file.read(200))
  members = {}
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        name = member.name.rpartition('/')[2]
        if member.isfile() and name in names and member.size <= _LARGEST:
          members[name] = _Bytes(f'{name} in {path}',
                                 archive.extractfile(member).read())
  except _TAR_ERRORS as error:
    raise UserError(f'{path} ({path.stat().st_size} bytes) is no whole tar '
                    f'({first_line(error)}): it was cut short or damaged, '
                    'fetch it again') from error
  return members


def _three(folder, files, text, patterns, read):
  """Returns a layout of one file for each split, or None.

  Args:
    folder, files: where.
    text: what it is called.
    patterns: the names that the files may have, such as '{}.pickle'.
    read: (File, split) -> _Part.

  Raises:
    UserError: only some of the files are there.
  """
  for pattern in patterns:
    names = [pattern.format(split) for split in ('train', 'val', 'test')]
    there = [name for name in names if name in files]
    if len(there) == 3:
      return text, folder, [
          read(files[name], split) for name, split in zip(
              names, ('train', 'validation', 'test'), strict=True)]
    if there and pattern != '{}.pickle':  # others have such names, too
      missing = [name for name in names if name not in files]
      raise UserError(f'{", ".join(missing)} is missing in {folder} beside '
                      f'{", ".join(there)}: put it there')
  return None


def _pickles(folder, files, wanted):
  """Pickles of MetaOptNet (Lee et al. 2019), with the numbers of classes."""
  read = lambda file, split: _numbered(
      file.path, *pickled.load(file, 'data', 'labels'), split, wanted)
  return _three(folder, files, 'pickles of MetaOptNet',
                (f'{_PREFIX[wanted.name]}_{{}}.pickle', '{}.pickle'), read)


def _npz(folder, files, wanted):
  """Files of TADAM (Oreshkin et al. 2018)."""
  def read(file, split):
    features, targets = published.npz(file, 'features', 'targets')
    return _numbered(file.path, features, targets, split, wanted)

  return _three(folder, files, 'npz files of TADAM', ('few-shot-{}.npz',), read)


def _numbered(path, images, labels, split, wanted):
  """Returns the _Part of images whose labels are numbers of CIFAR-100."""
  pickled.check_images(path, 'the images', images)
  if images.shape[1:] != (SIZE, SIZE, 3):
    raise UserError(f'{path}: the images are {images.shape[1]}x'
                    f'{images.shape[2]}, not {SIZE}x{SIZE}: {pickled.AGAIN} as '
                    'it was published')
  labels = _labels(path, 'labels', labels, len(images))
  names = wanted.table.fine
  wrong = next((i for i in labels if not 0 <= i < len(names)), None)
  if wrong is not None:
    raise UserError(f'{path}: a label is {wrong}: those of CIFAR-100 are 0 to '
                    f'{len(names) - 1}; {pickled.AGAIN} as it was published')
  return _Part(path, images, [names[i] for i in labels], [''] * len(images),
               split)


def _hdf5(folder, files, wanted):
  """torchmeta's file: a group per superclass, in it an array per class."""
  del folder
  for name, file in files.items():
    if name.lower().endswith(_HDF5):
      content = _read(file)
      published.refuse_html(file.path, content[:200])
      return ('an HDF5 file of torchmeta', file.path,
              _hdf5_parts(file.path, content, wanted))
  return None


def _hdf5_parts(path, content, wanted):
  try:
    import h5py
  except ImportError as error:
    raise UserError(f'{path} needs h5py: pip install h5py, or use another '
                    'layout') from error
  parts = []

  def take(name, item):  # links are not followed
    base = _name(name.rpartition('/')[2])
    if isinstance(item, h5py.Dataset) and base in wanted.table.fine:
      if item.is_virtual or item.external or item.dtype != np.uint8 or (
          item.shape[1:] != (SIZE, SIZE, 3) or len(item) > 2 * wanted.images):
        raise UserError(f'{path}: {name} is no array of uint8, images x '
                        f'{SIZE} x {SIZE} x 3: {pickled.AGAIN}')
      parts.append(_Part(path, item[:], [base] * len(item), [''] * len(item)))

  try:
    with h5py.File(io.BytesIO(content), 'r') as file:
      file.visititems(take)
  except UserError:
    raise
  except Exception as error:  # damaged bytes may raise anything
    raise UserError(f'{path} is no whole HDF5 file ({first_line(error)}): '
                    f'{pickled.AGAIN}') from error
  return parts


# Name, files of training and test set, and (File, Wanted) -> _Part.
_RAW = (('python', ('train', 'test'), _python_part),
        ('binary', ('train.bin', 'test.bin'), _binary_part))
# (folder, its files, Wanted) -> what it is called, where, and its _Parts; None
# where it is not there.
_LAYOUTS = (*(functools.partial(_unpacked, raw) for raw in _RAW), _tar,
            _pickles, _npz, _hdf5)


def _name(text):
  """Returns the name of a class as the published lists write it."""
  name = text.lower().replace('-', '_').replace(' ', '_')
  return {'computer_keyboard': 'keyboard'}.get(name, name)


def _folders(found, wanted):
  """Class folders, whole or below folders of splits, loose or in a zip."""
  roots = {}  # folder above -> class -> Files
  for file in found.files:
    name = _name(file.folder.name)
    if name in wanted.table.fine and file.name.lower().endswith(_IMAGES):
      above = file.folder.parent
      if _split(above.name):
        above = above.parent
      roots.setdefault(above, {}).setdefault(name, []).append(file)
  names = {name for of_split in wanted.classes.values() for name in of_split}
  if not roots:
    return None
  root = max(roots, key=lambda root: len(names & set(roots[root])))
  return ('class folders', root,
          [_of_folder(name, files, wanted)
           for name, files in roots[root].items() if name in names])


def _split(name):
  """Returns the split that a folder's name means, or None."""
  return _SPLITS.get(name.lower().removeprefix('meta-'))


def _of_folder(name, files, wanted):
  """Returns the _Part of the images of a class."""
  files = sorted(files, key=lambda file: (file.folder, file.name))
  # The images of CIFAR-100's own training and test set may lie apart.
  splits = {_split(file.folder.parent.name) for file in files}
  split = splits.pop() if len(splits) == 1 else None
  if len(files) != wanted.images:
    raise UserError(f'{files[0].folder}: class {name} has {len(files)} images, '
                    f'not {wanted.images}: fetch it again, whole')
  images = np.stack([_image(file) for file in files])
  return _Part(files[0].folder, images, [name] * len(files),
               [pictures.text(file.name) for file in files], split)


def _image(file):
  try:
    image = pictures.decode(file.image())
  except published.ERRORS as error:
    raise UserError(f'{file.path} cannot be read ({first_line(error)}): fetch '
                    'it again') from error
  if image.size != (SIZE, SIZE):
    raise UserError(f'{file.path} is {image.width}x{image.height}, not '
                    f'{SIZE}x{SIZE}: fetch it again as it was published')
  return np.asarray(image.convert('RGB'))
