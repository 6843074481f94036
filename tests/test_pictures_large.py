"""Pictures that are too large to be read as they are, and odd numbers of bits.

Memory is what a fresh process needed, so that no other test is counted.
"""

import os
import struct
import subprocess
import sys

import bad_pictures
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mtl_jax.data import pictures
from mtl_jax.errors import UserError

SHAPE = (16, 16, 3)


def smooth(mode, size=(900, 700)):
  """Returns a picture without edges, the same for every decoder."""
  across, down = np.meshgrid(np.linspace(0, 1, size[0]),
                             np.linspace(0, 1, size[1]))
  colours = np.stack([across, down, across * down], -1) * 255
  image = Image.fromarray(colours.astype(np.uint8))
  if mode == 'RGBA':
    image.putalpha(Image.fromarray((255 * down).astype(np.uint8)))
  return image.convert(mode)


@pytest.mark.parametrize('mode, name', [
    ('RGB', 'x.jpg'), ('L', 'x.jpg'), ('RGB', 'x.png'), ('RGBA', 'x.png'),
    ('P', 'x.gif'), ('1', 'x.png'), ('RGB', 'x.tif'), ('RGB', 'x.webp')])
def test_a_large_picture_is_shrunk_to_what_it_would_be_whole(
    mode, name, tmp_path, monkeypatch):
  """Fails if shrinking loses the crop, the orientation or transparency."""
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = {} if name.endswith('gif') else {'exif': exif}
  smooth(mode).save(tmp_path / name, **turned)
  whole = pictures.prepare(tmp_path / name, SHAPE)
  monkeypatch.setattr(pictures, 'LARGE', 1000)
  decoded = []
  shrunk = pictures._shrunk
  monkeypatch.setattr(pictures, '_shrunk', lambda *given: decoded.append(
      shrunk(*given)) or decoded[-1])
  small = pictures.prepare(tmp_path / name, SHAPE)
  assert min(decoded[0][0].size) < 700
  np.testing.assert_allclose(small.astype(int), whole, atol=6)


def test_sixteen_bits_are_shrunk_with_their_range(tmp_path, monkeypatch):
  values = np.linspace(0, 4095, 200 * 200).reshape(200, 200)
  Image.fromarray(values.astype(np.uint16)).save(tmp_path / 'x.tif')
  whole = pictures.prepare(tmp_path / 'x.tif', (16, 16, 1))
  assert whole.max() > 240
  monkeypatch.setattr(pictures, 'LARGE', 1000)
  small = pictures.prepare(tmp_path / 'x.tif', (16, 16, 1))
  np.testing.assert_allclose(small.astype(int), whole, atol=2)


def test_a_jpeg_beyond_pillows_limit_is_read_in_little_memory(tmp_path):
  """Fails if a scan of a map takes gigabytes, or is called a bomb."""
  Image.new('L', (14000, 13000), 100).save(tmp_path / 'x.jpg')
  script = (
      'import resource, sys\n'
      'from mtl_jax.data import pictures\n'
      'used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
      'before = used()\n'
      'image = pictures.prepare(sys.argv[1], (16, 16, 3))\n'
      'print(image.min(), image.max(), used() - before)\n')
  done = subprocess.run(
      [sys.executable, '-c', script, str(tmp_path / 'x.jpg')], check=True,
      capture_output=True, text=True, env={**os.environ,
                                           'PYTHONPATH': str(ROOT)})
  least, most, kilobytes = map(int, done.stdout.split())
  assert (least, most) == (100, 100)
  assert kilobytes < 100_000


def test_what_cannot_be_shrunk_while_it_is_decoded_gets_one_line(
    tmp_path, monkeypatch):
  (tmp_path / 'bomb.png').write_bytes(bad_pictures.BOMB)
  with pytest.raises(UserError, match='bomb.png cannot be read .it has more '
                     'than 179 million pixels, which only a JPEG'):
    pictures.prepare(tmp_path / 'bomb.png', SHAPE)
  monkeypatch.setattr(pictures, 'LARGE', 1000)
  monkeypatch.setattr(pictures, '_DECODED', 200_000)
  for name, options in [('x.png', {}), ('x.jpg', {'progressive': True})]:
    smooth('RGB').save(tmp_path / name, **options)
    with pytest.raises(UserError, match=f'{name} cannot be read .it would '
                       'take .* GB: save it smaller'):
      pictures.prepare(tmp_path / name, SHAPE)
  smooth('RGB').save(tmp_path / 'plain.jpg')
  pictures.prepare(tmp_path / 'plain.jpg', SHAPE)


def test_large_and_small_pictures_keep_their_order(tmp_path, monkeypatch):
  monkeypatch.setattr(pictures, 'LARGE', 1000)
  for i in range(6):
    Image.new('L', (20 + 30 * (i % 2),) * 2, 10 * i).save(tmp_path / f'{i}.png')
  read = pictures.load(pictures.list_query(tmp_path), ('a', 'b'), (8, 8, 1))
  assert read.images.max((1, 2, 3)).tolist() == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize('dtype, most, guess', [
    ('uint16', 4095, 12), ('uint16', 3000, 12), ('uint16', 200, 8),
    ('uint16', 16383, 14), ('uint16', 65535, None), ('int32', 4095, 12),
    ('int32', 255, 8), ('int32', 65535, None), ('uint16', 0, None)])
def test_a_tiff_has_the_range_of_its_bits_and_says_so(
    dtype, most, guess, tmp_path):
  """Fails if a camera's 12 bits in 16 become black without a word."""
  values = np.linspace(0, most, 16 * 16).reshape(16, 16).astype(dtype)
  Image.fromarray(values).save(tmp_path / 'x.tif')
  read = pictures.load(pictures.list_query(tmp_path), ('a', 'b'), (16, 16, 1))
  np.testing.assert_array_equal(
      read.images[0, ..., 0], values // 2**((guess or 16) - 8))
  lines = pictures.guesses(read.files, read.guessed)
  if guess is None:
    assert not lines
  else:
    assert f'1 images have 16 bits or more per pixel and use {guess}' in (
        lines[0])
    assert 'x.tif' in lines[0]


@pytest.mark.parametrize('order', '<>')
def test_a_tiff_may_have_either_order_of_bytes(order, tmp_path):
  """Fails if a microscope's big-endian picture is refused."""
  values = np.linspace(0, 4095, 64).reshape(8, 8).astype(f'{order}u2')
  (tmp_path / 'x.tif').write_bytes(tiff(values.tobytes(), 16, 1, order))
  np.testing.assert_array_equal(
      pictures.prepare(tmp_path / 'x.tif', (8, 8, 1))[..., 0], values // 16)
  assert pictures.look(tmp_path / 'x.tif', (8, 8, 1)) == (8, 8, True, 12)


def test_sixteen_bits_whose_largest_is_black_are_refused(tmp_path):
  """Fails if they are read as a negative."""
  values = np.linspace(0, 65535, 64).astype('<u2').tobytes()
  (tmp_path / 'x.tif').write_bytes(tiff(values, 16, 1, white_is_zero=True))
  with pytest.raises(UserError, match='its largest value is black'):
    pictures.prepare(tmp_path / 'x.tif', (8, 8, 1))


@pytest.mark.parametrize('values, line', [
    (np.full((9, 9), 70_000, np.int32), 'integers of 32 bits'),
    (np.full((9, 9), -1, np.int32), 'integers of 32 bits'),
    (np.full((9, 9), 0.5, np.float32), 'pixels are floats')])
def test_pixels_without_a_range_are_refused(values, line, tmp_path):
  Image.fromarray(values).save(tmp_path / 'x.tif')
  with pytest.raises(UserError, match=f'x.tif cannot be read .*{line}'):
    pictures.prepare(tmp_path / 'x.tif', SHAPE)


def tiff(pixels, bits, channels, order='<', white_is_zero=False):
  """Returns the bytes of a TIFF of 8 x 8 pixels that are packed already."""
  entries = [(256, 3, 1, 8), (257, 3, 1, 8), (259, 3, 1, 1),
             (262, 3, 1, 2 if channels == 3 else 1 - white_is_zero),
             (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, 8),
             (279, 4, 1, len(pixels))]
  after = 8 + len(pixels)
  if channels == 1:
    entries.append((258, 3, 1, bits))
  else:
    entries.append((258, 3, 3, after))
    pixels, after = pixels + struct.pack('<3H', *(bits,) * 3), after + 6
  pack = lambda form, *values: struct.pack(order + form, *values)
  # A short number stands in the first two of its four bytes.
  entry = lambda tag, kind, count, value: pack('HHI', tag, kind, count) + (
      pack('HH', value, 0) if (kind, count) == (3, 1) else pack('I', value))
  return ((b'II*\0' if order == '<' else b'MM\0*') + pack('I', after) + pixels
          + pack('H', len(entries))
          + b''.join(entry(*e) for e in sorted(entries)) + b'\0\0\0\0')


def test_twelve_bits_that_a_tiff_states_are_no_guess(tmp_path):
  pair = 0x123 << 12 | 0xabc  # two pixels in three bytes
  (tmp_path / 'x.tif').write_bytes(tiff(pair.to_bytes(3, 'big') * 32, 12, 1))
  read = pictures.load(pictures.list_query(tmp_path), ('a', 'b'), (8, 8, 1))
  assert read.images[0, 0, :2, 0].tolist() == [0x12, 0xab]
  assert read.guessed == (None,)


def test_colours_of_twelve_bits_in_sixteen_are_refused(tmp_path):
  """Fails if they are black: of 16 bits Pillow keeps the upper 8."""
  for most, name in ((4095, 'twelve.tif'), (65535, 'sixteen.tif')):
    pixels = np.linspace(0, most, 192).astype('<u2').tobytes()
    (tmp_path / name).write_bytes(tiff(pixels, 16, 3))
  assert pictures.prepare(tmp_path / 'sixteen.tif', (8, 8, 3)).max() == 255
  with pytest.raises(UserError, match='uses 12 of its 16 bits per channel'):
    pictures.prepare(tmp_path / 'twelve.tif', (8, 8, 3))


def test_names_are_text_whatever_their_bytes_are(tmp_path):
  folder = os.fsencode(tmp_path)
  for name in (b'caf\xe9', b'two\nlines'):
    os.mkdir(folder + b'/' + name)
    Image.new('L', (9, 9)).save(
        os.fsdecode(folder + b'/' + name + b'/\xe9.png'))
  files = pictures.list_support(tmp_path)
  assert files.labels == ['caf\\xe9', 'two\\nlines']
  read = pictures.load(files, sorted(files.labels), (8, 8, 1))
  assert read.files[0] == f'{tmp_path}/caf\\xe9/\\xe9.png'
  assert pictures.text('Ünï 猫/x') == 'Ünï 猫/x'


def test_the_home_folder_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  for name in 'ab':
    (tmp_path / 'known' / name).mkdir(parents=True)
    Image.new('L', (9, 9)).save(tmp_path / 'known' / name / 'x.png')
  assert len(pictures.list_support('~/known').paths) == 2
  assert len(pictures.list_query(['~/known/a/x.png']).paths) == 1
