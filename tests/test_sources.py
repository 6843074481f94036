"""Data sources: the contract of every registered one, and a user's own."""

import io
import json
import os
import pathlib
import re
import tempfile
import tracemalloc

import mini_imagenet_fake
import numpy as np
import own_source as own
import pytest
from conftest import ROOT
from PIL import Image

from mtl_jax import fields, registry
from mtl_jax.data import __main__ as data_main
from mtl_jax.data import building, pictures, pixels, sources
from mtl_jax.data import store as stores
from mtl_jax.data.source import SPLITS, DataSource, Request
from mtl_jax.errors import UserError


@pytest.fixture
def data(tmp_path, monkeypatch):
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path / 'data'))
  monkeypatch.delenv('MTL_JAX_MANUAL', raising=False)
  return tmp_path


def line_of(capsys):
  line, = capsys.readouterr().err.splitlines()
  return line


# The contract, for everything registered.


@pytest.mark.parametrize('name', sources.names())
def test_classes_are_listed_for_every_split(name):
  source, variant = sources.find(name)
  classes = source.classes(variant)
  assert tuple(classes) == SPLITS and all(classes.values())


@pytest.mark.parametrize('name', sources.names())
def test_no_class_is_in_two_splits(name):
  source, variant = sources.find(name)
  names = [name for split in source.classes(variant).values() for name in split]
  assert len(names) == len(set(names))


@pytest.mark.parametrize('name', sources.SOURCES)
def test_shape_and_constants_agree(name):
  source = sources.SOURCES[name]
  assert source.name == name
  height, width, channels = source.image_shape
  assert height > 0 and width > 0 and channels in (1, 3)
  assert len(source.mean) == len(source.std) == channels


@pytest.mark.parametrize('name', sources.SOURCES)
def test_options_are_texts_with_a_default_that_is_allowed(name):
  source = sources.SOURCES[name]
  assert all(field.type is str for field in source.options.values())
  fields.check(source.options, fields.defaults(source.options))


@pytest.mark.parametrize('name', sources.names())
def test_a_source_of_files_says_what_to_put_where(name, data, capsys):
  """Fails if a user without the files is not told what to do."""
  source, variant = sources.find(name)
  if not source.put:
    assert not list(source.check(Request(variant, None, {})).lines)
    return
  assert data_main.main(['build', name]) == 2
  line = line_of(capsys)
  assert source.put in line and '$MTL_JAX_MANUAL' in line
  (data / 'empty').mkdir()
  assert data_main.main(['build', name, f'--manual_dir={data / "empty"}']) == 2
  assert str(data / 'empty') in line_of(capsys)
  assert not (data / 'data').exists()


def test_a_registered_source_is_built_checked_and_loaded(data, capsys):
  assert data_main.main(['check', 'glyphs/tiny']) == 0
  assert 'train: 12 classes of 20 to 20 images' in capsys.readouterr().out
  source, variant = sources.find('glyphs/tiny')
  request = Request(variant, None, {})
  for split, names in source.classes(variant).items():
    store = stores.load('glyphs/tiny', split)
    assert store.class_names == names
    examples = list(source.build(request, None, split))
    assert [example.class_name for example in examples] == [
        name for name in names for _ in range(20)]
    assert store.images.shape == (len(examples), *source.image_shape)
    np.testing.assert_allclose((store.mean, store.std),
                               (source.mean, source.std), rtol=1e-6)


@pytest.mark.parametrize('name', ['glyph', 'glyphs/huge', 'a/folder', ''])
def test_an_unknown_name_gets_what_is_allowed(name):
  with pytest.raises(UserError, match='^field is .*: allowed are .*glyphs'):
    sources.check_name('field', name)
  sources.check_name('field', name, also=(name,))


# A user's own file.


@pytest.mark.parametrize('variant, step', [
    ('', 10), ('/small', 10), ('/large', 20)])
def test_a_users_file_is_built_and_loaded(variant, step, data, capsys):
  name = str(own.write_file(data / 'mine.py')) + variant
  assert data_main.main(['build', name, '--strength=all']) == 0
  assert 'strength all' in capsys.readouterr().out
  for split in SPLITS:
    store = stores.load(name, split)
    assert store.name == name
    assert store.class_names == own.CLASSES[split]
    values = (step * np.arange(6)[:, None] + np.arange(own.IMAGES)).ravel()
    np.testing.assert_array_equal(
        store.images, np.broadcast_to(values[:, None, None, None],
                                      (36, *own.SHAPE)))
    np.testing.assert_allclose(store.mean, values.mean() / 255, rtol=1e-6)
    np.testing.assert_allclose(store.std, values.std() / 255, rtol=1e-6)


def test_constants_of_a_users_file_are_taken(data):
  name = str(own.write_file(
      data / 'mine.py', 'mean=(.1, .2, .3), std=(.4, .5, .6),'))
  store = stores.load(name, 'test')
  np.testing.assert_allclose(store.mean, (.1, .2, .3), rtol=1e-6)
  np.testing.assert_allclose(store.std, (.4, .5, .6), rtol=1e-6)


def test_files_of_a_users_images_are_named(data):
  name = str(own.write_file(data / 'mine.py'))
  names = stores.image_names(stores.load(name, 'test'))
  assert names[:2] == ['test_a_0.png', 'test_a_1.png'] and len(names) == 36


def test_built_data_of_a_user_collides_with_no_other(data):
  """Fails if a source with the name of another one reads its data."""
  (data / 'other').mkdir()
  paths = [own.write_file(folder / 'mine.py')
           for folder in (data, data / 'other')]
  folders = [building.builder(name).data_path for name in (
      *map(str, paths), f'{paths[0]}/large', 'glyphs')]
  assert len(set(folders)) == 4
  assert not {building.builder(str(path)).name for path in paths} & set(
      sources.SOURCES)


def test_a_path_from_the_home_folder_is_the_same_source(data, monkeypatch):
  monkeypatch.setenv('HOME', str(data))
  path = own.write_file(data / 'mine.py')
  assert building.builder('~/mine.py').name == building.builder(str(path)).name


BAD_FILES = {
    'no SOURCE': ('x = 1', 'no SOURCE'),
    'another SOURCE': ('SOURCE = 3', 'is of type int: must be a Data'),
    'an error': ('1 / 0', 'ZeroDivisionError'),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_a_bad_file_is_named(case, data):
  text, line = BAD_FILES[case]
  (data / 'bad.py').write_text(text)
  with pytest.raises(UserError, match=f'config.data.name.*bad.py.*{line}|'
                     f'config.data.name.*{line}.*bad.py'):
    sources.find(str(data / 'bad.py'))


def test_an_option_that_is_not_declared_is_refused(data, capsys):
  name = str(own.write_file(data / 'mine.py'))
  assert data_main.main(['build', name, '--strenght=all']) == 2
  assert 'strength' in line_of(capsys)
  assert data_main.main(['build', name, '--strength=some']) == 2
  assert 'none, all' in line_of(capsys)


def test_a_class_in_two_splits_is_refused(data, capsys):
  name = str(own.write_file(
      data / 'mine.py', classes=own.CLASSES | {'test': ('train_a',)}))
  assert data_main.main(['build', name]) == 2
  assert 'train_a' in line_of(capsys)


def test_changed_classes_of_a_built_source_are_noticed(data):
  path = own.write_file(data / 'mine.py')
  stores.load(str(path), 'test')
  registry.run.cache_clear()  # as in a new process
  own.write_file(path, classes=own.CLASSES | {'test': ('new',)})
  with pytest.raises(UserError, match='mine.py .*other classes.*delete'):
    stores.load(str(path), 'test')


# A user's folder of images.


@pytest.mark.parametrize('names', [SPLITS, ('train', 'val', 'test')])
def test_a_folder_is_built_and_loaded(names, data, capsys):
  name = str(own.write_folder(data / 'birds', names=names))
  assert data_main.main(['check', name]) == 0
  assert '108 images, 20x24, RGB.' in capsys.readouterr().out
  for split in SPLITS:
    store = stores.load(name, split)
    assert store.class_names == own.CLASSES[split]
    wanted = np.stack([own.pixels(split, m, i)
                       for m in range(6) for i in range(own.IMAGES)])
    np.testing.assert_array_equal(store.images, wanted)
  train = np.stack([own.pixels('train', m, i)
                    for m in range(6) for i in range(own.IMAGES)]) / 255
  np.testing.assert_allclose(store.mean, train.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(store.std, train.std((0, 1, 2)), rtol=1e-6)


def test_constants_are_kept_with_the_built_data(data, monkeypatch):
  name = str(own.write_folder(data / 'birds'))
  first = stores.load(name, 'test')
  kept = json.loads((building.builder(name).data_path
                     / stores.MEASURED).read_text())
  np.testing.assert_allclose(kept['mean'], first.mean, rtol=1e-6)
  monkeypatch.setattr(pixels, 'mean_and_std', None)  # not measured again
  np.testing.assert_array_equal(stores.load(name, 'test').mean, first.mean)


def test_files_of_a_folder_are_named(data):
  name = str(own.write_folder(data / 'birds'))
  assert stores.image_names(stores.load(name, 'test'))[:2] == [
      'test_a/0.png', 'test_a/1.png']


def test_a_folder_with_another_image_is_built_again(data):
  path = own.write_folder(data / 'birds')
  assert len(stores.load(str(path), 'test').images) == 36
  Image.fromarray(own.pixels('test', 9, 9)).save(path / 'test/test_b/new.png')
  assert len(stores.load(str(path), 'test').images) == 37


def test_a_folder_that_stays_as_it_is_is_built_once(data, capsys):
  name = str(own.write_folder(data / 'birds'))
  stores.load(name, 'test')
  assert 'Building' in capsys.readouterr().out
  stores.load(name, 'train')
  assert not capsys.readouterr().out


def test_grey_images_stay_grey(data):
  name = str(own.write_folder(
      data / 'ink', lambda *which: own.pixels(*which, (20, 24, 1))))
  store = stores.load(name, 'test')
  np.testing.assert_array_equal(store.images[0],
                                own.pixels('test', 0, 0, (20, 24, 1)))
  assert store.mean.shape == (1,)


def test_images_of_several_sizes_become_squares(data, capsys):
  def draw(split, m, i):
    return own.pixels(split, m, i, (30 + 2 * m, 40 + 10 * i, 3))
  name = str(own.write_folder(data / 'birds', draw, '.bmp'))
  store = stores.load(name, 'test')
  assert '108 images, 35x35, RGB; they differ' in capsys.readouterr().out
  middle = draw('test', 0, 0)[:, 5:35]  # the largest centred square
  wanted = np.asarray(Image.fromarray(middle).resize(
      (35, 35), Image.Resampling.LANCZOS))
  # At the borders the filter sees what lies beyond.
  np.testing.assert_array_equal(store.images[0, :, 4:-4], wanted[:, 4:-4])


def test_large_images_become_squares_of_84(data):
  name = str(own.write_folder(
      data / 'birds', lambda *which: np.kron(
          own.pixels(*which, (3, 4, 3)), np.ones((90, 90, 1), np.uint8)),
      '.jpg'))
  assert stores.load(name, 'test').images.shape[1:] == (84, 84, 3)


@pytest.fixture
def odd_names(data):
  """Returns a folder with names that are no UTF-8 and names of two lines."""
  path = own.write_folder(data / os.fsdecode(b'birds\xe9'))
  for old, new in (('test/test_a/0.png', b'test/test_a/caf\xe9.png'),
                   ('test/test_a', b'test/caf\xe9'),
                   ('train/train_b', b'train/two\nlines')):
    os.rename(path / old, os.fsencode(path) + b'/' + new)
  return path


def test_names_that_are_no_text_are_written_as_text(odd_names):
  for _ in range(2):  # built, then read
    assert data_main.main(['check', str(odd_names)]) == 0
  store = stores.load(str(odd_names), 'test')
  assert store.class_names[0] == r'caf\xe9'
  names = stores.image_names(store)
  assert names[5] == r'caf\xe9/caf\xe9.png'
  assert r'two\nlines' in stores.load(str(odd_names), 'train').class_names
  np.testing.assert_array_equal(store.images[5], own.pixels('test', 0, 0))


def test_an_error_about_an_odd_name_is_one_line(odd_names, capsys):
  (odd_names / 'test/test_b/two\nlines.png').write_bytes(b'')
  assert data_main.main(['build', str(odd_names)]) == 2
  assert r'test_b/two\nlines.png is no image' in line_of(capsys)


def test_a_data_folder_that_is_no_text_is_refused(data, monkeypatch, capsys):
  monkeypatch.setenv('MTL_JAX_DATA', str(data / os.fsdecode(b'caf\xe9')))
  assert data_main.main(['build', 'glyphs/tiny']) == 2
  assert r'/caf\xe9 cannot hold data sets' in line_of(capsys)
  assert not list(data.iterdir())


# Folders and files that this user may not read.


@pytest.fixture
def place(monkeypatch):
  """A folder of a user who is not the administrator."""
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o777)
    administrator = os.geteuid() == 0
    if administrator:
      os.seteuid(65534)
    try:
      if not os.access(ROOT / 'mtl_jax', os.R_OK, effective_ids=True):
        pytest.skip('no other user may read the package')
      monkeypatch.setenv('MTL_JAX_DATA', f'{folder}/data')
      monkeypatch.delenv('MTL_JAX_MANUAL', raising=False)
      yield pathlib.Path(folder)
    finally:
      if administrator:
        os.seteuid(0)


def forbid(path):
  path.mkdir(parents=True)
  path.chmod(0)
  return path


@pytest.mark.parametrize('name', ['mini_imagenet', 'omniglot'])
@pytest.mark.parametrize('below', ['', 'folder'])
def test_a_folder_of_files_that_may_not_be_read_is_named(
    name, below, place, capsys):
  folder = forbid(place / 'files') / below
  assert data_main.main(['build', name, f'--manual_dir={folder}']) == 2
  assert f'manual_dir {folder} cannot be read (Permission' in line_of(capsys)


@pytest.mark.parametrize('name', ['mini_imagenet', 'omniglot'])
def test_files_in_the_home_folder_are_found(name, data, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(data))
  (data / 'files').mkdir()
  assert data_main.main(['build', name, '--manual_dir=~/files']) == 2
  assert f'{data}/files holds no' in line_of(capsys)
  assert not pathlib.Path('~').exists()


@pytest.mark.parametrize('name', ['mini_imagenet', 'omniglot'])
def test_a_folder_beside_the_files_that_may_not_be_read_is_left_out(
    name, place, capsys):
  forbid(place / 'files/lost+found')
  assert data_main.main(['build', name, f'--manual_dir={place / "files"}']) == 2
  assert 'holds no' in (line := line_of(capsys)) and 'lost+found' not in line


def test_a_class_folder_that_may_not_be_read_is_named(
    place, monkeypatch, capsys):
  """Fails if its images are to be fetched again, though they are there."""
  mini_imagenet_fake.shrink(monkeypatch.setattr)
  mini_imagenet_fake.write_folders(place / 'files')
  closed = sorted((place / 'files/test').iterdir())[1]
  closed.chmod(0)
  assert data_main.main(
      ['build', 'mini_imagenet', f'--manual_dir={place / "files"}']) == 2
  assert f'{closed} may not be read' in line_of(capsys)


@pytest.mark.parametrize('forbidden', [
    'birds', 'birds/test', 'birds/test/lost+found', 'birds/test/test_a/0.png'])
def test_a_part_of_a_folder_that_may_not_be_read_is_named(
    forbidden, place, capsys):
  path = own.write_folder(place / 'birds')
  part = place / forbidden
  part.chmod(0) if part.exists() else forbid(part)
  assert data_main.main(['build', str(path)]) == 2
  assert re.search(f'{re.escape(str(part))}.* cannot be read', line_of(capsys))


def test_a_folder_of_data_that_may_not_be_used_is_named(
    place, monkeypatch, capsys):
  folder = forbid(place / 'data')
  for command in ('build', 'check'):
    assert data_main.main([command, 'glyphs/tiny']) == 2
    assert f'{folder}/glyphs/tiny/1.0.0 cannot be' in line_of(capsys)
  assert data_main.main(['list']) == 0


# Ctrl-C.


@pytest.mark.parametrize('moment', ['check', 'build'])
def test_a_build_that_is_interrupted_ends_in_one_line_and_leaves_nothing(
    moment, data, capsys, monkeypatch):
  path = own.write_folder(data / 'birds')
  read, count = pictures.in_threads, []

  def interrupted(function, paths):
    count.append(function)
    if len(count) > (18 if moment == 'build' else 3):  # classes to check
      raise KeyboardInterrupt
    return read(function, paths)
  monkeypatch.setattr(pictures, 'in_threads', interrupted)
  assert data_main.main(['build', str(path)]) == 130
  assert line_of(capsys) == (
      'mtl_jax.data: stopped; the same command starts over')
  assert not [p for p in (data / 'data').rglob('*')
              if p.is_file() and p.name != '.lock']
  monkeypatch.undo()
  monkeypatch.setenv('MTL_JAX_DATA', str(data / 'data'))
  assert data_main.main(['build', str(path)]) == 0


def change_folder(path, case):
  """Damages a folder of images."""
  if case == 'a split is missing':
    (path / 'validation').rename(path / 'other')
  elif case == 'a split has no classes':
    (path / 'validation').rename(path / 'other')
    (path / 'validation').mkdir()
  elif case == 'a class is empty':
    (path / 'test/bare').mkdir()
  elif case == 'a class is in two splits':
    (path / 'test/test_a').rename(path / 'test/train_b')
  elif case == 'an image is tiny':
    Image.new('RGB', (9, 30)).save(path / 'test/test_b/3.png')
  elif case == 'an image is cut off':
    image = path / 'test/test_b/3.png'
    image.write_bytes(image.read_bytes()[:200])
  elif case == 'an image starts a program':
    (path / 'test/test_b/3.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n'
                                             b'%%BoundingBox: 0 0 20 24\n')


# Damage -> what the line must say.
DAMAGES = {
    'a split is missing': ('birds has no folder validation',),
    'a split has no classes': ('birds/validation has no folders in it',),
    'a class is empty': ('birds/test/bare has no images',),
    'a class is in two splits': ("'train_b' is in train and in test",),
    'an image is tiny': ('test_b/3.png is 30x9', '20x20'),
    'an image is cut off': ('test_b/3.png cannot be read', 'truncated'),
    'an image starts a program': ('test_b/3.png is no image',),
}


@pytest.mark.parametrize('case', DAMAGES)
def test_a_damaged_folder_gets_one_line_and_builds_nothing(case, data, capsys):
  path = own.write_folder(data / 'birds')
  change_folder(path, case)
  assert data_main.main(['build', str(path)]) == 2
  line = line_of(capsys)
  for text in DAMAGES[case]:
    assert text in line
  assert not (data / 'data').exists()


def test_other_files_of_a_folder_are_left_out_with_a_line(data, capsys):
  path = own.write_folder(data / 'birds')
  (path / 'test/test_b/notes.txt').write_text('x')
  assert data_main.main(['build', str(path)]) == 0
  assert re.search('test_b: 1 files are no images.*notes.txt',
                   capsys.readouterr().out)


def test_a_data_source_has_defaults_for_all_but_four_fields():
  """Fails if a user's file that worked lacks a field."""
  assert set(DataSource._fields) - set(DataSource._field_defaults) == {
      'name', 'classes', 'build', 'image_shape'}


# Exact constants, in pieces.


def test_mean_and_std_are_those_of_all_pixels():
  images = np.random.default_rng(0).integers(0, 256, (600, 5, 7, 3), np.uint8)
  images[..., 1] //= 3
  mean, std = pixels.mean_and_std(images)
  flat = images.reshape(-1, 3) / 255
  np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-12)
  np.testing.assert_allclose(std, flat.std(0), rtol=1e-12)


def test_mean_and_std_need_little_memory():
  """Fails if a split that is mapped from a file fills the memory."""
  images = np.zeros((4000, 40, 40, 1), np.uint8)
  tracemalloc.start()
  pixels.mean_and_std(images)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < images.nbytes


def encoded(mode):
  """Returns the bytes of a picture of a mode."""
  file = io.BytesIO()
  Image.new(mode, (24, 20)).save(file, 'TIFF' if mode == 'F' else 'PNG')
  return file.getvalue()


@pytest.mark.parametrize('wrong, said', [
    ('pictures.png(np.full((20, 25, 3), value, np.uint8))',
     'is (20, 25, 3), height, width and channels, not (20, 24, 3)'),
    ('pictures.png(np.full((20, 24, 1), value, np.uint8))',
     'is (20, 24, 1), height, width and channels, not (20, 24, 3)'),
    ("b'<html>'", 'it is no image; build() yields the bytes'),
    # Numbers of a palette would be read as brightness, and bits as 0 and 1.
    *((repr(encoded(mode)), f'it has the mode {mode}, not grey or colour')
      for mode in ('1', 'P', 'I;16', 'F'))], ids=range(7))
def test_an_image_of_another_size_is_named(wrong, said, data, capsys):
  """Fails if it is found when the split is decoded, as damaged data."""
  path = own.write_file(data / 'mine.py')
  right = f'pictures.png(np.full({own.SHAPE}, value, np.uint8))'
  text = path.read_text()
  assert right in text
  path.write_text(text.replace(
      right, f"{wrong} if (name, i) == ('train_c', 3) else {right}"))
  assert data_main.main(['build', str(path)]) == 2
  line = line_of(capsys)
  assert "image 15 of the train split (class 'train_c', file_name " in line
  assert "'train_c_3.png')" in line and said in line
  assert not building.builder(str(path)).data_path.exists()


def test_a_split_of_any_size_is_built_without_tensorflow(tmp_path, monkeypatch):
  """Fails if TFDS holds the images: beyond this limit it needs TensorFlow."""
  monkeypatch.setattr('tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE', 9)
  stores.prepare('glyphs/tiny', str(tmp_path))
  for split in ('train', 'test'):
    np.testing.assert_array_equal(
        stores.load('glyphs/tiny', split, str(tmp_path)).images,
        stores.load('glyphs/tiny', split).images)
