"""Reads what `torch.save` writes since PyTorch 1.6, and executes none of it.

The file is a zip archive that is not compressed: a pickle `data.pkl`, and one
file `data/KEY` per storage, the numbers of one or several tensors. The pickle
is read by `mtl_jax.unpickle`, with functions of this file in place of those
that rebuild tensors.
"""

import collections.abc
import io
import math
import zipfile

import jax.numpy as jnp
import numpy as np

from mtl_jax import unpickle
from mtl_jax.errors import UserError
from mtl_jax.unpickle import Damaged, Function

_PICKLE = 'data.pkl'
# PyTorch's name of a storage -> its numbers.
_STORAGES = {
    'DoubleStorage': np.float64, 'FloatStorage': np.float32,
    'HalfStorage': np.float16, 'BFloat16Storage': jnp.bfloat16,
    'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16,
    'CharStorage': np.int8, 'ByteStorage': np.uint8, 'BoolStorage': np.bool_}
# How often the numbers of a file may be shared by its tensors. A module may
# name one network several times.
_MOST_SHARED = 16


def _names(data):
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    return archive.namelist()


def is_of_torch(data):
  """Returns whether a zip archive is one of torch.save."""
  return any(name.rpartition('/')[2] == _PICKLE for name in _names(data))


def read(data):
  """Returns ({dotted name: array}, {}) of the bytes of a file.

  Arrays are found in dictionaries within dictionaries; all else is left out.

  Raises:
    UserError: it holds something else than tensors and plain values, such as
      a whole module.
    Exception: damaged bytes raise many kinds.
  """
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    pickles = [e for e in archive.infolist()
               if e.filename.rpartition('/')[2] == _PICKLE]
    root = pickles[0].filename.removesuffix(_PICKLE)
    if f'{root}constants.pkl' in archive.namelist():
      raise UserError('is a TorchScript module, which is code: write its '
                      'state_dict() by torch.save')
    left = [len(data)]  # no entry is read twice, however many there are
    read_entry = lambda name: _stored(archive, root + name, left)
    order = '<'
    if f'{root}byteorder' in archive.namelist():
      order = {b'little': '<', b'big': '>'}[read_entry('byteorder')]
    try:
      loaded = unpickle.load(
          read_entry(_PICKLE), _functions(len(data)),
          _storages(lambda key: read_entry(f'data/{key}'), order))
    except UserError as error:
      raise UserError(f'{error}; write tensors alone, such as a state_dict(), '
                      'by torch.save') from error
  if not isinstance(loaded, collections.abc.Mapping):
    raise UserError(f'holds a {type(loaded).__name__}, not a dictionary of '
                    'tensors: write a state_dict() by torch.save')
  # One dictionary may be in several, and so stand for any number of arrays.
  return dict(_arrays(loaded, [len(data)])), {}


def _stored(archive, name, left):
  """Returns the bytes of an entry, which must not be compressed."""
  entry = archive.getinfo(name)
  if (entry.compress_type != zipfile.ZIP_STORED
      or entry.file_size != entry.compress_size):
    raise UserError('is a compressed archive, which torch.save does not write')
  left[0] -= entry.file_size
  if left[0] < 0:
    raise Damaged('its entries are larger than the file')
  return archive.read(entry)


def _arrays(tree, left, prefix=''):
  """Yields (dotted name, array) of the dictionaries within a dictionary.

  Args:
    tree: the dictionary.
    left: [how many entries may still be read].
    prefix: of the names.
  """
  for key, value in tree.items():
    left[0] -= 1
    if left[0] < 0:
      raise Damaged('dictionaries that are within each other too often')
    if isinstance(value, collections.abc.Mapping):
      yield from _arrays(value, left, f'{prefix}{key}.')
    elif isinstance(value, unpickle.Array):
      yield f'{prefix}{key}', unpickle.plain(value)


class _Storage:
  """The numbers of tensors, [n]."""

  def __init__(self, values):
    self.values = values


def _storages(read_entry, order):
  """Returns a pickle's identifier -> _Storage; each is read once."""
  known = {}

  def find(identifier):
    kind, storage, key, _, count = identifier  # 'storage', .., device, n
    dtype = storage.name.rpartition('.')[2]
    if kind != 'storage' or dtype not in _STORAGES or not isinstance(key, str):
      raise Damaged('a storage of another kind')
    if (dtype, key) not in known:
      raw = read_entry(key)
      numbers = np.dtype(_STORAGES[dtype]).newbyteorder(order)
      known[dtype, key] = _Storage(np.frombuffer(raw, numbers) if raw
                                   else np.empty(0, numbers))
    if known[dtype, key].values.size != count:
      raise Damaged('a storage of another size')
    return known[dtype, key]

  return find


def _functions(size):
  """Returns what a pickle of PyTorch may name, for `unpickle.load`.

  Args:
    size: of the file, in bytes.
  """
  left = [_MOST_SHARED * size]

  def tensor(state, storage, offset, shape, strides, *rest):
    del state, rest  # whether it is trained, and hooks
    if not isinstance(storage, _Storage):
      raise Damaged('a tensor without a storage')
    array = _strided(storage.values, offset, shape, strides)
    left[0] -= array.nbytes
    if left[0] < 0:
      raise Damaged('tensors that share their numbers too often')
    return unpickle.Array(array)

  def parameter(state, value, *rest):
    del state, rest
    return value

  namespace = lambda state: {}  # its attributes are left out
  named = {('torch._utils', '_rebuild_tensor_v2'): Function('tensor', tensor),
           ('torch._utils', '_rebuild_parameter'): Function(
               'parameter', parameter),
           ('torch', 'Size'): Function('Size', lambda state, sizes: sizes),
           ('torch', 'device'): Function('device', lambda state, *text: None),
           ('argparse', 'Namespace'): Function('Namespace', namespace, True)}
  return named | {('torch', name): Function(f'torch.{name}')
                  for name in _STORAGES}


def _strided(values, offset, shape, strides):
  """Returns a view of a storage's values, after all has been checked."""
  whole = lambda sizes: isinstance(sizes, tuple) and all(
      type(n) is int and n >= 0 for n in sizes)
  if not whole((offset,)) or not whole(shape) or not whole(strides) or len(
      shape) != len(strides):
    raise Damaged('a tensor without a shape')
  last = offset + sum((n - 1) * step for n, step in zip(
      shape, strides, strict=True))
  if math.prod(shape) == 0:
    return np.empty(shape, values.dtype)
  if math.prod(shape) > values.size or last >= values.size:
    raise Damaged('a tensor that is larger than its storage')
  return np.lib.stride_tricks.as_strided(
      values[offset:], shape, [n * values.itemsize for n in strides],
      writeable=False)
