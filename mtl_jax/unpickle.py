"""Reads a pickle of arrays and built-in values; runs nothing of it.

Python's unpicklers call what a pickle asks for, and numpy's arrays then trust
its sizes and types. This reader carries out the same opcodes on plain values:

- it calls nothing but functions of this package, which stand for the names that
  a pickle may ask for (FUNCTIONS, and those that the caller adds);
- an array is a view of bytes of the file, its type is plain, and its size must
  be that of its bytes;
- keys are text, bytes or numbers, as hashing deep nests overflows the stack;
- the values take no more memory than a fixed multiple of the file.
"""

import codecs
import math
import pickletools
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.errors import UserError

# An array of 38,400 labels takes about ten opcodes for each. Of arrays that are
# images, a few dozen opcodes take hundreds of bytes or more.
_MOST_STEPS = 2_000_000
_BYTES_PER_STEP = 256  # of a larger file
_MOST_DIGITS = 19  # of an integer: those of 64 bits
_PLAIN = re.compile(r'[<>|=]?[biufSU][1-9]\d{0,2}')
_OPCODES = {opcode.code.encode('latin1')[0]: opcode
            for opcode in pickletools.opcodes}
_SIZES = {  # of an argument that begins with its own size
    pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}


class Damaged(ValueError):
  """Says in one line what no pickle of arrays has."""


class _State(NamedTuple):
  """What the opcodes work on."""

  stack: list
  marks: list  # lengths of the stack
  memo: dict
  budget: list  # [bytes that copies may still take]
  functions: dict  # (module, name) -> Function
  persistent: Any  # identifier -> value, or None


class Function(NamedTuple):
  """What stands for a name: a function, or a type that is not called."""

  name: str
  call: Any = None  # (state, *arguments) -> value
  is_type: bool = False  # made by NEWOBJ, and given a state, which is dropped


class _DType:
  """A type of numbers: `dtype` becomes what the pickle says."""

  def __init__(self, dtype):
    self.dtype = dtype


class Array:
  """An array to be filled: `array` is None until then."""

  __slots__ = ('array',)

  def __init__(self, array=None):
    self.array = array


class _LongText:
  """Text that is decoded when it is needed: Python 3 writes bytes as text."""

  __slots__ = ('raw',)

  def __init__(self, raw):
    self.raw = raw


def load(data, functions=None, persistent=None):
  """Returns the value in a pickle.

  Args:
    data: bytes of the file, or a memoryview of them; large ones are not copied.
    functions: (module, name) -> Function, in addition to FUNCTIONS.
    persistent: identifier -> value, for what lies outside of the pickle; None:
      nothing does.

  Returns:
    None, numbers, text, bytes (large ones as a memoryview), lists, tuples,
    dicts, sets and ranges of these, and Array and long text; `plain` turns
    these into arrays and text. Text of Python 2 is bytes. Attributes of a
    dict are dropped.

  Raises:
    UserError: it asks for something else; the message lacks the file's name.
    Exception: damaged bytes raise many kinds.
  """
  data = memoryview(data)
  state, at = _State([], [], {}, [len(data)],
                     FUNCTIONS | (functions or {}), persistent), 0
  most = max(_MOST_STEPS, len(data) // _BYTES_PER_STEP)
  for _ in range(most):
    opcode = _OPCODES[data[at]]
    raw, at = _argument(data, at + 1, opcode)
    if opcode.name == 'STOP':
      value, = state.stack
      return value
    if opcode.name in _VALUES:
      state.stack.append(_VALUES[opcode.name](raw))
    elif opcode.name in _ACTIONS:
      _ACTIONS[opcode.name](state, raw)
    else:
      raise Damaged(f'opcode {opcode.name}')
  raise Damaged(f'more than {most} opcodes')


def plain(value):
  """Returns the array of an Array, long text, and other values as they are."""
  if isinstance(value, _LongText):
    return str(value.raw, 'utf-8', 'surrogatepass')
  if isinstance(value, Array) and value.array is None:
    raise Damaged('an array without data')
  return value.array if isinstance(value, Array) else value


def _argument(data, at, opcode):
  """Returns (bytes of an opcode's argument, where the next opcode is)."""
  size = opcode.arg.n if opcode.arg else 0
  if size == pickletools.UP_TO_NEWLINE:
    end = _end_of_line(data, at)
    if opcode.name in ('GLOBAL', 'INST'):  # two lines
      end = _end_of_line(data, end + 1)
    return data[at:end], end + 1
  if size < 0:
    width = _SIZES[size]
    size = int.from_bytes(data[at:at + width], 'little')
    at += width
  if at + size > len(data):
    raise Damaged('it ends too early')
  return data[at:at + size], at + size


def _end_of_line(data, at):
  size = 256
  while at < len(data):
    found = bytes(data[at:at + size]).find(b'\n')
    if found >= 0:
      return at + found
    at, size = at + size, 4 * size
  raise Damaged('it ends too early')


# Values: of the bytes of an argument.


def _bytes(raw):
  """Small bytes may be keys; large ones are not copied."""
  return raw if len(raw) > 4096 else bytes(raw)


def _signed(raw):
  if len(raw) > 8:
    raise Damaged('an integer of more than 64 bits')
  return int.from_bytes(raw, 'little', signed=True)


def _unsigned(raw):
  return int.from_bytes(raw, 'little')


def _line_int(raw):
  text = bytes(raw).removesuffix(b'L')
  if len(text) > _MOST_DIGITS + 1:
    raise Damaged('an integer of more than 64 bits')
  return text == b'01' if text in (b'00', b'01') else int(text)


def _line_bytes(raw):
  if len(raw) < 2 or raw[0] not in b'\'"' or raw[0] != raw[-1]:
    raise Damaged('text without quotes')
  return codecs.escape_decode(raw[1:-1])[0]


def _text(raw):
  """Short text may be a key; long text is not copied."""
  return _LongText(raw) if len(raw) > 4096 else str(
      raw, 'utf-8', 'surrogatepass')


_VALUES = {
    'NONE': lambda raw: None, 'NEWTRUE': lambda raw: True,
    'NEWFALSE': lambda raw: False, 'INT': _line_int, 'LONG': _line_int,
    'BININT': _signed, 'BININT1': _unsigned, 'BININT2': _unsigned,
    'LONG1': _signed, 'LONG4': _signed, 'FLOAT': lambda raw: float(bytes(raw)),
    'BINFLOAT': lambda raw: struct.unpack('>d', raw)[0],
    'STRING': _line_bytes,
    'UNICODE': lambda raw: str(raw, 'raw-unicode-escape'),
    **dict.fromkeys(('BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'BINBYTES8',
                     'SHORT_BINBYTES', 'BYTEARRAY8'), _bytes),
    **dict.fromkeys(('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'), _text),
    'EMPTY_LIST': lambda raw: [], 'EMPTY_TUPLE': lambda raw: (),
    'EMPTY_DICT': lambda raw: {}, 'EMPTY_SET': lambda raw: set(),
}


# What a pickle may call.


def _spend(state, count):
  """Counts bytes that are copied: a memo can name the same ones often."""
  state.budget[0] -= count
  if state.budget[0] < 0:
    raise Damaged('more data than the file has')


def _encode(state, text, encoding='latin1'):
  if encoding not in ('latin1', 'latin-1'):
    raise Damaged(f'text in {encoding!r:.20}')
  text = plain(text)
  _spend(state, len(text))
  return text.encode('latin1')


def _dtype(state, name, *flags):
  del state, flags  # align and copy
  name = str(name, 'latin1') if isinstance(name, bytes) else name
  if not _PLAIN.fullmatch(name):
    raise Damaged(f'an array of {name!r:.20}')
  return _DType(np.dtype(name))


def _new_array(state, kind, shape, code):
  del state, shape, code  # of an empty array, filled by BUILD
  if kind is not FUNCTIONS['numpy', 'ndarray']:
    raise Damaged('an array of another kind')
  return Array()


def _frombuffer(state, raw, dtype, shape, order, axes=None):
  del state
  array = _view(raw, dtype, shape, 'C' if order == 'K' else order)
  return Array(array.transpose(axes) if order == 'K' and axes is not None
               else array)


def _view(raw, dtype, shape, order):
  """Returns an array over bytes, after all has been checked.

  Args:
    raw: bytes or memoryview.
    dtype: _DType.
    shape: tuple of ints.
    order: 'C' or 'F'.
  """
  if not isinstance(raw, bytes | memoryview) or not isinstance(dtype, _DType):
    raise Damaged('an array of objects')
  if not (isinstance(shape, tuple) and all(
      type(n) is int and n >= 0 for n in shape)):
    raise Damaged('an array without a shape')
  if math.prod(shape) * dtype.dtype.itemsize != len(raw):
    raise Damaged(f'an array of {len(raw)} bytes where its shape takes others')
  flat = np.frombuffer(raw, dtype.dtype) if len(raw) else np.empty(
      0, dtype.dtype)
  return flat.reshape(shape, order={'C': 'C', 'F': 'F'}[order])


def _scalar(state, dtype, raw):
  _spend(state, len(raw))
  return _view(raw, dtype, (), 'C')[()]


def _range(state, *arguments):
  del state
  if not all(type(n) is int for n in arguments):
    raise Damaged('a range of other things than integers')
  return range(*arguments)


def _ordered(state, pairs=()):
  of_pairs = {}
  for key, value in pairs:  # as Python 2 had them
    _set_item(of_pairs, key, value)
  return of_pairs


def _default(state, factory=None):
  del state, factory  # no key is ever missing
  return {}


_FACTORIES = ('list', 'dict', 'set', 'int', 'float', 'str', 'tuple', 'bytes')
FUNCTIONS = {
    (module, name): Function(f'{module}.{name}', call)
    for modules, name, call in (
        (('_codecs',), 'encode', _encode),
        (('numpy',), 'dtype', _dtype),
        (('numpy',), 'ndarray', None),
        (('numpy.core.multiarray', 'numpy._core.multiarray'),
         '_reconstruct', _new_array),
        (('numpy.core.multiarray', 'numpy._core.multiarray'),
         'scalar', _scalar),
        (('numpy.core.numeric', 'numpy._core.numeric'),
         '_frombuffer', _frombuffer),
        (('collections',), 'OrderedDict', _ordered),
        (('collections',), 'defaultdict', _default),
        (('builtins', '__builtin__'), 'range', _range),
        (('builtins', '__builtin__'), 'xrange', _range),
        *((('builtins', '__builtin__'), name, None) for name in _FACTORIES))
    for module in modules}


# Actions: on the stack.


def _since_mark(state):
  """Takes from the stack what lies above the last mark."""
  start = state.marks.pop()
  items = state.stack[start:]
  del state.stack[start:]
  return items


def _top(state, kind):
  value = state.stack[-1]
  if type(value) is not kind:
    raise Damaged(f'a {type(value).__name__} in place of a {kind.__name__}')
  return value


def _is_key(key):
  return isinstance(key, str | bytes | int | float | np.generic)


def _set_item(of_keys, key, value):
  if not _is_key(key):
    raise Damaged(f'a key of type {type(key).__name__}')
  of_keys[key] = value


def _dict(state, raw):
  del raw
  items, of_keys = _since_mark(state), {}
  for key, value in zip(items[::2], items[1::2], strict=True):
    _set_item(of_keys, key, value)
  state.stack.append(of_keys)


def _set_items(state, raw):
  del raw
  items = _since_mark(state)
  for key, value in zip(items[::2], items[1::2], strict=True):
    _set_item(_top(state, dict), key, value)


def _set_one(state, raw):
  del raw
  key, value = _pop(state, 2)
  _set_item(_top(state, dict), key, value)


def _add_items(state, raw):
  del raw
  items = _since_mark(state)
  if not all(map(_is_key, items)):
    raise Damaged('a set of other things than text and numbers')
  _top(state, set).update(items)


def _append(state, raw):
  del raw
  value, = _pop(state, 1)
  _top(state, list).append(value)


def _append_all(state, raw):
  del raw
  items = _since_mark(state)
  _top(state, list).extend(items)


def _pop(state, count):
  """Takes `count` values from the stack, none from below the last mark."""
  start = len(state.stack) - count
  if start < (state.marks[-1] if state.marks else 0):
    raise Damaged('an opcode without its values')
  items = state.stack[start:]
  del state.stack[start:]
  return items


def _remember(key):
  def act(state, raw):
    state.memo[key(state, raw)] = state.stack[-1]
  return act


def _recall(key):
  return lambda state, raw: state.stack.append(state.memo[key(state, raw)])


def _find(state, module, name):
  if (module, name) not in state.functions:
    asked = f'{module}.{name}'[:80]
    raise UserError(
        f'asks for {asked if asked.isprintable() else ascii(asked)}, which is '
        'no data and may run any code')
  state.stack.append(state.functions[module, name])


def _text_of_stack(state):
  module, name = _pop(state, 2)
  if not isinstance(module, str) or not isinstance(name, str):
    raise Damaged('a name that is no text')
  return module, name


def _reduce(state, raw):
  del raw
  function, arguments = _pop(state, 2)
  if not isinstance(function, Function) or function.call is None:
    raise Damaged('a call of what is no function')
  if type(arguments) is not tuple:
    raise Damaged('a call without arguments')
  state.stack.append(function.call(state, *arguments))


def _new(state, raw):
  """Makes a value of a type, of those that may be made so."""
  function = state.stack[-2]
  if not isinstance(function, Function) or not function.is_type:
    raise Damaged('an object of another kind')
  _reduce(state, raw)


def _persistent(state, raw):
  del raw
  identifier, = _pop(state, 1)
  if state.persistent is None:
    raise Damaged('a value outside of the file')
  state.stack.append(state.persistent(identifier))


def _build(state, raw):
  """Gives an array its data, or a type its byte order."""
  del raw
  target, content = _pop(state, 2)
  state.stack.append(target)
  if isinstance(target, Array) and target.array is None:
    _, shape, dtype, fortran, data = content
    target.array = _view(data, dtype, shape, 'F' if fortran else 'C')
  elif isinstance(target, _DType):
    _, order, *more = content
    if more[:3] != [None] * 3:
      raise Damaged('an array of records')
    order = str(order, 'latin1') if isinstance(order, bytes) else order
    if order not in ('<', '>', '|', '='):
      raise Damaged('an array of an unknown byte order')
    target.dtype = target.dtype.newbyteorder(order)
  elif not isinstance(target, dict):  # whose attributes are of no use here
    raise Damaged(f'a state of a {type(target).__name__}')


def _line_key(state, raw):
  return _line_int(raw)


def _byte_key(state, raw):
  return _unsigned(raw)


def _next_key(state, raw):
  return len(state.memo)


def _push(make):
  """Returns the action that takes what follows the mark and pushes a value."""
  return lambda state, raw: state.stack.append(make(_since_mark(state)))


_ACTIONS = {
    'PROTO': lambda state, raw: None, 'FRAME': lambda state, raw: None,
    'MARK': lambda state, raw: state.marks.append(len(state.stack)),
    'POP': lambda state, raw: (
        state.marks.pop() if state.marks and state.marks[-1] == len(state.stack)
        else _pop(state, 1)),
    'POP_MARK': lambda state, raw: _since_mark(state),
    'DUP': lambda state, raw: state.stack.append(state.stack[-1]),
    'PUT': _remember(_line_key), 'BINPUT': _remember(_byte_key),
    'LONG_BINPUT': _remember(_byte_key), 'MEMOIZE': _remember(_next_key),
    'GET': _recall(_line_key), 'BINGET': _recall(_byte_key),
    'LONG_BINGET': _recall(_byte_key),
    'LIST': _push(list), 'TUPLE': _push(tuple), 'DICT': _dict,
    'TUPLE1': lambda state, raw: state.stack.append(tuple(_pop(state, 1))),
    'TUPLE2': lambda state, raw: state.stack.append(tuple(_pop(state, 2))),
    'TUPLE3': lambda state, raw: state.stack.append(tuple(_pop(state, 3))),
    'APPEND': _append, 'APPENDS': _append_all, 'SETITEM': _set_one,
    'SETITEMS': _set_items, 'ADDITEMS': _add_items,
    'GLOBAL': lambda state, raw: _find(
        state, *str(raw, 'latin1').split('\n')),
    'STACK_GLOBAL': lambda state, raw: _find(state, *_text_of_stack(state)),
    'REDUCE': _reduce, 'BUILD': _build, 'NEWOBJ': _new,
    'BINPERSID': _persistent,
}
