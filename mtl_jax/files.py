"""Files and folders: paths, locks, and writes that are whole or do nothing."""

import contextlib
import json
import logging
import os
import traceback

from etils import epath

from mtl_jax.errors import UserError, reason

try:
  import fcntl
except ImportError:  # no locks on this system: no process waits
  fcntl = None

LOCK = '.lock'
# What opens gs://... and its like. Their errors have no base in common.
_CLIENTS = 'fsspec', 'gcsfs', 'google.cloud'


def at(path):
  """Returns the epath of a file or folder, absolute: Orbax takes no other.

  `~` is the home folder; an address such as gs://BUCKET/x stays as it is.
  """
  path = os.fspath(path)
  return epath.Path(path if '://' in path else os.path.abspath(
      os.path.expanduser(path)))


def make(path):
  """Makes a folder for results unless it exists.

  Raises:
    UserError: it cannot be made, or takes no file.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'{path}: cannot be made ({reason(error)}): name '
                    'another folder') from error
  if can_append(path) and not os.access(path, os.W_OK | os.X_OK):
    raise UserError(f'{path}: cannot be written (Permission denied): name '
                    'another folder')


@contextlib.contextmanager
def errors():
  """Turns an error of the file system into a UserError that names the file.

  An error of an object store becomes one, too, without a file.
  """
  try:
    with store_errors():
      yield
  except OSError as error:
    if error.filename is None:
      raise
    raise UserError(
        f'{os.fsdecode(error.filename)}: cannot be read or written '
        f'({reason(error)}): mend that, or name another folder') from error


@contextlib.contextmanager
def store_errors():
  """Turns an error of an object store into a UserError."""
  # It logs, with a traceback, what it raises.
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    named = isinstance(error, OSError) and error.filename is not None
    if named or not _of_a_store(error):
      raise
    raise UserError(
        f'the object store cannot be used ({reason(error)}): for gs://... '
        "install 'mtl_jax[gs]', log in, and see that the bucket exists and "
        'the account may read and write it (docs/launch.md)') from error


def _of_a_store(error):
  """Returns whether an error comes from a client of an object store."""
  return any(
      frame.f_globals.get('__name__', '').startswith(_CLIENTS)
      for frame, _ in traceback.walk_tb(error.__traceback__))


def write(path, contents):
  """Replaces a file as a whole: it holds the old contents or the new.

  Args:
    path: the file.
    contents: text or bytes.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  renames = can_append(path)  # an object is replaced as a whole anyway
  beside = _beside(path) if renames else path
  try:
    if isinstance(contents, bytes):
      beside.write_bytes(contents)
    else:
      beside.write_text(contents)
    if renames:
      beside.replace(path)
  except OSError as error:
    if renames:
      with contextlib.suppress(OSError):  # such as a name that is too long
        beside.unlink(missing_ok=True)
    raise UserError(f'{path}: cannot be written ({reason(error)})'
                    ) from error


def _beside(path):
  """Returns the path of what will replace a file, of this process alone."""
  return path.parent / f'{path.name}.{os.getpid()}.tmp'


@contextlib.contextmanager
def writing(path):
  """Yields an open file of bytes that replaces another as a whole.

  For what is too large for `write`. After an error the file is as it was.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  beside = _beside(path)
  try:
    with beside.open('wb') as file:
      yield file
    beside.replace(path)
  except OSError as error:
    raise UserError(f'{path}: cannot be written ({reason(error)})'
                    ) from error
  finally:
    with contextlib.suppress(OSError):
      beside.unlink(missing_ok=True)


def json_text(value, **options):
  """Returns a value as strict JSON, which has no NaN and no infinity.

  Args:
    value: of dictionaries, lists, texts and finite numbers.
    **options: of json.dumps.

  Raises:
    ValueError: a number is not finite.
  """
  return json.dumps(value, allow_nan=False, **options)


def can_append(path):
  """Returns whether files of a folder can grow; object stores' cannot."""
  return '://' not in os.fspath(path)


def append(path, text):
  """Adds text to the end of a file; a kill may leave a part of it there.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  try:
    with path.open('a') as file:
      file.write(text)
  except OSError as error:
    raise UserError(f'{path}: cannot be written ({reason(error)})'
                    ) from error


@contextlib.contextmanager
def lock(folder, wait=True):
  """Holds the lock of a folder, which is made if need be.

  The system takes the lock from a process that dies.

  Args:
    folder: to lock; it then has a file '.lock', which stays there.
    wait: whether to wait for another process that holds the lock.

  Yields:
    whether the lock is held; False where the system or the file system of
    `folder` has no locks.

  Raises:
    BlockingIOError: another process holds it, and `wait` is False.
    OSError: the folder cannot be written.
  """
  folder = epath.Path(folder)
  if fcntl is None or '://' in str(folder):
    yield False
    return
  folder.mkdir(parents=True, exist_ok=True)
  # If the file were removed, a process that waits for it would hold another
  # lock than the next one.
  with open(folder / LOCK, 'wb') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      locked = True
    except BlockingIOError:
      raise
    except OSError:
      locked = False
    yield locked


def is_html(head):
  """Returns whether a file that begins so is a web page saved by mistake."""
  return head.lstrip(b'\xef\xbb\xbf \r\n\t').lower().startswith(
      (b'<!doctype', b'<html', b'<head', b'<?xml', b'<!--'))
