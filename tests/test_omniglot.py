"""Omniglot: the published drawings, and what damaged files get.

The damages are done to zips that the tests write, of real character names
and made-up drawings. Each must end in one line of the command.
"""

import io
import os
import pathlib
import shutil
import zipfile

import bad_pictures
import command
import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import __main__ as data_main
from mtl_jax.data import sources, store
from mtl_jax.data.source import SPLITS
from mtl_jax.data.sources import omniglot

REAL = os.environ.get('MTL_JAX_TEST_DATA') and pathlib.Path(
    os.environ['MTL_JAX_TEST_DATA']) / 'omniglot'
SMALL1, SMALL2 = 'images_background_small1', 'images_background_small2'
TRAIN = ('Korean/character01', 'Korean/character02')
VALIDATION = ('Greek/character07',)
TEST = ('Tagalog/character01', 'Tagalog/character17')


PUBLISHED = omniglot.VARIANTS


def tiny(**changes):
  fields = dict(train=TRAIN, validation=VALIDATION, test=TEST)
  return omniglot.Variant(description='', **fields | changes)


def use(patch, variant):
  """Makes `variant` the only one of the data set, by a monkeypatch."""
  patch.setattr(omniglot, 'VARIANTS', {'tiny': variant})
  patch.setitem(sources.SOURCES, 'omniglot', omniglot.SOURCE._replace(
      variants={'tiny': variant.description}))


def drawing(character, number):
  """Made-up strokes of no symmetry, ink 1: bool [105, 105]."""
  rng = np.random.default_rng((len(character), *character.encode(), number))
  ink = np.zeros((105, 105), bool)
  for row, column in rng.integers(5, 80, (3, 2)):
    ink[row:row + 20, column:column + 4] = True
  return ink


def png(ink, mode='1'):
  file = io.BytesIO()
  Image.fromarray(~ink).convert(mode).save(file, 'PNG')
  return file.getvalue()


def files():
  """Name in a zip -> contents, of two zips that share a Greek character."""
  zips = {SMALL1: {}, SMALL2: {}}
  for name, characters in ((SMALL1, TRAIN + VALIDATION),
                           (SMALL2, VALIDATION + TEST)):
    for character in characters:
      for n in range(1, 21):
        zips[name][f'{name}/{character}/0001_{n:02d}.png'] = png(
            drawing(character, n))
  return zips


def write(folder, zips):
  folder.mkdir(parents=True, exist_ok=True)
  for name, contents in zips.items():
    with zipfile.ZipFile(folder / f'{name}.zip', 'w') as archive:
      for path, data in contents.items():
        archive.writestr(path, data)
  return folder


@pytest.fixture(autouse=True)
def tiny_config(monkeypatch, tmp_path):
  use(monkeypatch, tiny())
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path / 'tfds'))
  monkeypatch.setenv('MTL_JAX_MANUAL', str(tmp_path / 'manual'))


def loaded(manual_dir=None):
  return {split: store.load('omniglot', split, manual_dir=manual_dir)
          for split in SPLITS}


def lanczos(ink):
  """Resizes [105, 105] to [28, 28], from the definition of the filter."""
  scale = 105 / 28
  at = (np.arange(28)[:, None] + 0.5) * scale
  x = (np.arange(105) + 0.5 - at) / scale
  weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
  weights /= weights.sum(axis=1, keepdims=True)
  byte = lambda values: np.clip(np.rint(values), 0, 255)
  return byte(weights @ byte(ink @ weights.T))


def test_the_store_holds_what_was_drawn(tmp_path):
  """Fails if drawings are inverted, turned or mixed up."""
  write(tmp_path / 'manual', files())
  stores = loaded()
  assert stores['train'].class_names == tuple(
      f'{c}{turn}' for c in TRAIN for turn in (
          '', '/rot090', '/rot180', '/rot270'))
  assert stores['validation'].class_names == VALIDATION
  assert stores['test'].class_names == TEST
  for held in stores.values():
    assert (np.diff(held.offsets) == 20).all()
    assert held.images.shape[1:] == (28, 28, 1)
    assert (held.mean, held.std) == (0, 1)
    for m, name in enumerate(held.class_names):
      character, _, turn = name.partition('/rot')
      for n in (0, 7, 19):
        upright = lanczos(255. * drawing(character, n + 1))
        wanted = np.rot90(upright, int(turn or 0) // 90)
        image = held.images[held.offsets[m] + n, ..., 0]
        np.testing.assert_allclose(image, wanted, atol=1)


def test_an_upright_split_has_no_turned_classes():
  """The same characters, each one class, in all published splits."""
  source = sources.SOURCES['omniglot']
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(omniglot, 'VARIANTS', PUBLISHED)
    for name in ('small', 'vinyals', 'lake'):
      turned, upright = (source.classes(n) for n in (name, f'{name}_upright'))
      assert upright['train'] == turned['train'][::4]
      assert all(upright[split] == turned[split] for split in SPLITS[1:])


def test_folders_and_folders_below_give_the_same(tmp_path):
  zips = files()
  write(tmp_path / 'manual', zips)
  wanted = loaded()
  # As unzipping into a new folder leaves it, with an archiver's own files.
  unpacked = tmp_path / 'two'
  for name, contents in zips.items():
    for path, data in contents.items():
      file = unpacked / 'omniglot' / name / path
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(data)
      (file.parent / f'._{file.name}').write_bytes(b'resource')
  for folder in (unpacked, write(tmp_path / 'three/omniglot', zips).parent):
    shutil.rmtree(tmp_path / 'tfds')
    for split, held in loaded(folder).items():
      assert held.images.tobytes() == wanted[split].images.tobytes(), folder
      assert held.class_names == wanted[split].class_names


# How people have the files -> where a member of a published zip lies.
LAYOUTS = {
    'alphabets at the top': lambda name, inside: inside,
    'folders of folders': lambda name, inside: f'a/b/{name}/{name}/{inside}',
    'one folder of all alphabets': lambda name, inside: f'data/{inside}',
    'one zip': lambda name, inside: f'archive.zip/{name}/{inside}',
    'one zip of all alphabets': lambda name, inside: (
        f'omniglot.zip/python/{inside}'),
    'published zips without a folder in them': lambda name, inside: (
        f'{name}.zip/{inside}'),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same(layout, tmp_path):
  zips = files()
  write(tmp_path / 'manual', zips)
  wanted = loaded()
  shutil.rmtree(tmp_path / 'tfds')
  there = tmp_path / 'there'
  written = {LAYOUTS[layout](name, path.partition('/')[2]): data
             for name, contents in zips.items()
             for path, data in contents.items()}
  for path, data in written.items():
    archive, of_zip, inside = path.partition('.zip/')
    file = there / (f'{archive}.zip' if of_zip else path)
    file.parent.mkdir(parents=True, exist_ok=True)
    if of_zip:
      with zipfile.ZipFile(file, 'a') as opened:
        opened.writestr(inside, data)
    else:
      file.write_bytes(data)
  (there / 'broken.zip').write_bytes(b'of something else')
  for split, held in loaded(there).items():
    assert held.images.tobytes() == wanted[split].images.tobytes()
    assert held.class_names == wanted[split].class_names


def test_a_zip_is_taken_before_what_was_half_unpacked(tmp_path):
  """Fails if a copy that an interrupted unzip left stops the build."""
  zips = files()
  write(tmp_path / 'manual', zips)
  path, data = next(iter(zips[SMALL1].items()))
  half = tmp_path / 'manual' / path
  half.parent.mkdir(parents=True)
  half.write_bytes(data)
  assert loaded()['train'].num_classes == 8


def damaged(what):
  """Returns the contents of the zips, one thing in them damaged."""
  zips, ink = files(), drawing('Korean/character02', 3)
  character = f'{SMALL1}/Korean/character02'
  path = f'{character}/0001_03.png'
  if what == '19 drawings':
    del zips[SMALL1][path]
  elif what == 'no drawing':
    zips[SMALL1] = {name: data for name, data in zips[SMALL1].items()
                    if not name.startswith(character)}
  elif what == 'no alphabet':
    del zips[SMALL2]
  elif what == 'an odd name':
    zips[SMALL1][f'{character}/caf\xe9\n.png'] = png(ink)
  elif what == 'two versions':
    zips[SMALL2][f'{SMALL2}/Greek/character07/0001_03.png'] = png(ink)
  else:
    zips[SMALL1][path] = {
        'cut off': png(ink)[:60], 'bomb': bad_pictures.BOMB,
        'program': bad_pictures.POSTSCRIPT, 'no image': b'<html>429</html>',
        'resized': png(ink[:28, :28]), 'inverted': png(~ink, 'L')}[what]
  return zips


# What was damaged -> what the line must name.
DAMAGED_CONTENTS = {
    '19 drawings': ('small1.zip', 'Korean/character02', '19 drawings', '20'),
    'no drawing': ('small1.zip', 'Korean/character02', '0 drawings', '20'),
    'an odd name': ('small1.zip', 'Korean/character02', '21 drawings', '20'),
    'cut off': ('Korean/character02/0001_03.png', 'cannot be read', 'again'),
    'no image': ('Korean/character02/0001_03.png', 'cannot be read', 'again'),
    'program': ('Korean/character02/0001_03.png', 'it is no image', 'again'),
    'bomb': ('Korean/character02/0001_03.png', '400000000 pixels', 'again'),
    'resized': ('Korean/character02/0001_03.png', '28x28', '105x105'),
    'inverted': ('Korean/character02/0001_03.png', 'white ink', 'invert'),
    'two versions': ('Greek/character07', 'small1.zip', 'small2.zip'),
    'no alphabet': ('Tagalog', 'test', 'small2.zip', 'github.com'),
}


def assert_one_line(capsys, *named):
  assert data_main.main(['build', 'omniglot']) == 2
  output = capsys.readouterr()
  lines = output.err.strip().splitlines()
  assert len(lines) == 1, output.err
  for text in named:
    assert text in lines[0]
  assert 'Building' not in output.out
  left = pathlib.Path(os.environ['MTL_JAX_DATA'])
  assert not [p for p in left.rglob('*') if p.is_file()]


@pytest.mark.parametrize('what', DAMAGED_CONTENTS)
def test_damaged_contents_get_one_line(what, tmp_path, capsys):
  write(tmp_path / 'manual', damaged(what))
  assert_one_line(capsys, *DAMAGED_CONTENTS[what])


@pytest.mark.parametrize('what', ['page', 'cut off', 'noise', 'flipped bit'])
def test_a_damaged_zip_gets_one_line(what, tmp_path, capsys):
  path = write(tmp_path / 'manual', files()) / f'{SMALL2}.zip'
  whole = path.read_bytes()
  middle = whole.index(b'IDAT') + 20
  path.write_bytes({
      'page': b'\n<!DOCTYPE html><title>Sign in</title>',
      'cut off': whole[:len(whole) // 2], 'noise': b'0' * 100,
      'flipped bit': whole[:middle] + bytes([whole[middle] ^ 1])
                     + whole[middle + 1:]}[what])
  assert_one_line(capsys, f'{SMALL2}.zip', 'again', {
      'page': 'HTML page', 'cut off': f'cut short ({len(whole) // 2} bytes)',
      'noise': 'not a zip', 'flipped bit': 'CRC'}[what])


def test_files_that_are_not_there(tmp_path, capsys, monkeypatch):
  for _ in range(2):  # no folder, then an empty one
    assert_one_line(capsys, str(tmp_path / 'manual'), f'{SMALL1}.zip', 'github')
    (tmp_path / 'manual').mkdir(exist_ok=True)
  monkeypatch.delenv('MTL_JAX_MANUAL')
  assert_one_line(capsys, 'config.data.manual_dir', '$MTL_JAX_MANUAL',
                  f'{SMALL1}.zip', 'github')


@pytest.mark.parametrize('changes, named', [
    ({'test': ('Tagalog', *TRAIN[:1])}, (TRAIN[0], 'train', 'test')),
    ({'train': ('Korean', 'Korean/character03')}, ('Korean/character03',)),
    ({'validation': ('Grek',)}, ('validation', 'Grek', 'omniglot.json')),
    ({'validation': ('Greek/character25',)},
     ('Greek/character25', 'character24')),
])
def test_an_invalid_split_gets_one_line(changes, named, capsys, monkeypatch):
  use(monkeypatch, tiny(**changes))
  assert_one_line(capsys, 'omniglot/tiny', *named)


# Stops in the validation split.
KILLED = f"""
import os, signal
from mtl_jax.data import __main__, pictures, sources
from mtl_jax.data.sources import omniglot
encode, images = pictures.png, []
def png(image):
  images.append(image)
  return os.kill(os.getpid(), 9) if len(images) == 170 else encode(image)
pictures.png = png
omniglot.VARIANTS = {{'tiny': omniglot.Variant(
    '', {TRAIN}, {VALIDATION}, {TEST})}}
sources.SOURCES['omniglot'] = omniglot.SOURCE._replace(variants={{'tiny': ''}})
__main__.main(['build', 'omniglot'])
"""


def test_a_killed_build_starts_again(tmp_path):
  write(tmp_path / 'manual', files())
  killed = command.run([], program=('-c', KILLED))
  assert killed.returncode == -9, killed.stderr
  folder = tmp_path / 'tfds/omniglot/tiny'
  assert list(folder.glob('incomplete.*')), 'killed too early'
  assert not (folder / '1.0.0').exists()
  assert [s.num_classes for s in loaded().values()] == [8, 1, 2]
  assert not list(folder.glob('incomplete.*'))


@pytest.mark.parametrize('name, counts', [
    ('small', (344, 50, 106)), ('vinyals', (4112, 172, 423)),
    ('lake', (3168, 172, 659))])
def test_published_splits(name, counts, monkeypatch):
  """Fails if scores belong to another benchmark."""
  monkeypatch.undo()
  classes = omniglot.turned_classes(name)
  assert tuple(sum(c.split == split for c in classes)
               for split in SPLITS) == counts
  assert len({c.name for c in classes}) == len(classes)
  split_of = {c.character: c.split for c in classes}
  assert all(split_of[c.character] == c.split for c in classes)
  assert all(c.turns == 0 for c in classes if c.split != 'train')


def test_the_zips_are_said_to_hold_what_they_hold():
  assert len(omniglot.BACKGROUND) == 30 and len(omniglot.EVALUATION) == 20
  assert sum(len(omniglot.CHARACTERS[a]) for a in omniglot.BACKGROUND) == 964
  assert sum(len(omniglot.CHARACTERS[a]) for a in omniglot.EVALUATION) == 659
  for alphabets in omniglot.files.SMALL.values():
    assert set(alphabets) < set(omniglot.BACKGROUND)


@pytest.mark.skipif(
    not (REAL and REAL.is_dir()),
    reason='MTL_JAX_TEST_DATA names no folder with omniglot/')
def test_the_published_drawings(monkeypatch, tmp_path):
  monkeypatch.undo()
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path))
  held = {split: store.load('omniglot', split, manual_dir=REAL)
          for split in SPLITS}
  assert {split: (s.num_classes, len(s.images)) for split, s in held.items()
          } == {'train': (344, 6880), 'validation': (50, 1000),
                'test': (106, 2120)}
  archives = [zipfile.ZipFile(path) for path in sorted(REAL.glob('*.zip'))]
  names = [(a, n) for a in archives for n in sorted(a.namelist())]
  for s in held.values():
    assert (np.diff(s.offsets) == 20).all()
    for m in range(0, s.num_classes, 7):
      character, _, turn = s.class_names[m].partition('/rot')
      archive, name = [x for x in names if f'/{character}/' in x[1]
                       and x[1].endswith('_05.png')][-1]  # the later copy
      with Image.open(io.BytesIO(archive.read(name))) as image:
        ink = 255. * ~np.asarray(image)
      np.testing.assert_allclose(
          s.images[s.offsets[m] + 4, ..., 0],
          np.rot90(lanczos(ink), int(turn or 0) // 90), atol=1)
  assert {n.split('/')[0] for n in held['validation'].class_names} == {
      'Greek', 'Latin'}
