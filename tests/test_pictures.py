"""The one reader of pictures: nothing but an image is opened, and not too much.

Large pictures have tests of their own, test_pictures_large.py.
"""

import concurrent.futures
import io
import os
import re
import zipfile

import bad_pictures
import numpy as np
import pytest
from conftest import ROOT
from PIL import EpsImagePlugin, Image

from mtl_jax.data import pictures, published
from mtl_jax.errors import UserError

OPENED = re.compile(r'Image\s*\.\s*open\(|import.*\bopen\b.*PIL')


def test_pictures_are_opened_in_one_place():
  """Fails if a new reader lets Pillow choose among all of its decoders."""
  files = [path for folder in ('mtl_jax', 'benchmarks')
           for path in (ROOT / folder).rglob('*.py')]
  assert [path.name for path in files
          for _ in OPENED.findall(path.read_text())] == ['pictures.py']


# name -> reads the file at a path, as a room of the package does.
READERS = {
    'bytes': lambda path: pictures.decode(path.read_bytes()),
    'a file': lambda path: pictures.decode(path.open('rb')),
    'a picture to classify': lambda path: pictures.prepare(path, (8, 8, 3)),
    'pictures to classify': lambda path: pictures.read_query(
        str(path), ('a', 'b'), (8, 8, 3)),
    'an image of a folder': lambda path: pictures.look(path, (8, 8, 3)),
}


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
  """A program `gs` that only leaves a file; returns this file."""
  mark = tmp_path / 'started'
  program = tmp_path / 'bin/gs'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\n: > {mark}\n')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(program.parent), prepend=os.pathsep)
  monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)  # to be looked for
  return mark


@pytest.fixture(scope='module')
def postscript():
  file = io.BytesIO()
  Image.new('RGB', (8, 8)).save(file, 'EPS')
  return file.getvalue()


@pytest.mark.parametrize('name', READERS)
def test_no_reader_starts_a_program(name, ghostscript, postscript, tmp_path):
  path = tmp_path / 'x.jpg'
  path.write_bytes(postscript)
  with pytest.raises((UserError, pictures.NoImage), match='is no image'):
    READERS[name](path)
  assert not ghostscript.exists()


@pytest.mark.skipif(os.name == 'nt', reason='gs is a script')
def test_pillow_alone_would_start_it(ghostscript, postscript):
  """Fails if the test above could not fail."""
  with pytest.raises(OSError):
    Image.open(io.BytesIO(postscript)).load()
  assert ghostscript.exists()


@pytest.mark.parametrize('kind', [
    'ICO', 'PCX', 'SGI', 'TGA', 'PDF', 'SPIDER', 'DDS', 'ICNS'])
def test_formats_that_nobody_needs_are_not_read(kind):
  file = io.BytesIO()
  mode = 'F' if kind == 'SPIDER' else 'RGB'
  Image.new(mode, (16, 16)).save(file, kind)
  with pytest.raises(pictures.NoImage):
    pictures.decode(file.getvalue())


def test_a_png_of_many_pixels_is_refused_by_its_head():
  """Fails if pixels are decoded before they are counted."""
  with pytest.raises(pictures.Unreadable,
                     match='64000000 pixels, more than 32000000'):
    pictures.decode(bad_pictures.bomb(8000))


def test_a_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
  """Fails if a zip of a few kilobytes can fill the memory."""
  (tmp_path / 'images').mkdir()
  loose = tmp_path / 'images/x.png'
  loose.write_bytes(bytes(5000))
  with zipfile.ZipFile(tmp_path / 'images.zip', 'w',
                       zipfile.ZIP_DEFLATED) as archive:
    archive.write(loose, 'images/x.png')
  in_folder, in_zip = published.look(tmp_path, ('.png',)).files
  assert in_folder.image() == in_zip.image() == in_zip.read() == bytes(5000)
  assert not in_folder.zip and in_zip.zip
  monkeypatch.setattr(pictures, '_ENCODED', 4999)
  monkeypatch.setattr(published, '_LARGEST', 4999)
  for read in (in_folder.image, in_zip.image, in_zip.read):
    with pytest.raises(pictures.Unreadable, match='more than'):
      read()


def picture(path, mode, orientation=None, size=(40, 30)):
  exif = Image.Exif()
  if orientation:
    exif[0x0112] = orientation
  Image.new(mode, size, 9).save(path, exif=exif)
  return path


@pytest.mark.parametrize('large', [False, True])
@pytest.mark.parametrize('name, mode, orientation, seen', [
    ('x.jpg', 'RGB', None, (30, 40, False)), ('x.jpg', 'L', 6, (40, 30, True)),
    ('x.png', 'L', 3, (30, 40, True)), ('x.png', 'RGBA', 8, (40, 30, False)),
    ('x.tif', '1', 5, (40, 30, True)), ('x.png', 'LA', None, (30, 40, True))])
def test_a_look_sees_the_size_of_the_file_as_it_is_turned(
    name, mode, orientation, seen, large, tmp_path, monkeypatch):
  path = picture(tmp_path / name, mode, orientation)
  if large:
    monkeypatch.setattr(pictures, 'LARGE', 1000)
  assert pictures.look(path, (4, 4, 1)) == (*seen, None)


@pytest.mark.parametrize('large', [False, True])
def test_a_look_decodes_the_whole(large, tmp_path, monkeypatch):
  path = tmp_path / 'x.jpg'
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  Image.fromarray(noise).save(path)
  path.write_bytes(path.read_bytes()[:-500])
  if large:
    monkeypatch.setattr(pictures, 'LARGE', 1000)
  with pytest.raises(UserError, match='x.jpg cannot be read .*truncated'):
    pictures.look(path, (4, 4, 1))


def test_threads_share_the_memory_of_one(tmp_path, monkeypatch):
  """Fails if each core decodes a picture that takes much memory."""
  pool, workers = concurrent.futures.ThreadPoolExecutor, []
  monkeypatch.setattr(concurrent.futures, 'ThreadPoolExecutor',
                      lambda count: workers.append(count) or pool(count))
  monkeypatch.setattr(os, 'cpu_count', lambda: 8)
  monkeypatch.setattr(pictures, '_AT_ONCE', 1900)
  paths = [picture(tmp_path / f'{i}.png', 'L', size=(30, 30))
           for i in range(9)]
  names = [path.name for path in paths]
  assert pictures.in_threads(lambda path: path.name, paths) == names
  assert workers == [2]
