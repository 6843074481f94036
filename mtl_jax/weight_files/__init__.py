"""Reads and writes files of weights: names and arrays, and no code.

    weights = read('resnet12.pth')
    weights.arrays['layer1.0.conv1.weight']  # [64, 3, 3, 3]

Formats are told by the contents of a file, whatever it is called: .npz,
safetensors, and the zip of `torch.save`. Neither PyTorch nor safetensors is
needed. A file that is damaged, or that was made to do harm, raises UserError:
nothing in it is executed, and sizes are checked before anything is allocated.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtl_jax import files
from mtl_jax.errors import UserError, first_line, reason
from mtl_jax.weight_files import npz, safetensors, torch_zip
from mtl_jax.weight_files.safetensors import pack as pack

FORMATS = ('.npz, safetensors, or what torch.save writes since PyTorch 1.6 '
           '(.pt, .pth)')
_SAVE_AGAIN = ("write it again in PyTorch: torch.save(torch.load(FILE, "
               "map_location='cpu'), NEW_FILE)")
_OLD_TORCH = bytes.fromhex('8a0a6cfc9c46f9206aa85019')  # its magic number


class Weights(NamedTuple):
  """What a file of weights holds."""

  path: str
  arrays: dict[str, np.ndarray]  # dotted name -> array
  sha256: str  # of the file
  metadata: Mapping[str, Any]  # of safetensors; otherwise empty


def read(path):
  """Returns the Weights of a file.

  Args:
    path: of the file; `~` is the home folder, gs://.. is allowed.

  Raises:
    UserError: no such file, another format, or a damaged or hostile file.
  """
  path = files.at(path)
  try:
    with files.store_errors():
      data = path.read_bytes() if path.is_file() else None
    if data is None:
      raise UserError('is a folder: name a file; a run is named by '
                      '--checkpoint or --init_from' if path.is_dir()
                      else 'is not there: name a file')
    arrays, metadata = _reader(data)(data)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({reason(error)}): make it '
                    'readable') from error
  except MemoryError as error:
    raise UserError(f'{path}: does not fit into memory: keep the weights of '
                    'one network in it') from error
  except Exception as error:  # damaged bytes may raise anything
    raise UserError(f'{path}: cannot be read ({first_line(error)}): it was cut '
                    'short or damaged; fetch it again') from error
  return Weights(str(path), arrays, hashlib.sha256(data).hexdigest(), metadata)


def _reader(data):
  """Returns the function that reads such bytes: bytes -> (arrays, metadata)."""
  if data[:2] == b'PK':
    return (torch_zip.read if torch_zip.is_of_torch(data) else npz.read)
  if data[2:14] == _OLD_TORCH:
    raise UserError('is in the format of PyTorch before 1.6: ' + _SAVE_AGAIN)
  if data[257:262] == b'ustar':
    raise UserError('is a tar archive, of PyTorch before 0.2 or of several '
                    'files: unpack it, or ' + _SAVE_AGAIN)
  if data[8:9] == b'{':
    return safetensors.read
  if files.is_html(data[:200]):
    raise UserError('is a web page: fetch the file itself')
  if not data:
    raise UserError('is empty: fetch it again')
  raise UserError(f'is none of the formats {FORMATS}')


def json_of(weights, key):
  """Returns a dictionary in the metadata of a file, or None."""
  try:
    value = json.loads(weights.metadata[key])
  except (KeyError, ValueError, TypeError, RecursionError):
    return None
  return value if isinstance(value, dict) else None
