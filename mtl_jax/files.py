"""Files and folders: paths, and writes that are whole or not there at all."""

import os

from etils import epath

from mtl_jax.errors import UserError


def at(path):
  """Returns the epath of a folder, absolute: Orbax takes no other."""
  return epath.Path(path if '://' in str(path) else os.path.abspath(path))


def make(path):
  """Makes a folder unless it is there; UserError where it cannot."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'{path}: cannot be made ({error.strerror}): choose '
                    'another --workdir') from error


def write(path, contents):
  """Replaces a file as a whole: it holds the old contents or the new.

  Args:
    path: the file.
    contents: text or bytes.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  beside = path.parent / f'{path.name}.tmp'
  try:
    if isinstance(contents, bytes):
      beside.write_bytes(contents)
    else:
      beside.write_text(contents)
    beside.replace(path)
  except OSError as error:
    beside.unlink(missing_ok=True)
    raise UserError(f'{path}: cannot be written ({error.strerror})'
                    ) from error
