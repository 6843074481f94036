"""Reads .npz without NumPy's pickles, and with bounded memory."""

import io
import math
import zipfile

import numpy as np

from mtl_jax.errors import UserError

_SUFFIX = '.npy'
# Weights hardly compress. Zeros may, such as those of a fresh layer.
_MOST_GAIN, _FREE = 20, 2 ** 26
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read(data):
  """Returns ({name: array}, {}) of the bytes of an .npz.

  Raises:
    UserError: it holds objects, other files, or far more than its own size.
    Exception: damaged bytes raise many kinds.
  """
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    entries = archive.infolist()
    others = [e.filename for e in entries if not e.filename.endswith(_SUFFIX)]
    if others or not entries:
      raise UserError(f'is a zip archive with {ascii(others[0])[:60]}: no .npz '
                      'and no file of torch.save' if others
                      else 'is an empty zip archive')
    if any(e.compress_type not in _COMPRESSIONS for e in entries):
      raise UserError('is compressed otherwise than by np.savez_compressed')
    total = sum(entry.file_size for entry in entries)
    if total > _FREE + _MOST_GAIN * len(data):
      raise UserError(f'unpacks {len(data):,} bytes to {total:,}, which no '
                      'weights need')
    return {entry.filename.removesuffix(_SUFFIX): _array(
        _unpacked(archive, entry)) for entry in entries}, {}


def _unpacked(archive, entry):
  # `read` without a size may unpack more than the entry says, and then drop it.
  with archive.open(entry) as file:
    return file.read(entry.file_size)


def _array(data):
  """Returns the array in the bytes of an .npy."""
  file = io.BytesIO(data)
  header = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}[
                np.lib.format.read_magic(file)]
  shape, fortran, dtype = header(file)
  if dtype.hasobject:
    raise UserError('holds objects, which may run any code: write numbers')
  size = math.prod(shape) * dtype.itemsize
  if size != len(data) - file.tell():
    raise ValueError(f'an array of {size} bytes has {len(data) - file.tell()}')
  flat = np.frombuffer(data, dtype, offset=file.tell()) if size else np.empty(
      0, dtype)
  return flat.reshape(shape, order='F' if fortran else 'C')
