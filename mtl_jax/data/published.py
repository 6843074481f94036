"""Published files below a folder: loose or in zips, in folders at any depth."""

import io
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax import files
from mtl_jax.data import pictures
from mtl_jax.errors import UserError, first_line

# What reading a file of a damaged or encrypted zip may raise.
ERRORS = (OSError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error,
          NotImplementedError, pictures.Unreadable)
_SEPARATOR = re.compile(r'[/\\]')  # Windows' is in some zips
_LARGEST = 2**31  # bytes of a file that is no image, in a zip


class File(NamedTuple):
  """A file; in a zip its folder begins with the path of the zip."""

  folder: pathlib.Path
  name: str
  zip: zipfile.ZipFile | None = None
  member: str = ''  # its name in the zip

  @property
  def path(self):
    """The path, for messages; that of a file in a zip cannot be opened."""
    return self.folder / self.name

  @property
  def holder(self):
    """The path of the zip, or of the folder of a loose file."""
    return pathlib.Path(self.zip.filename) if self.zip else self.folder

  def open(self):
    """Opens it to be read as bytes."""
    return (self.zip.open(self.member) if self.zip
            else open(self.path, 'rb'))

  def image(self):
    """Returns the bytes of an image; raises ERRORS."""
    return pictures.encoded(self.open)

  def read(self):
    """Returns its bytes; raises ERRORS."""
    with self.open() as file:
      content = file.read(_LARGEST + 1 if self.zip else -1)
    if self.zip and len(content) > _LARGEST:
      raise pictures.Unreadable(f'it unpacks to more than {_LARGEST} bytes')
    return content


class Found(NamedTuple):
  """What there is below a folder."""

  files: Sequence[File]  # those nearest to the folder first, loose ones first
  damaged: dict[pathlib.Path, str]  # what should be a zip -> what it is
  closed: Sequence[pathlib.Path]  # folders that may not be read

  def in_folders(self):
    """Returns folder -> name -> File, in the same order."""
    folders = {}
    for file in self.files:
      folders.setdefault(file.folder, {}).setdefault(file.name, file)
    return folders


def look(top, suffixes):
  """Finds the files whose names end in one of `suffixes`, in lower case.

  Hidden files and those of an archiver (`__MACOSX`) are left out. A zip within
  a zip is not opened.

  Args:
    top: pathlib.Path of the folder.
    suffixes: tuple of texts such as '.png'.

  Returns:
    Found.
  """
  found, damaged, closed, seen = [], {}, [], set()
  for folder, folders, names in os.walk(
      top, followlinks=True, onerror=lambda error: closed.append(
          pathlib.Path(error.filename))):
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
      folders.clear()
      continue
    seen.add((status.st_dev, status.st_ino))
    folders[:] = sorted(name for name in folders if _counts(name))
    path = pathlib.Path(folder)
    for name in sorted(filter(_counts, names)):
      if name.lower().endswith(suffixes):
        found.append(File(path, name))
      elif name.lower().endswith('.zip'):
        try:
          found += _of_zip(path / name, suffixes)
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
          damaged[path / name] = _what_else(path / name, error)
  found.sort(key=lambda file: (len(file.folder.parts), file.zip is not None))
  return Found(found, damaged, closed)


def npz(file, *wanted):
  """Returns arrays of an npz file by name; nothing in it is executed.

  Args:
    file: File.
    *wanted: names of the arrays.

  Raises:
    UserError: it is no whole npz file, or has no such arrays.
  """
  try:
    content = file.read()
    refuse_html(file.path, content[:200])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      if sum(info.file_size for info in archive.infolist()) > _LARGEST:
        raise pictures.Unreadable(f'it unpacks to more than {_LARGEST} bytes')
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
      missing = [name for name in wanted if name not in arrays]
      if missing:
        raise UserError(f'{file.path} lacks {missing[0]} (it has '
                        f'{", ".join(arrays)[:80]}): fetch the file again')
      return [arrays[name] for name in wanted]
  except (*ERRORS, ValueError) as error:
    raise UserError(f'{file.path} cannot be read ({first_line(error)}): it was '
                    'cut short or damaged, fetch it again') from error


def refuse_html(path, head):
  """Raises UserError where the first bytes are those of a web page."""
  if files.is_html(head):
    raise UserError(f'{path} is an HTML page: a download page was saved in '
                    'place of the file; fetch the file itself')


def _of_zip(path, suffixes):
  """Yields the Files of a zip."""
  archive, folders = zipfile.ZipFile(path), {}
  for member in sorted(archive.namelist()):
    *inside, name = [part for part in _SEPARATOR.split(member)
                     if part not in ('', '.', '..')] or ['']
    if name.lower().endswith(suffixes) and not member.endswith('/') and all(
        map(_counts, (*inside, name))):
      folder = folders.setdefault(tuple(inside), path.joinpath(*inside))
      yield File(folder, name, archive, member)


def _counts(name):
  return not name.startswith('.') and name != '__MACOSX'


def _what_else(path, error):
  """Says what a file is that should be a zip."""
  if isinstance(error, OSError):
    return f'not readable ({first_line(error)})'
  with open(path, 'rb') as file:
    start = file.read(512)
  if files.is_html(start):
    return 'an HTML page, not a zip: a download page was saved in its place'
  size = f'{path.stat().st_size} bytes'
  return (f'a zip that is cut short ({size})' if start.startswith(b'PK') else
          f'not a zip ({size})')
