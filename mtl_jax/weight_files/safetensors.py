"""Reads and writes safetensors.

The format is that of https://github.com/huggingface/safetensors: the length of
the header (8 bytes), the header (JSON: name -> dtype, shape and place), and the
numbers. It is so small that no library is needed for it; the tests compare
this file with the library.
"""

import json
import math

import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError

_DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
    'BF16': jnp.bfloat16, 'I64': np.int64, 'I32': np.int32, 'I16': np.int16,
    'I8': np.int8, 'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16,
    'U8': np.uint8, 'BOOL': np.bool_}
_METADATA = '__metadata__'
_ALIGNED = 8


def read(data):
  """Returns ({name: array}, {key: text}) of the bytes of a file.

  The arrays are views of the bytes.

  Raises:
    UserError: a type of numbers that is not known here.
    Exception: damaged bytes raise many kinds.
  """
  end = 8 + int.from_bytes(data[:8], 'little')
  if end > len(data):
    raise ValueError('its header is longer than the file')
  header = json.loads(data[8:end])
  metadata = header.pop(_METADATA, {})
  values, arrays = memoryview(data)[end:], {}
  for name, entry in header.items():
    if entry['dtype'] not in _DTYPES:
      raise UserError(f'{ascii(name)[:60]} is of type '
                      f'{ascii(entry["dtype"])[:20]}: known are '
                      + ', '.join(_DTYPES))
    dtype, shape = np.dtype(_DTYPES[entry['dtype']]), entry['shape']
    start, stop = entry['data_offsets']
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
      raise ValueError('a negative size')
    size = math.prod(shape) * dtype.itemsize
    if stop > len(values) or stop - start != size:
      raise ValueError(f'{ascii(name)[:60]} has another size than its shape')
    # An array of no bytes has no place in the file.
    arrays[name] = (np.frombuffer(values[start:stop], dtype) if size
                    else np.empty(0, dtype)).reshape(shape)
  return arrays, metadata


def pack(arrays, metadata):
  """Returns the bytes of a file.

  Args:
    arrays: {name: array}.
    metadata: {key: text}.
  """
  names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
  header, parts, at = {_METADATA: dict(metadata)}, [], 0
  # The widest numbers first, so that all are aligned.
  for name, array in sorted(arrays.items(),
                            key=lambda item: -item[1].dtype.itemsize):
    values = np.ascontiguousarray(array)
    header[name] = {'dtype': names[values.dtype], 'shape': list(array.shape),
                    'data_offsets': [at, at + values.nbytes]}
    parts.append(values.tobytes())
    at += values.nbytes
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % _ALIGNED)
  return b''.join([len(text).to_bytes(8, 'little'), text, *parts])
