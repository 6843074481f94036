"""Stores: the kept pixels are the records', whole or not there at all."""

import pathlib
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import building, sources
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


@pytest.mark.parametrize('content', ['', '{', '[]', chr(0) * 20])
@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
def test_a_damaged_description_gets_one_line(file, content, data):
  """Fails if it ends in a traceback of TFDS."""
  directory, folder = data
  (folder / file).write_text(content)
  with pytest.raises(UserError, match='cannot be read .* build the data set'):
    stores.load(DATA, 'test', directory)


def test_a_lost_file_of_names_is_missed(data):
  """Fails if classes are called by numbers, as TFDS does then."""
  directory, folder = data
  (folder / 'label.labels.txt').unlink()
  with pytest.raises(UserError, match='cannot be read .*label.labels.txt'):
    stores.load(DATA, 'test', directory)


def test_names_that_are_lost_are_missed(data):
  directory, folder = data
  file = folder / 'label.labels.txt'
  file.write_text(''.join(file.read_text().splitlines(True)[:3]))
  with pytest.raises(UserError, match='and names of 3 classes'):
    stores.load(DATA, 'test', directory)


def test_a_name_that_is_twice_in_a_class_names_no_image(data, monkeypatch):
  """Fails if tasks that were written are read as other images."""
  directory, _ = data
  store = stores.load(DATA, 'test', directory)
  records = [{'label': m, 'file_name': b'a/0.png'}
             for m, n in enumerate(np.diff(store.offsets)) for _ in range(n)]
  built = types.SimpleNamespace(info=types.SimpleNamespace(
      features={'file_name': None}))
  monkeypatch.setattr(stores, 'builder', lambda *_: built)
  monkeypatch.setattr(stores.pixels, 'records', lambda *_: records)
  monkeypatch.setattr(stores.pixels, 'each', lambda found: found)
  size = int(store.offsets[1])
  assert stores.image_names(store, directory)[:size] == [
      str(i) for i in range(size)]


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


def rewrite(change):
  """Returns what puts another array into a kept file."""
  return lambda path: np.save(path, change(np.load(path)))


@pytest.mark.parametrize('part', ['pixels', 'labels'])
@pytest.mark.parametrize('damage', [
    lambda path: path.unlink(), lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(path.read_bytes()[:300]),
    lambda path: path.write_bytes(b'\0' * 999),
    rewrite(lambda kept: kept[:-3]), rewrite(lambda kept: kept.astype('f4')),
    rewrite(lambda kept: kept[::-1].astype(object))],
    ids=['deleted', 'empty', 'cut off', 'zeros', 'of other records',
         'of another type', 'a pickle'])
def test_kept_files_that_are_deleted_or_damaged_are_made_again(
    damage, part, data):
  """Fails if the data must be built again, from files a user may not have."""
  directory, folder = data
  whole = stores.load(DATA, 'test', directory)
  whole = whole._replace(images=np.array(whole.images))
  damage(folder / f'test.{part}.npy')
  again = stores.load(DATA, 'test', directory)
  np.testing.assert_array_equal(again.images, whole.images)
  np.testing.assert_array_equal(again.offsets, whole.offsets)
  assert isinstance(again.images, np.memmap) and kept(folder) == KEPT


@pytest.mark.parametrize('content', [
    '', '{}', '[]', 'null', '{"mean": [0.1]}', '{"mean": [0.1], "std": null}',
    '{"mean": [NaN], "std": [1]}', '{"mean": [1, 2], "std": [1, 2]}',
    '{"mean": [0.1], "std": [0]}', '[' * 10**5], ids=range(10))
def test_constants_that_are_damaged_are_measured_again(content, data):
  directory, folder = data
  built = stores.builder(DATA, directory)
  source = sources.find(DATA).source._replace(mean=None, std=None)
  wanted = stores._normalisation(source, built)
  (folder / stores.MEASURED).write_text(content)
  np.testing.assert_array_equal(stores._normalisation(source, built), wanted)


def test_a_constant_channel_is_not_scaled(data, monkeypatch, capsys):
  """Fails if a colour that no image has makes every number NaN."""
  directory, folder = data
  built = stores.builder(DATA, directory)
  source = sources.find(DATA).source._replace(mean=None, std=None)
  monkeypatch.setattr(stores.pixels, 'mean_and_std',
                      lambda images: (np.array([.5]), np.array([0.])))
  (folder / stores.MEASURED).unlink(missing_ok=True)
  assert stores._normalisation(source, built) == (np.array([.5]), [1.])
  assert capsys.readouterr().err == (
      'note: channel 0 of the training images of glyphs is constant: it is '
      'not scaled\n')


@pytest.mark.parametrize('std', [(0.,), (-1.,), (float('nan'),), (1., 1.)])
def test_a_std_that_divides_nothing_is_refused(std, data):
  directory, _ = data
  source = sources.find(DATA).source._replace(mean=(.5,), std=std)
  with pytest.raises(UserError, match='std of the data source glyphs .* must '
                     'be 1 numbers, one per channel, above 0'):
    stores._normalisation(source, stores.builder(DATA, directory))


@pytest.mark.parametrize('wanted, limit, place', [
    ('auto', 100, 'host'), ('auto', 10**9, 'device'), ('auto', None, 'device'),
    ('device', 100, 'device'), ('host', 10**9, 'host')])
def test_pixels_that_do_not_fit_stay_on_the_host(wanted, limit, place):
  """Fails if a large data set ends a run for lack of memory."""
  class Device:
    platform = 'gpu'
    memory_stats = staticmethod(lambda: limit and {
        'bytes_limit': limit, 'bytes_in_use': 10})
  assert stores.place(wanted, stores.load(DATA, 'test'), Device) == place


@pytest.mark.parametrize('split, count', [
    ('train', 12), ('validation', 6), ('test', 8), ('train+validation', 18)])
@pytest.mark.parametrize('change, line', [
    (lambda names: names[1:], 'is none of them'),
    (lambda names: (*names, 'A'), r'\(A is missing\)')])
def test_a_built_split_with_other_classes_than_published_is_refused(
    split, count, change, line, data, monkeypatch):
  """Fails if 63 of 64 published classes are trained on without a word."""
  directory, folder = data
  source, _ = sources.find(DATA)
  of_split = source.classes('tiny')
  monkeypatch.setitem(sources.SOURCES, 'glyphs', source._replace(put='files'))
  assert stores.load(DATA, split, directory).num_classes == count
  monkeypatch.setitem(sources.SOURCES, 'glyphs', source._replace(
      put='files', classes=lambda variant: {
          name: change(of_split[name]) for name in of_split}))
  with pytest.raises(UserError, match=(
      f'{folder}: the {split.replace("+", ".")} split has {count} classes, and '
      f'{DATA} [0-9]+ there .*{line}.*build the data set again')):
    stores.load(DATA, split, directory)


@pytest.mark.parametrize('name, counts', [
    ('mini_imagenet', (64, 16, 20)), ('cifar_fs', (64, 16, 20)),
    ('fc100', (60, 20, 20)), ('tiered_imagenet', (351, 97, 160)),
    ('omniglot/vinyals', (4 * 1028, 172, 423)),
    ('omniglot/vinyals_upright', (1028, 172, 423))])
def test_a_load_wants_the_published_numbers_of_classes(name, counts):
  source, variant = sources.find(name)
  assert source.put
  assert tuple(map(len, source.classes(variant).values())) == counts
