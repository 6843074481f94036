"""Hostile pickles of mini-ImageNet; reads each of them where nothing is lost.

As a program it reads all in one process and prints what became of each:
`python hostile_pickles.py FOLDER`.
"""

import collections
import pathlib
import pickle
import struct
import sys

import hostile_files
import mini_imagenet_fake as fake
import numpy as np

MUTATIONS = 50  # of each pickle in BASES
MARK = 'executed'  # a file that code in a pickle makes
IMAGES = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
CONTENT = {'image_data': IMAGES,
           'class_dict': {'n01': [0, 2], 'n02': [1, 3]}}
# What a pickle of protocol 4 or of Python 2 holds, before it is damaged.
BASES = {**{f'protocol {n}': pickle.dumps(CONTENT, n) for n in range(6)},
         'Python 2': fake.dump_python2(CONTENT)}


def text(value):
  """Pushes text."""
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def number(value):
  """Pushes an integer."""
  return b'J' + struct.pack('<i', value)


def raw(value):
  """Pushes bytes."""
  return b'B' + struct.pack('<I', len(value)) + value


ROWS = b'}' + text('n01') + b']K\x00as'  # of one class with one image


def many(*values):
  """Pushes a tuple."""
  return b'(' + b''.join(values) + b't'


def name(module, attribute):
  """Pushes what is looked up."""
  return f'c{module}\n{attribute}\n'.encode()


def call(function, *values):
  """Calls what was looked up."""
  return name(*function) + many(*values) + b'R'


def dtype(kind, *state):
  """Pushes a dtype; `state` is given to its __setstate__."""
  made = call(('numpy', 'dtype'), text(kind), b'\x89', b'\x88')
  return made + (many(*state) + b'b' if state else b'')


def array(kind, shape, data, fortran=b'\x89'):
  """Pushes an array, as pickles of all versions have it."""
  return (call(('numpy.core.multiarray', '_reconstruct'), NDARRAY,
               many(number(0)), raw(b'b'))
          + many(number(1), shape, kind, fortran, data) + b'b')


def whole(images, rows=ROWS):
  """Returns the pickle of a cache."""
  return (b'\x80\x04}(' + text('image_data') + images + text('class_dict')
          + rows + b'u.')


NDARRAY = name('numpy', 'ndarray')
SIZES = [number(n) for n in (1, 2, 2, 3)]
SHAPE, DATA, U1 = many(*SIZES), raw(bytes(12)), dtype('u1')
IMAGE = array(U1, SHAPE, DATA)
NONE3 = (b'N',) * 3
RECORD = (number(3), text('|'), b'N', many(text('a')),
          b'}' + text('a') + many(U1, number(0)) + b's', number(1), number(1),
          number(27))


def executes(folder):
  """Returns pickles that would make the file MARK if anything ran."""
  code = text(f'open({str(folder / MARK)!r}, "w")')
  shell = text(f'touch {folder / MARK}')
  arguments = many(shell)
  return {
      'os.system': call(('os', 'system'), shell),
      'posix.system': call(('posix', 'system'), shell),
      'subprocess': call(('subprocess', 'getoutput'), shell),
      'eval': call(('builtins', 'eval'), code),
      'exec of Python 2': call(('__builtin__', 'exec'), code),
      'INST': b'(' + shell + b'ios\nsystem\n',
      'OBJ': b'(' + name('os', 'system') + shell + b'o',
      'NEWOBJ': name('os', 'system') + arguments + b'\x81',
      'NEWOBJ_EX': name('os', 'system') + arguments + b'}\x92',
      'STACK_GLOBAL': text('os') + text('system') + b'\x93' + arguments + b'R',
      'a name with dots': text('numpy') + text('os.system') + b'\x93'
                          + arguments + b'R',
      'numpy.load': call(('numpy', 'load'), shell),
      'numpy runstring': call(('numpy.testing', 'runstring'), code, b'}'),
      'an attribute of a function': name('numpy', 'dtype') + b'}'
                                    + text('call') + name('os', 'system')
                                    + b'sb',
      'a function that replaces another': call(
          ('collections', 'defaultdict'), name('os', 'system')),
      'a codec that runs code': call(
          ('_codecs', 'encode'), text('x'), text('rot13')),
      'getattr': call(('builtins', 'getattr'), NDARRAY, text('tofile')),
      'EXT1': b'\x82\x01' + arguments + b'R',
      'EXT2': b'\x83\x01\x00' + arguments + b'R',
      'EXT4': b'\x84\x01\x00\x00\x00' + arguments + b'R',
      'a persistent id': shell + b'Q', 'a persistent line': b'Pos\n',
      'an out-of-band buffer': b'\x97', 'a read-only buffer': b'\x98'}


def arrays():
  """Returns arrays whose types or sizes are not those of their bytes."""
  state = lambda *values: NDARRAY + many(many(number(0)), raw(b'b')) + b'R' + (
      many(*values) + b'b')
  frombuffer = ('numpy._core.numeric', '_frombuffer')
  scalar = ('numpy.core.multiarray', 'scalar')
  return {
      'ndarray called': call(('numpy', 'ndarray'), SHAPE, text('O'), DATA),
      'ndarray, negative offset': call(
          ('numpy', 'ndarray'), SHAPE, U1, DATA, number(-4096)),
      'ndarray, negative strides': call(
          ('numpy', 'ndarray'), SHAPE, U1, DATA, number(0),
          many(*[number(-4096)] * 4)),
      'ndarray, large strides': call(
          ('numpy', 'ndarray'), SHAPE, U1, DATA, number(0),
          many(*[number(2**30)] * 4)),
      'ndarray by NEWOBJ': NDARRAY + many(SHAPE, text('O'), DATA) + b'\x81',
      'ndarray, a state': state(number(1), SHAPE, dtype('O'), b'\x89', DATA),
      'a state of the type itself': NDARRAY + many(
          number(1), SHAPE, U1, b'\x89', DATA) + b'b',
      'objects over bytes': array(dtype('O'), many(number(1)),
                                  raw(b'A' * 8)),
      'objects as O8': array(dtype('O8'), many(number(1)), raw(b'A' * 8)),
      'objects in a list': array(dtype('O'), many(number(1)), b']K\x01a'),
      'a buffer of objects': call(
          frombuffer, raw(b'A' * 8), dtype('O'), many(number(1)), text('C')),
      'a scalar of objects': call(scalar, dtype('O'), raw(b'A' * 8)),
      'a scalar that is too short': call(scalar, dtype('i8'), raw(b'A')),
      'a scalar that is too long': call(scalar, dtype('i2'), raw(b'A' * 9)),
      'too little data': array(U1, SHAPE, raw(bytes(11))),
      'too much data': array(U1, SHAPE, raw(bytes(13))),
      'no data': array(U1, SHAPE, b'N'), 'text as data': array(
          U1, SHAPE, text('x' * 12)),
      'an array as data': array(U1, SHAPE, IMAGE),
      'an array never filled': call(
          ('numpy.core.multiarray', '_reconstruct'), NDARRAY,
          many(number(0)), raw(b'b')),
      'filled twice': IMAGE + many(
          number(1), SHAPE, dtype('O'), b'\x89', DATA) + b'b',
      'reconstruct of a type': call(
          ('numpy.core.multiarray', '_reconstruct'), name('numpy', 'dtype'),
          many(number(0)), raw(b'b')),
      'a negative size': array(U1, many(number(-1), *SIZES[1:]), DATA),
      'two negative sizes': array(
          U1, many(number(-1), number(-4), number(1), number(3)), DATA),
      'huge sizes': array(U1, many(*[number(2**31 - 1)] * 4), DATA),
      'sizes that overflow to none': array(
          U1, many(*[number(2**16)] * 4), raw(b'')),
      'huge sizes and none': array(
          U1, many(number(0), *[number(2**31 - 1)] * 3), raw(b'')),
      'no pixels': array(U1, many(number(1), number(0), number(6), number(3)),
                         raw(b'')),
      'many axes': array(U1, many(*[number(1)] * 200), raw(b'x')),
      'a shape in a list': array(U1, b']K\x01a', raw(b'x')),
      'a shape of text': array(U1, many(text('1')), raw(b'x')),
      'a size of its own': array(U1, number(12), DATA),
      'an odd order': call(frombuffer, DATA, U1, SHAPE, text('A')),
      'odd axes': call(frombuffer, DATA, U1, SHAPE, text('K'),
                       many(*[number(9)] * 4)),
      'a buffer of an array': call(frombuffer, IMAGE, U1, SHAPE, text('C')),
      'a buffer of a type': call(frombuffer, NDARRAY, U1, SHAPE, text('C')),
  }


def types():
  """Returns arrays of types that are not plain."""
  of_kind = lambda kind: array(kind, SHAPE, DATA)
  return {
      'a record': of_kind(dtype('V1', *RECORD)),
      'a record made of u1': of_kind(dtype('u1', *RECORD)),
      'a type of names': of_kind(dtype('i4,O')),
      'a sub-array': of_kind(dtype(
          'V8', number(3), text('|'), many(dtype('O'), many(number(1))),
          *NONE3[1:], number(8), number(8), number(0))),
      'nested sub-arrays': of_kind(call(
          ('numpy', 'dtype'), many(many(U1, many(number(2))),
                                   many(number(2))))),
      'a type of a list': of_kind(call(
          ('numpy', 'dtype'), b'](' + many(text('a'), text('O')) + b'e')),
      'a type of a dict': of_kind(call(('numpy', 'dtype'), b'}')),
      'a type of an array': of_kind(call(('numpy', 'dtype'), IMAGE)),
      'objects by their flags': of_kind(dtype(
          'u1', number(3), text('|'), *NONE3, number(8), number(8),
          number(63))),
      'a size by its state': of_kind(dtype(
          'S1', number(3), text('|'), *NONE3, number(2**30), number(1),
          number(0))),
      'metadata': of_kind(dtype(
          'u1', number(4), text('|'), *NONE3, number(-1), number(-1),
          number(0), b'}' + text('a') + IMAGE + b's')),
      'an odd byte order': of_kind(dtype(
          'u1', number(3), text('&'), *NONE3, number(-1), number(-1),
          number(0))),
      'a state that is a number': of_kind(dtype('u1') + number(1) + b'b'),
      'a type of its own': of_kind(dtype('u1') + b'2b'),
      'strings of no size': of_kind(dtype('S0')),
      'huge strings': of_kind(dtype('S2147483647')),
      'dates': of_kind(dtype('M8[s]')), 'text as a type': of_kind(text('u1')),
      'no type': of_kind(b'N')}


def structures():
  """Returns opcodes that exhaust memory or the stack, or lack their values."""
  deep = 200_000
  nest = b')' + b'\x85' * deep
  doubled = b'K\x00' + b'2\x86' * 60
  text_64k = b'X' + struct.pack('<I', 2**16) + b'x' * 2**16
  again = name('_codecs', 'encode') + b'q\x00' + text_64k + b'q\x01000'
  return {
      'a deep list': whole(b']' * deep + b'a' * (deep - 1)),
      'a deep tuple': whole(nest),
      'a deep key': whole(b'}' + nest + b'K\x01s'),
      'a deep key of a class': whole(IMAGE, b'}' + nest + b']K\x00as'),
      'a deep member': whole(b'\x8f(' + nest + b'\x90'),
      'a deep dict': whole(b'}K\x00' * deep + b'}' + b's' * deep),
      'a deep row': whole(IMAGE, b'}' + text('n01') + b']' + nest + b'as'),
      'a tuple that doubles': whole(doubled),
      'a key that doubles': whole(b'}' + doubled + b'K\x01s'),
      'a list of itself': whole(IMAGE, b'}' + text('n01') + b']q\x00h\x00as'),
      'a dict of itself': whole(IMAGE, b'}q\x00' + text('n01') + b'h\x00s'),
      'text encoded often': whole(again + b'h\x00h\x01\x85R' * 20_000 + b'l'),
      'many opcodes': whole(b'(' + b']' * 3_000_000 + b'l'),
      'a long range': whole(IMAGE, b'}' + text('n01') + call(
          ('builtins', 'range'), b'\x8a\x08' + b'\xff' * 7 + b'\x3f') + b's'),
      'a range of text': whole(IMAGE, b'}' + text('n01') + call(
          ('builtins', 'range'), text('9')) + b's'),
      'rows of many classes': whole(
          IMAGE, b'}(' + b''.join(text(f'n{i}') + (
              b'](' + b'K\x00' * 1000 + b'eq\x00' if not i else b'h\x00')
                                  for i in range(5000)) + b'u'),
      'a huge LONG4': whole(b'\x8b' + struct.pack('<i', 2**31 - 1)),
      'a negative LONG4': whole(b'\x8b' + struct.pack('<i', -5)),
      'a long integer': whole(IMAGE, b'}' + text('n01') + b']\x8b'
                              + struct.pack('<i', 9000) + b'\x7f' * 9000
                              + b'as'),
      'a long line': whole(IMAGE, b'}' + text('n01') + b'](L' + b'7' * 9000
                           + b'L\nes'),
      'a huge BINBYTES8': whole(b'\x8e' + struct.pack('<Q', 2**62) + b'x'),
      'a large BINBYTES8': whole(b'\x8e' + struct.pack('<Q', 2**37) + b'x'),
      'a huge BYTEARRAY8': whole(b'\x96' + struct.pack('<Q', 2**40) + b'x'),
      'a huge BINUNICODE8': whole(b'\x8d' + struct.pack('<Q', 2**63) + b'x'),
      'a huge BINSTRING': whole(b'T' + struct.pack('<i', -1) + b'x'),
      'a huge FRAME': b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'}.',
      'a huge LONG_BINPUT': whole(b'r' + struct.pack('<I', 2**32 - 1)),
      'a huge PUT': whole(b'Kp' + b'9' * 5000 + b'\n'),
      'a negative PUT': whole(b'K\x01p-1\n'),
      'an unknown GET': whole(b'h\x07'), 'an unknown opcode': whole(b'\xff'),
      'a higher protocol': b'\x80\xff}.',
      'an empty stack': b'\x80\x04.', 'APPEND without a list': b'\x80\x04a.',
      'APPEND to a number': whole(b'K\x01K\x02a'),
      'APPEND to an array': whole(IMAGE + b'K\x02a'),
      'SETITEM on a list': whole(b']K\x01K\x02s'),
      'SETITEMS of three': whole(b'}(K\x01K\x02K\x03u'),
      'BUILD of a dict': whole(b'}}b'), 'BUILD of nothing': b'\x80\x04b.',
      'TUPLE without a mark': b'\x80\x04t.', 'POP of nothing': b'\x80\x040.',
      'POP_MARK of nothing': b'\x80\x041.', 'DUP of nothing': b'\x80\x042.',
      'below a mark': b'\x80\x04K\x01(\x85.',
      'REDUCE of nothing': b'\x80\x04R.',
      'REDUCE of a number': whole(b'K\x01)R'),
      'REDUCE without a tuple': whole(name('builtins', 'range') + b'K\x05R'),
      'REDUCE of a factory': whole(name('builtins', 'list') + b')R'),
      'REDUCE of too many': whole(call(
          ('numpy', 'dtype'))), 'text without quotes': whole(b'Sabc\n'),
      'text of an odd escape': whole(b"S'\\x'\n"),
      'UTF-8 that is none': whole(b'X\x02\x00\x00\x00\xff\xfe'),
      'a line without end': whole(b'I1'), 'no bytes': b'', 'one byte': b'\x80',
      'a class of two lines': whole(IMAGE, b'}' + text('n\n01') + b']K\x00as'),
      'a class of a surrogate': whole(
          IMAGE, b'}X\x03\x00\x00\x00\xed\xa0\x80]K\x00as'),
      'a class that is a number': whole(IMAGE, b'}K\x01]K\x00as'),
      'rows of floats': whole(IMAGE, b'}' + text('n01') + b']F1.5\nas'),
      'rows that are a number': whole(IMAGE, b'}' + text('n01') + b'K\x00s'),
      'rows that are None': whole(IMAGE, b'}' + text('n01') + b'Ns'),
      'rows that are text': whole(IMAGE, b'}' + text('n01') + text('0') + b's'),
      'rows that are a function': whole(
          IMAGE, b'}' + text('n01') + NDARRAY + b's'),
      'negative rows': whole(
          IMAGE, b'}' + text('n01') + b']J\xff\xff\xff\xffas'),
      'no dict of classes': whole(IMAGE, IMAGE),
      'keys of every kind': whole(IMAGE, b'}(NK\x01G' + bytes(8) + b'NK\x05'
                                  + b'Nu')}


def mutations():
  """Returns damaged copies of good pickles."""
  rng, damaged = np.random.default_rng(0), {}
  for base, content in BASES.items():
    for i in range(MUTATIONS):
      changed = bytearray(content)
      for at in rng.integers(0, len(content), rng.integers(1, 5)):
        at = int(at) % len(changed)
        kind = rng.integers(4)
        if kind == 0:
          changed[at] = rng.integers(256)
        elif kind == 1:
          changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
          del changed[at:at + int(rng.integers(1, 9))]
        else:
          changed[at:at] = content[:int(rng.integers(1, 60))]
        changed = changed or bytearray(b'.')
      damaged[f'{base}, {i}'] = bytes(changed)
    for i in range(0, len(content), max(1, len(content) // 10)):
      damaged[f'{base}, {i} bytes'] = content[:i]
  return damaged


def hostile(folder):
  """Returns name -> bytes of all hostile pickles."""
  direct = {**executes(folder), **arrays(), **types()}
  return {**{case: whole(images) for case, images in direct.items()},
          **{f'{case} among rows': whole(
              IMAGE, b'}' + text('n01') + images + b's')
             for case, images in direct.items()},
          **structures(), **mutations()}


def harmless():
  """Returns name -> bytes of pickles that must be read, with one content."""
  rows = CONTENT['class_dict']
  lists = collections.defaultdict(list, rows)
  ranges = {'n01': range(0, 4, 2), 'n02': range(1, 4, 2)}
  values = {
      'an OrderedDict': collections.OrderedDict(rows), 'a defaultdict': lists,
      'ranges': ranges, 'tuples': {k: tuple(v) for k, v in rows.items()},
      'arrays': {k: np.array(v) for k, v in rows.items()},
      'big-endian arrays': {k: np.array(v, '>i4') for k, v in rows.items()},
      'numbers of numpy': {k: list(np.array(v)) for k, v in rows.items()},
      'keys of numpy': {np.str_(k): v for k, v in rows.items()},
      'keys of bytes': {k.encode(): v for k, v in rows.items()}}
  made = {f'{case}, protocol {n}': pickle.dumps(
      collections.OrderedDict(CONTENT, class_dict=value), n)
          for case, value in values.items() for n in range(6)}
  for n in range(6):
    for case, images in (('Fortran', np.asfortranarray(IMAGES)),
                         ('axes', IMAGES.transpose(1, 0, 2, 3).copy(
                         ).transpose(1, 0, 2, 3))):
      made[f'{case}, protocol {n}'] = pickle.dumps(
          CONTENT | {'image_data': images}, n)
  pairs = name('collections', 'OrderedDict') + b'(](](' + text(
      'n01') + b'](K\x00K\x02ee](' + text('n02') + b'](K\x01K\x03eeetR'
  made['an OrderedDict of Python 2'] = pickle.dumps(CONTENT, 2).replace(
      pickle.dumps(rows, 2)[2:-1], pairs)
  return {**BASES, **made}


def read(file):
  """Reads a pickle: what it holds, 'UserError: line' or another error."""
  from mtl_jax.data import published
  from mtl_jax.data.sources.mini_imagenet import pickles
  from mtl_jax.errors import UserError
  try:
    images, ids = pickles.load_cache(published.File(file.parent, file.name))
  except UserError as error:
    return f'UserError: {error}'
  except BaseException as error:
    return f'{type(error).__name__}: {error}'
  images.copy()  # reads all of it
  if images.nbytes > file.stat().st_size:
    return 'reads outside of the file'
  if sorted(sum(ids.values(), [])) != list(range(len(images))):
    return 'other rows'
  return {'images': images.tolist(), 'ids': ids}


def main(folder):
  """Prints what is read of every case."""
  folder = pathlib.Path(folder)
  hostile_files.run(read, folder / 'mini-imagenet-cache-val.pkl',
                    BASES['protocol 4'], hostile(folder) | harmless())


if __name__ == '__main__':
  main(sys.argv[1])
