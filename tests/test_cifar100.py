"""CIFAR-FS and FC100: every layout gives the images, every damage one line."""

import functools
import json
import os
import pathlib
import pickle

import cifar100_fake as fake
import numpy as np
import pytest
from damage import Runs, assert_refused, changed

from mtl_jax.data import store as stores
from mtl_jax.data.sources import cifar100

NAMES = tuple(cifar100.SOURCES)
LAYOUTS = {
    'archive': lambda f, _: fake.write_tar(
        f, fake.python_files(), 'cifar-100-python'),
    'archive unpacked twice wrapped': lambda f, _: fake.write(
        f / 'a/cifar-100-python', fake.python_files()),
    'binary archive': lambda f, _: fake.write_tar(
        f, fake.binary_files(), 'cifar-100-binary'),
    'binary unpacked': lambda f, _: fake.write(f, fake.binary_files()),
    'pickles': lambda f, name: fake.write_pickles(
        f, name, fake.PREFIX[name] + '_{}.pickle'),
    'pickles of Python 2, renamed': lambda f, name: fake.write_pickles(
        f, name, dump=fake.mini_imagenet_fake.dump_python2),
    'npz': lambda f, name: fake.write_npz(f, name),
    'hdf5': lambda f, _: fake.write_hdf5(f),
    'zip of class folders': lambda f, _: fake.write_zip(
        f, fake.class_files()),
    'class folders': lambda f, _: fake.write(f / 'data', fake.class_files()),
    'folders of splits': lambda f, name: fake.write(
        f / name, fake.class_files(fake.split_folder(name))),
}


@pytest.fixture
def data(tmp_path, monkeypatch):
  fake.use(monkeypatch, tmp_path / 'data')
  return tmp_path


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', NAMES)
def test_every_layout_gives_the_published_images(name, layout, data):
  """Fails if a plane, a row or a label is taken for another one."""
  if layout == 'hdf5':
    pytest.importorskip('h5py')
  LAYOUTS[layout](data / 'files', name)
  assert fake.build(name, data / 'files') == 0
  for split, classes in cifar100.SOURCES[name].classes('').items():
    store = stores.load(name, split)
    assert store.class_names == classes
    np.testing.assert_array_equal(store.images, np.concatenate([
        fake.images()[fake.TABLE.fine.index(c)] for c in classes]))


@pytest.mark.parametrize('name, counts', [
    ('cifar_fs', [64, 16, 20]), ('fc100', [60, 20, 20])])
def test_the_lists_are_the_published_ones(name, counts, splits):
  """Fails if a class is missing, or is in another split than published."""
  published = json.loads((splits / f'{name}.json').read_text())['splits']
  classes = cifar100.SOURCES[name].classes('')
  assert [len(c) for c in classes.values()] == counts
  for split, short in fake.SPLITS.items():
    assert list(classes[split]) == [c['name'] for c in published[short]]
    for c in published[short]:
      assert fake.TABLE.fine[c['id']] == c['name']
      assert fake.TABLE.coarse_of[c['id']] == c['superclass_id']
      assert fake.TABLE.coarse[c['superclass_id']] == c['superclass']


@pytest.fixture
def splits():
  """The published lists, where they are beside the test data."""
  folder = pathlib.Path(
      os.environ.get('MTL_JAX_TEST_DATA', 'none')).parent / 'splits'
  if not folder.is_dir():
    pytest.skip('no splits beside $MTL_JAX_TEST_DATA')
  return folder


def test_no_superclass_of_fc100_is_in_two_splits():
  of_split = [{fake.TABLE.coarse_of[fake.TABLE.fine.index(c)] for c in classes}
              for classes in cifar100.FC100.classes('').values()]
  assert [len(coarse) for coarse in of_split] == [12, 4, 4]
  assert len(set().union(*of_split)) == 20


def test_names_of_images_are_kept(data):
  fake.write(data / 'files', fake.python_files())
  assert fake.build('fc100', data / 'files') == 0
  names = stores.image_names(stores.load('fc100', 'test'))
  assert names[:3] == [f'baby_s_{i:06d}.png' for i in range(3)]


def test_swapped_colours_are_refused_and_turned(data, capsys):
  change = lambda split, c: {**c, 'data': c['data'][..., ::-1]}
  fake.write_pickles(data / 'files', 'cifar_fs', change=change)
  assert fake.build('cifar_fs', data / 'files') == 2
  assert 'this is BGR' in capsys.readouterr().err
  assert fake.build('cifar_fs', data / 'files', '--channel_order=bgr') == 0
  np.testing.assert_array_equal(
      stores.load('cifar_fs', 'train').images[:3], fake.images()[0])


def _pickles(change, split='test', name='cifar_fs'):
  return lambda f: fake.write_pickles(
      f, name, change=lambda s, c: {**c, **change(c)} if s == split else c)


def _python(change):
  return lambda f: fake.write(f, fake.python_files(
      lambda part, c: {**c, **change(c)} if part == 'train' else c))


_TAR = functools.partial(LAYOUTS['archive'], _=None)
_BINARY = functools.partial(LAYOUTS['binary unpacked'], _=None)
_ZIP = functools.partial(LAYOUTS['zip of class folders'], _=None)
_CLASSES = functools.partial(LAYOUTS['class folders'], _=None)
_THREE = functools.partial(LAYOUTS['pickles'], name='cifar_fs')
_NPZ = functools.partial(LAYOUTS['npz'], name='cifar_fs')
_HDF5 = lambda f: pytest.importorskip('h5py') and fake.write_hdf5(f)
_ARCHIVE = 'cifar-100-python.tar.gz'
_HTML = lambda content: b'<!DOCTYPE html><html>quota exceeded</html>'
DAMAGES = {
    'nothing there': (lambda f: f.mkdir(), 'holds nothing of cifar_fs: put'),
    'archive cut short': (changed(_TAR, _ARCHIVE, lambda c: c[:len(c) // 2]),
                          'is no whole tar'),
    'archive is HTML': (changed(_TAR, _ARCHIVE, _HTML), 'is an HTML page'),
    'archive is empty': (changed(_TAR, _ARCHIVE, lambda c: b''),
                         'is no whole tar'),
    'archive of CIFAR-10': (
        lambda f: fake.write_tar(f, {'data_batch_1': b'x'},
                                 'cifar-10-batches-py'),
        'holds no train and test of CIFAR-100'),
    'binary cut short': (changed(_BINARY, 'train.bin', lambda c: c[:-9]),
                         'no multiple of 3074'),
    'zip cut short': (changed(_ZIP, 'cifar100.zip', lambda c: c[:-500]),
                      'a zip that is cut short'),
    'zip is HTML': (changed(_ZIP, 'cifar100.zip', _HTML), 'an HTML page'),
    'npz cut short': (changed(_NPZ, 'few-shot-val.npz', lambda c: c[:-99]),
                      'few-shot-val.npz cannot be read'),
    'npz of objects': (
        lambda f: [np.savez(f / f'few-shot-{split}.npz', features=np.array(
            [None]), targets=[0]) for split in fake.SPLITS.values()
            if f.mkdir(exist_ok=True) is None],
        'few-shot-train.npz cannot be read (Object arrays'),
    'hdf5 cut short': (changed(_HDF5, 'data.hdf5', lambda c: c[:len(c) // 2]),
                       'is no whole HDF5 file'),
    'hdf5 is HTML': (changed(_HDF5, 'data.hdf5', _HTML), 'is an HTML page'),
    'a pickle in the archive would run code': (
        lambda f: fake.write_tar(f, fake.python_files() | {
            'test': pickle.dumps(Runs())}, 'cifar-100-python'),
        'builtins.print'),
    'a pickle is missing': (changed(_THREE, 'CIFAR_FS_val.pickle', None),
                            'CIFAR_FS_val.pickle is missing in'),
    'a pickle is cut short': (
        changed(_THREE, 'CIFAR_FS_val.pickle', lambda c: c[:99]),
        'CIFAR_FS_val.pickle cannot be unpickled'),
    'a pickle would run code': (
        changed(_THREE, 'CIFAR_FS_val.pickle', lambda c: pickle.dumps(
            Runs())), 'builtins.print'),
    'an image too few': (
        _pickles(lambda c: {'data': c['data'][1:], 'labels': c['labels'][1:]}),
        'class baby has 2 images, not 3'),
    'a class of another split': (
        _pickles(lambda c: {'labels': [
            0 if i == 2 else i for i in c['labels']]}),
        'has class apple, which is of the train split'),
    'files of the other data set': (
        lambda f: fake.write_pickles(f, 'fc100'), 'use the files of cifar_fs'),
    'a number of no class': (
        _pickles(lambda c: {'labels': [100, *c['labels'][1:]]}),
        'a label is 100'),
    'labels from 0 on': (
        _pickles(lambda c: {'labels': [0] * len(c['labels'])}),
        'which is of the train split'),
    'fewer labels than images': (
        _pickles(lambda c: {'labels': c['labels'][:-1]}),
        'labels is no list of one number per image'),
    'images of another size': (
        _pickles(lambda c: {'data': c['data'][:, :28, :28]}),
        'the images are 28x28, not 32x32'),
    'images of floats': (
        _pickles(lambda c: {'data': c['data'] / np.float32(255)}),
        'is of float32, not uint8'),
    'fine and coarse labels exchanged': (
        _python(lambda c: {'fine_labels': c['coarse_labels'],
                           'coarse_labels': c['fine_labels']}),
        'do not belong together in CIFAR-100'),
    'rows of another length': (
        _python(lambda c: {'data': c['data'][:, :-1]}),
        'data is no array of uint8, images x 3072'),
    'a class folder is missing': (
        lambda f: fake.write(f, {k: v for k, v in fake.class_files().items()
                                 if not k.startswith('woman/')}),
        'lacks class woman (1 of 100'),
    'a class folder in another split': (
        lambda f: fake.write(f, fake.class_files(
            lambda fine: 'val' if fine == 2 else fake.split_folder(
                'cifar_fs', '{}')(fine))),
        'has class baby, which is of the test split'),
    'an image of another size in a folder': (
        changed(_CLASSES, f'data/apple/{fake.name_of(0, 1)}',
                 lambda c: fake.png(np.zeros((28, 32, 3), np.uint8))),
        'is 32x28, not 32x32'),
    'an image that is text': (
        changed(_CLASSES, f'data/apple/{fake.name_of(0, 1)}',
                 lambda c: b'not an image'), 'cannot be read (it is no image)'),
    'an image twice': (
        lambda f: fake.write(f, fake.class_files() | {
            'apple/again.png': fake.png(fake.images()[0, 0])}),
        'class apple has 4 images, not 3'),
}


@pytest.mark.parametrize('case', DAMAGES)
def test_damaged_files_get_one_line_and_build_nothing(case, data, capsys):
  """Fails if wrong files end in a traceback or in a wrong data set."""
  write, said = DAMAGES[case]
  write(data / 'files')
  code = fake.build('cifar_fs', data / 'files')
  assert_refused(code, capsys.readouterr(), said, data / 'files')
  assert not list((data / 'data').rglob('*.array_record*'))
