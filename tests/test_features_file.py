"""`--mode=features --images=FOLDER`: features of a user's own pictures."""

import shutil
import zipfile

import numpy as np
import pytest
import untrained
from PIL import Image

from mtl_jax.data import pictures
from mtl_jax.main import main
from mtl_jax.run import features_file, trained

SHAPE = (untrained.SIDE, untrained.SIDE, 1)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return untrained.run(tmp_path_factory.mktemp('features') / 'run',
                       eval__data='/no/such/folder',
                       eval__heads=('/no/such/head.py',))


@pytest.fixture
def folder(tmp_path):
  """Pictures at several depths, beside other and hidden files."""
  path = tmp_path / 'mine'
  untrained.pictures(path / 'deep/er', {'a': 3, 'b': 2})
  untrained.pictures(path, {'c': 2})
  shutil.copy(path / 'c/0.png', path / 'flat.PNG')
  (path / 'c/notes.txt').write_text('x')
  (path / '.cache').mkdir()
  shutil.copy(path / 'c/0.png', path / '.cache/x.png')
  return path


def features(run, folder, *flags):
  """Runs the command; returns its exit code."""
  return main(['--mode=features', f'--checkpoint={run}', f'--images={folder}',
               *flags])


def test_every_picture_has_its_features_its_class_and_its_name(
    run, folder, monkeypatch, capsys):
  """Fails if a row belongs to another picture; the data set is not there."""
  monkeypatch.setattr(features_file, '_AT_ONCE', 3)
  assert features(run, folder) == 0
  assert capsys.readouterr().out.startswith('8 features of 4 numbers are in ')
  file = np.load(f'{run}/images/features.npz')
  names = ['flat.PNG', 'c/0.png', 'c/1.png', 'deep/er/a/0.png',
           'deep/er/a/1.png', 'deep/er/a/2.png', 'deep/er/b/0.png',
           'deep/er/b/1.png']
  assert file['names'].tolist() == names
  assert file['class_names'].tolist() == ['c', 'deep/er/a', 'deep/er/b']
  assert file['labels'].tolist() == [-1, 0, 0, 1, 1, 1, 2, 2]
  assert file['labels'].dtype == np.int32
  expected = trained.load(run).features(np.stack([
      pictures.prepare(folder / name, SHAPE) for name in names]))
  np.testing.assert_allclose(file['features'], expected, atol=1e-6)
  assert zipfile.ZipFile(f'{run}/images/features.npz').testzip() is None


def test_only_a_part_of_the_pictures_is_in_memory(run, folder, monkeypatch):
  read = []
  monkeypatch.setattr(features_file, '_AT_ONCE', 3)
  monkeypatch.setattr(
      pictures, 'load', lambda files, *args, load=pictures.load, **options:
      read.append(len(files.paths)) or load(files, *args, **options))
  assert features(run, folder, f'--workdir={folder.parent / "out"}') == 0
  assert read == [3, 3, 2]


def test_black_and_white_are_exchanged(run, folder, tmp_path):
  assert features(run, folder, f'--workdir={tmp_path}', '--invert') == 0
  image = 255 - pictures.prepare(folder / 'flat.PNG', SHAPE)
  np.testing.assert_allclose(
      np.load(tmp_path / 'features.npz')['features'][0],
      trained.load(run).features(image[None])[0], atol=1e-6)


@pytest.mark.parametrize('spoil, flags, line', [
    (None, ('--images=nope',), '--images nope is not there'),
    (None, ('--images=empty',), '--images empty has no images'),
    ('mine/c/1.png', (), 'mine/c/1.png is no image that can be read'),
    (None, ('--mode=evaluate',), '--images is for --mode=features'),
    (None, ('--invert=x',), "--invert is 'x': it takes no value"),
    (None, ('--workdir=run',), 'is the workdir of a run')])
def test_bad_input_gets_one_line_and_nothing_is_lost(
    spoil, flags, line, run, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder.parent)
  (folder.parent / 'empty').mkdir()
  (folder.parent / 'run').symlink_to(run)
  out = folder.parent / 'out'
  out.mkdir()
  (out / 'features.npz').write_text('of before')
  if spoil:
    (folder.parent / spoil).write_text('no picture')
  assert features('run', 'mine', '--workdir=out', *flags) == 2
  said = capsys.readouterr()
  assert line in said.err and said.err.count('\n') == 1 and not said.out
  assert [p.name for p in out.iterdir()] == ['features.npz']
  assert (out / 'features.npz').read_text() == 'of before'


def test_invert_alone_is_refused(run, capsys):
  assert main(['--mode=features', f'--checkpoint={run}', '--invert']) == 2
  assert '--invert is for --images' in capsys.readouterr().err


def test_a_guess_of_bits_is_noted(run, tmp_path, capsys):
  """Fails if a dark picture becomes bright without a word."""
  Image.fromarray(np.full((30, 30), 3000, np.uint16)).save(tmp_path / 'x.tif')
  assert features(run, tmp_path, f'--workdir={tmp_path}/out') == 0
  assert ('note: 1 images have 16 bits or more per pixel and use 12 of them'
          in capsys.readouterr().out)
