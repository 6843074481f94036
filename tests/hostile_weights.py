"""Hostile files of weights; reads each of them where nothing is lost.

As a program it reads all in one process and prints what became of each:
`python hostile_weights.py FOLDER`.
"""

import io
import json
import pathlib
import pickle
import struct
import sys
import zipfile
import zlib

import hostile_files
import numpy as np
from hostile_pickles import (
  MARK,
  call,
  executes,
  many,
  name,
  number,
  structures,
  text,
)
from make_torch_weights import PATH

MUTATIONS = 60  # of each good file
REBUILD = ('torch._utils', '_rebuild_tensor_v2')
ORDERED = call(('collections', 'OrderedDict'))
STORED = bytes(16)  # of data/0, four numbers


def good():
  """Returns name -> bytes of files that are read."""
  with zipfile.ZipFile(PATH) as archive:
    files = {n: archive.read(n) for n in ('cnn4.pth', 'features.npz')}
  header = json.dumps({'a': {'dtype': 'F32', 'shape': [2, 2],
                             'data_offsets': [0, 16]}}).encode()
  files['a.safetensors'] = len(header).to_bytes(8, 'little') + header + STORED
  return files


def archive(pickled, entries=None, **options):
  """Returns a file as torch.save writes it, around the bytes of a pickle."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', **options) as packed:
    packed.writestr('a/data.pkl', pickled)
    for key, content in (entries or {'data/0': STORED}).items():
      packed.writestr(f'a/{key}', content)
  return file.getvalue()


def whole(value):
  """Returns the pickle of {'layer1.0.conv1.weight': value}."""
  return b'\x80\x02}' + text('layer1.0.conv1.weight') + value + b's.'


def storage(kind='FloatStorage', key=None, count=4):
  """Pushes a storage."""
  return many(text('storage'), name('torch', kind), key or text('0'),
              text('cpu'), number(count)) + b'Q'


def tensor(shape, strides, offset=0, of=None):
  """Pushes a tensor."""
  numbers = lambda values: many(*map(number, values))
  return call(REBUILD, of or storage(), number(offset), numbers(shape),
              numbers(strides), b'\x89', ORDERED)


def torch_pickles(folder):
  """Returns hostile pickles in archives of torch.save."""
  large = 2**31 - 1
  values = {
      **executes(folder),
      'huge': tensor([large] * 3, [1, 1, 1]),
      'huge, all of one number': tensor([large] * 3, [0, 0, 0]),
      'one of many numbers': tensor([5], [0]),
      'behind its storage': tensor([2], [1], 3),
      'before its storage': tensor([2], [1], -1),
      'backwards': tensor([2], [-1], 1), 'negative': tensor([-2], [1]),
      'far apart': tensor([2, 2], [1, 100]), 'axes': tensor([2], [1, 1]),
      'many axes': tensor([1] * 200, [1] * 200),
      'another count': tensor([2], [1], 0, storage(count=400)),
      'a negative count': tensor([2], [1], 0, storage(count=-4)),
      'no storage': tensor([2], [1], 0, text('0')),
      'a storage of nothing': tensor([2], [1], 0, storage(key=text('1'))),
      'a storage elsewhere': tensor([2], [1], 0, storage(
          key=text('../../../etc/passwd'))),
      'a storage by number': tensor([2], [1], 0, storage(key=number(0))),
      'a storage of a pickle': tensor([2], [1], 0, storage(
          key=text('../data.pkl'))),
      'an unknown storage': tensor([2], [1], 0, storage('ComplexFloatStorage')),
      'a storage of os': many(
          text('storage'), name('os', 'system'), text('0'), text('cpu'),
          number(4)) + b'Q',
      'a module': many(text('module'), name('torch', 'FloatStorage'),
                       text('0'), text('cpu'), number(4)) + b'Q',
      'an identifier of text': text('storage') + b'Q',
      'a called storage': call(('torch', 'FloatStorage'), number(10**6)),
      'a new storage': name('torch', 'FloatStorage') + many(
          number(10**6)) + b'\x81',
      'a tensor by NEWOBJ': name(*REBUILD) + many(storage()) + b'\x81',
      'a parameter of code': call(
          ('torch._utils', '_rebuild_parameter'), name('os', 'system')),
      'a hub': call(('torch.hub', 'load'), text('a/b')),
      'torch.load': call(('torch', 'load'), text('b.pth')),
      'a namespace of code': name('argparse', 'Namespace') + b')\x81}' + text(
          'a') + name('os', 'system') + b'sb',
      'getattr of a module': call(('torch', 'FloatStorage.__init__')),
      'shared by many tensors': b'(' + storage() + b'q\x00' + (
          tensor([4], [1], of=b'h\x00') * 20_000) + b'l'}
  return {**{case: archive(whole(value)) for case, value in values.items()},
          **{case: archive(value) for case, value in structures().items()}}


def shared():
  """Returns the file of many tensors that share all its numbers."""
  numbers = tensor([250_000], [1], of=b'h\x00')
  entries = b''.join(text(f'{i}.layer1.0.conv1.weight') + numbers
                     for i in range(2_000))
  return archive(b'\x80\x02' + storage(count=250_000) + b'q\x000}(' + entries
                 + b'u.', {'data/0': bytes(10**6)})


def patched(content, at, fmt, value):
  """Returns bytes with a number put over others."""
  size = struct.calcsize(fmt)
  return content[:at] + struct.pack(fmt, value) + content[at + size:]


def archives():
  """Returns files whose zip is hostile."""
  plain = archive(whole(tensor([4], [1])))
  # The first entry of the central directory: its flags and sizes.
  first = plain.index(b'PK\x01\x02')
  bomb = io.BytesIO()
  with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as packed:
    with packed.open('a.npy', 'w') as file:
      file.write(npy_header((200 * 2**20,), '|u1'))
      for _ in range(200):
        file.write(bytes(2**20))
  zeros = zlib.compress(bytes(50 * 2**20))
  lying = io.BytesIO()
  with zipfile.ZipFile(lying, 'w', zipfile.ZIP_DEFLATED) as packed:
    packed.writestr('a.npy', bytes(50 * 2**20))
  lying = lying.getvalue()
  at = lying.index(b'PK\x01\x02')
  overlapping = plain[:first] + plain[first:plain.index(b'PK\x05\x06')] * 300
  overlapping += struct.pack('<4s4H2LH', b'PK\x05\x06', 0, 0, 600, 600,
                             len(overlapping) - first, first, 0)
  return {
      'compressed': archive(whole(tensor([4], [1])),
                            compression=zipfile.ZIP_DEFLATED),
      'a bomb as a storage': archive(
          whole(tensor([4], [1], of=storage(count=12 * 2**20))),
          {'data/0': bytes(48 * 2**20)}, compression=zipfile.ZIP_DEFLATED),
      'a bomb': bomb.getvalue(), 'a bomb in bzip2': npz(
          bytes(10**6), compression=zipfile.ZIP_BZIP2),
      'a size that lies': patched(lying, at + 24, '<L', 10),
      'a huge entry': patched(plain, first + 24, '<L', 2**32 - 2),
      'two huge entries': patched(patched(
          plain, first + 24, '<L', 2**31), first + 20, '<L', 2**31),
      'encrypted': patched(plain, first + 8, '<H', 1),
      'entries that overlap': overlapping, 'tensors that share': shared(),
      'no storage': archive(whole(tensor([4], [1])), {'other': b''}),
      'no dictionary': archive(b'\x80\x02]K\x01a.'),
      'an empty archive': struct.pack('<4s4H2LH', b'PK\x05\x06', *[0] * 7),
      'other files': archive(b'', {}).replace(b'data.pkl', b'data.txt'),
      'zlib': zeros[:1000], 'a word': b'PK'}


def npy_header(shape, descr):
  """Returns what an .npy begins with."""
  text = repr({'descr': descr, 'fortran_order': False, 'shape': shape})
  text = text.ljust(117).encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text


def npz(content, **options):
  """Returns an .npz with one .npy."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', **options) as packed:
    packed.writestr('layer1.0.conv1.weight.npy', content)
  return file.getvalue()


def arrays(folder):
  """Returns hostile .npz files."""

  class Run:
    def __reduce__(self):
      return (open, (str(folder / MARK), 'w'))

  return {f'npz, {case}': npz(content) for case, content in {
      'objects': npy_header((1,), '|O') + pickle.dumps([Run()]),
      'huge': npy_header((2**40, 2**20), '<f4'), 'negative': npy_header(
          (-1,), '<f4'), 'overflow': npy_header((2**32, 2**32), '<f8'),
      'too short': npy_header((4,), '<f4') + bytes(15),
      'too long': npy_header((4,), '<f4') + bytes(17),
      'a record': npy_header((1,), [('a', '|O')]) + bytes(8),
      'code': b'\x93NUMPY\x01\x00\x40\x00' + b'__import__("os")'.ljust(64),
      'a pickle': pickle.dumps(Run()), 'nothing': b''}.items()}


def tensors():
  """Returns hostile safetensors."""
  def file(header, size=None, values=STORED):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if size is None else size).to_bytes(
        8, 'little') + raw + values

  entry = {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}
  change = lambda **changes: file({'a': entry | changes})
  deep = b'{"a":' + b'[' * 200_000
  return {f'safetensors, {case}': content for case, content in {
      'a long header': file({'a': entry}, 2**62),
      'a header of no size': file({'a': entry}, 0),
      'deep': file(deep), 'a list': file(b'{[]}'), 'no entry': file({'a': 3}),
      'huge': change(shape=[2**40, 2**40]),
      'overflow': change(shape=[2**32, 2**32, 2]),
      'negative': change(shape=[-2, -2]), 'a number': change(shape=4),
      'text': change(shape=['2', '2']), 'outside': change(
          data_offsets=[8, 24]), 'before': change(data_offsets=[-16, 0]),
      'backwards': change(data_offsets=[16, 0]),
      'too small': change(data_offsets=[0, 12]),
      'another type': change(dtype='F8_E4M3'), 'no type': change(dtype=[]),
      'objects': change(dtype='O')}.items()}


def others():
  """Returns files of other formats."""
  return {'nothing': b'', 'zeros': bytes(1000), 'a page': b'<!DOCTYPE html>',
          'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(100),
          'a pickle': pickle.dumps({'a': 1}, 2),
          'a tar': bytes(257) + b'ustar' + bytes(250)}


def mutations():
  """Returns damaged copies of good files."""
  rng, damaged = np.random.default_rng(0), {}
  for base, content in good().items():
    for i in range(MUTATIONS):
      changed = bytearray(content)
      for at in rng.integers(0, len(content), rng.integers(1, 5)):
        if rng.integers(2):
          changed[at % len(changed)] = rng.integers(256)
        else:
          del changed[at:at + int(rng.integers(1, 9))]
      damaged[f'{base}, {i}'] = bytes(changed)
    for i in range(1, len(content), max(1, len(content) // 12)):
      damaged[f'{base}, {i} bytes'] = content[:i]
  return damaged


def doubled(levels=60):
  """Returns a file of 2**60 dictionaries, each one twice in the next."""
  inner = {}
  for _ in range(levels):
    inner = {'a': inner, 'b': inner}
  return archive(pickle.dumps(inner, 2))


def hand_made(folder):
  """Returns name -> bytes of all hostile files but the mutations."""
  return {'doubled': doubled(), **torch_pickles(folder), **archives(),
          **arrays(folder), **tensors(),
          **others()}


def read(file):
  """Reads a file: how many arrays, 'UserError: line' or another error."""
  from mtl_jax import weight_files
  from mtl_jax.errors import UserError
  try:
    arrays = weight_files.read(file).arrays
  except UserError as error:
    return f'UserError: {error}'
  except BaseException as error:
    return f'{type(error).__name__}: {error}'
  if sum(array.nbytes for array in arrays.values()) > max(
      20 * file.stat().st_size, 10**6):
    return 'more than the file holds'
  for array in arrays.values():
    array.copy()  # reads all of it
  return len(arrays)


def main(folder):
  """Prints what is read of every case."""
  folder = pathlib.Path(folder)
  hostile_files.run(read, folder / 'weights.pth', good()['cnn4.pth'],
                    {**hand_made(folder), **mutations(), **good()})


if __name__ == '__main__':
  main(sys.argv[1])
