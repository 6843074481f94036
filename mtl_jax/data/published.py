"""Published files below a folder: loose, in zips or tars, at any depth."""

import io
import mmap
import os
import pathlib
import re
import tarfile
import tempfile
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
_TAR = '.tar'
_HEADER = 2**20  # bytes that a header of a tar may have
_PIECE = 2**24  # bytes that are unpacked at a time
_SEPARATOR = re.compile(r'[/\\]')  # Windows' is in some zips
_LARGEST = 2**31  # bytes of a file that is no image, in a zip


class File(NamedTuple):
  """A file; in a zip or tar its folder begins with the path of that."""

  folder: pathlib.Path
  name: str
  zip: zipfile.ZipFile | None = None
  member: str = ''  # its name in the zip
  span: memoryview | None = None  # its bytes in a tar, which is mapped
  tar: pathlib.Path | None = None

  @property
  def path(self):
    """The path, for messages; that of a file in a zip cannot be opened."""
    return self.folder / self.name

  @property
  def holder(self):
    """The path of the zip or tar, or of the folder of a loose file."""
    return self.tar or (
        pathlib.Path(self.zip.filename) if self.zip else self.folder)

  def open(self):
    """Opens it to be read as bytes."""
    if self.span is not None:
      return Reader(self.span)
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


class Reader(io.RawIOBase):
  """A file over bytes that are in memory, or mapped."""

  def __init__(self, view, most=None):
    """Reads a memoryview, at most `most` bytes at a time."""
    super().__init__()
    self._view, self._at, self._most = view, 0, most

  def readable(self):
    """True."""
    return True

  def seekable(self):
    """True."""
    return True

  def seek(self, offset, whence=io.SEEK_SET):
    """Moves to a place; returns it."""
    start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at,
             io.SEEK_END: len(self._view)}[whence]
    self._at = max(0, start + offset)
    return self._at

  def readinto(self, buffer):
    """Fills a buffer; returns how many bytes there were."""
    if self._most is not None and len(buffer) > self._most:
      raise OSError(f'a header of {len(buffer)} bytes')
    piece = self._view[self._at:self._at + len(buffer)]
    buffer[:len(piece)] = piece
    self._at += len(piece)
    return len(piece)


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


def look(top, suffixes, tars=None):
  """Finds the files whose names end in one of `suffixes`, in lower case.

  Hidden files and those of an archiver (`__MACOSX`) are left out. A zip within
  a zip is not opened. Tars that are not compressed are read in place.

  Args:
    top: pathlib.Path of the folder.
    suffixes: tuple of texts such as '.png'.
    tars: (name) -> whether to read a tar, also one within a tar; None: none.

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
          damaged[path / name] = _what_else(path / name, error, 'zip')
      elif tars and name.lower().endswith(_TAR) and tars(name):
        try:
          found += _of_tar(path / name, suffixes, tars)
        except (OSError, tarfile.TarError, ValueError) as error:
          damaged[path / name] = _what_else(path / name, error, 'tar')
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


def _of_tar(path, suffixes, tars):
  """Returns the Files of a tar and of the tars in it."""
  with open(path, 'rb') as file:
    refuse = files.is_html(file.read(512))
    if refuse or not os.fstat(file.fileno()).st_size:
      raise tarfile.ReadError('no tar')
    view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
  return list(_members(path, path, view, suffixes, tars))


def _members(tar, place, view, suffixes, tars):
  """Yields the Files of a tar.

  Links and special files are left out, and names are cut to parts without
  '..': nothing is written anywhere.

  Args:
    tar: path of the outermost one.
    place: path of this one.
    view: its bytes.
    suffixes, tars: as of `look`; tars None: those in it are left out.

  Raises:
    tarfile.TarError: it is damaged or cut short.
  """
  folders = {}
  with tarfile.open(fileobj=Reader(view, _HEADER), mode='r:') as archive:
    for member in archive:
      archive.members = []  # it would keep them all
      *inside, name = [part for part in _SEPARATOR.split(member.name)
                       if part not in ('', '.', '..')] or ['']
      if not member.isreg() or member.issparse() or not all(
          map(_counts, (*inside, name))):
        continue
      start, end = member.offset_data, member.offset_data + member.size
      if end > len(view):
        raise tarfile.ReadError('cut short')
      folder = folders.setdefault(tuple(inside), place.joinpath(*inside))
      if name.lower().endswith(suffixes):
        yield File(folder, name, span=view[start:end], tar=tar)
      elif name.lower().endswith(_TAR) and tars and tars(name):
        yield from _members(tar, folder / name, view[start:end], suffixes, None)


def mapped(file, scratch):
  """Returns the bytes of a large file as a memoryview that is no copy.

  Args:
    file: File.
    scratch: a folder, or None for the system's; what is compressed in a zip is
      unpacked there, into a file without a name, of which nothing stays.

  Raises:
    UserError: the disk is full.
    Exception: of ERRORS, for a file that cannot be read, or a damaged zip.
  """
  if file.span is not None:
    return file.span
  if file.zip:
    return _unpacked(file.path, file.zip, file.zip.getinfo(file.member),
                     scratch)
  with open(file.path, 'rb') as opened:
    if not os.fstat(opened.fileno()).st_size:
      return memoryview(b'')
    return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def _unpacked(path, archive, info, scratch):
  """Returns the bytes of a member of a zip, from a file without a name."""
  with tempfile.TemporaryFile(dir=scratch) as target:
    with archive.open(info) as source:
      left = info.file_size
      while piece := source.read(_PIECE):
        left -= len(piece)
        if left < 0:
          raise zipfile.BadZipFile('it is longer than it says')
        try:
          target.write(piece)
          target.flush()
        except OSError as error:
          raise UserError(
              f'{path} takes {info.file_size} bytes of '
              f'{scratch or tempfile.gettempdir()} while it is read '
              f'({error.strerror}): make room there, or set config.data.dir '
              'to another folder') from error
    if left or not info.file_size:
      raise zipfile.BadZipFile('it is shorter than it says')
    return memoryview(mmap.mmap(target.fileno(), 0, access=mmap.ACCESS_READ))


def npz_array(file, name, scratch):
  """Returns a large array of an npz file: mapped, not read.

  Args:
    file: File.
    name: of the array.
    scratch: as of `mapped`.

  Raises:
    UserError: it is no whole npz file, or has no such array.
  """
  try:
    view = mapped(file, scratch)
    refuse_html(file.path, bytes(view[:200]))
    with zipfile.ZipFile(io.BufferedReader(Reader(view))) as archive:
      names = archive.namelist()
      if f'{name}.npy' not in names:
        raise UserError(f'{file.path} lacks {name} (it has '
                        f'{", ".join(names)[:80]}): fetch the file again')
      info = archive.getinfo(f'{name}.npy')
      if info.compress_type != zipfile.ZIP_STORED:
        return _array(_unpacked(file.path, archive, info, scratch))
      archive.open(info).close()  # it checks the header
      head = view[info.header_offset:info.header_offset + 30]
      start = info.header_offset + 30 + sum(
          int.from_bytes(head[i:i + 2], 'little') for i in (26, 28))
      content = view[start:start + info.file_size]
    crc = 0
    for at in range(0, len(content), _PIECE):
      crc = zlib.crc32(content[at:at + _PIECE], crc)
    if crc != info.CRC:
      raise zipfile.BadZipFile(f'bad CRC of {info.filename}')
    return _array(content)
  except (*ERRORS, ValueError) as error:
    raise UserError(f'{file.path} cannot be read ({first_line(error)}): it was '
                    'cut short or damaged, fetch it again') from error


def _array(content):
  """Returns the array of numbers in the bytes of an npy file."""
  head = io.BytesIO(content[:2**16])
  version = np.lib.format.read_magic(head)
  read = {(1, 0): np.lib.format.read_array_header_1_0,
          (2, 0): np.lib.format.read_array_header_2_0}[version]
  shape, fortran, dtype = read(head)
  if dtype.hasobject:
    raise ValueError('an array of objects')
  flat = np.frombuffer(content[head.tell():], dtype)
  return flat.reshape(shape, order='F' if fortran else 'C')


def _what_else(path, error, kind):
  """Says what a file is that should be a zip or tar."""
  if isinstance(error, OSError):
    return f'not readable ({first_line(error)})'
  with open(path, 'rb') as file:
    start = file.read(512)
  if files.is_html(start):
    return (f'an HTML page, not a {kind}: a download page was saved in its '
            'place')
  size = f'{path.stat().st_size} bytes'
  whole = (start.startswith(b'PK') if kind == 'zip'
           else start[257:262] == b'ustar')
  return (f'a {kind} that is cut short ({size})' if whole else
          f'not a {kind} ({size})')
