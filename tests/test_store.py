"""Stores: the kept pixels are the records', whole or not there at all."""

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import building
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError

DATA = 'glyphs/tiny'
KEPT = ('test.labels.npy', 'test.pixels.npy')


@pytest.fixture
def data(tmp_path):
  """Returns (data_dir, folder of the built data set) without kept pixels."""
  built = pathlib.Path(stores.prepare(DATA).data_path)
  folder = tmp_path / built.relative_to(built.parents[2])
  shutil.copytree(built, folder, ignore=shutil.ignore_patterns('*.npy'))
  return tmp_path, folder


def kept(folder):
  return tuple(sorted(p.name for p in folder.glob('test.*')))


def test_a_second_start_maps_what_the_first_one_decoded(data, monkeypatch):
  directory, folder = data
  first = stores.load(DATA, 'test', directory)
  assert kept(folder) == KEPT

  def decoded_again(*_, **__):
    raise AssertionError('decoded again')
  monkeypatch.setattr(Image, 'open', decoded_again)
  second = stores.load(DATA, 'test', directory)
  assert isinstance(second.images, np.memmap)
  np.testing.assert_array_equal(first.images, second.images)
  np.testing.assert_array_equal(first.offsets, second.offsets)
  assert first.class_names == second.class_names


def test_a_build_that_another_start_ends_meanwhile_is_read(data, monkeypatch):
  directory, folder = data
  make, away = building._builder, folder.with_name('away')
  folder.rename(away)

  def slow(*args, **options):
    builder = make(*args, **options)
    if away.exists():
      away.rename(folder)  # between the look and the read
    return builder
  monkeypatch.setattr(building, '_builder', slow)
  assert len(stores.load(DATA, 'test', directory).images)


def test_a_folder_without_records_is_named(data):
  directory, folder = data
  shutil.rmtree(folder)
  folder.mkdir()
  with pytest.raises(UserError, match=f'{folder}.*delete this folder'):
    stores.load(DATA, 'test', directory)


def test_a_start_that_fails_while_decoding_leaves_nothing(data, monkeypatch):
  directory, folder = data
  (folder / 'test.pixels.npy.77.tmp').write_bytes(b'killed')

  def stops(*_, **__):
    assert list(folder.glob('test.pixels.npy.*.tmp'))
    raise KeyboardInterrupt
  monkeypatch.setattr(Image, 'open', stops)
  with pytest.raises(KeyboardInterrupt):
    stores.load(DATA, 'test', directory)
  assert kept(folder) == ()
  monkeypatch.undo()
  stores.load(DATA, 'test', directory)
  assert kept(folder) == KEPT


def test_a_folder_that_takes_no_file_is_decoded_into_memory(data, monkeypatch):
  directory, folder = data

  def full(*_, **__):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(np.lib.format, 'open_memmap', full)
  store = stores.load(DATA, 'test', directory)
  assert kept(folder) == ()
  assert not isinstance(store.images, np.memmap)
  monkeypatch.undo()
  np.testing.assert_array_equal(
      store.images, stores.load(DATA, 'test', directory).images)


def test_kept_pixels_of_other_records_are_refused(data):
  directory, folder = data
  stores.load(DATA, 'test', directory)
  np.save(folder / 'test.labels.npy', np.zeros(3, int))
  with pytest.raises(UserError, match='delete this folder'):
    stores.load(DATA, 'test', directory)
