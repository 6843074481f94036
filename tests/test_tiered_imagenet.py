"""tiered-ImageNet: every layout gives the images, every damage one line."""

import io
import json
import os
import pathlib
import pickle
import tarfile
import tempfile

import numpy as np
import pytest
import tiered_imagenet_fake as fake
from damage import Runs, assert_refused, changed
from PIL import Image

from mtl_jax.data import store as stores
from mtl_jax.data.sources import tiered_imagenet
from mtl_jax.data.sources.imagenet import cubic, ilsvrc

SHORT = {wnid: name.split(',')[0].replace(' ', '_')
         for wnid, name in fake.NAMES.items()}
LAYOUTS = {
    'a': fake.write_pickles,
    'a, rows, wnids, prefix, in a tar': lambda f: (
        fake.write_pickles(f / 'x', column=False, names=None,
                           prefix='tiered-imagenet-')
        or packed(f / 'x', f / 'tiered-imagenet.tar')),
    'a of Python 2, names of class_names.txt': lambda f: (
        fake.write_pickles(
            f, dump=fake.mini_imagenet_fake.dump_python2, names={
                wnid: f'Class {wnid}' for wnid in fake.NAMES})
        or texts(f, lambda wnid: f'class_{wnid}')),
    'b': fake.write_npz,
    'b, compressed, short names': lambda f: fake.write_npz(
        f / 'a/b', save=np.savez_compressed, names=SHORT),
    'd': lambda f: fake.write_files(
        f, fake.named('tiered/{split}/{wnid}/{number:03d}.jpg')),
    'undivided, in a zip': lambda f: fake.write_zip(
        f, fake.named('x/{wnid}/{number:03d}.png')),
    'the tree of ILSVRC': lambda f: fake.write_files(
        f, fake.named('train/{wnid}/{wnid}_{number}.JPEG') | {
            'val/n01530575/ILSVRC2012_val_00000001.JPEG': b'not looked at',
            'val/ILSVRC2012_val_00000002.JPEG': b'not looked at'}),
    'the tar of ILSVRC': lambda f: fake.write_files(
        f, {'ILSVRC2012_img_train.tar': fake.tar(fake.class_tars())}),
    'tars of classes': lambda f: fake.write_files(
        f / 'train', fake.class_tars()),
}


def packed(folder, path):
  """Packs the files of a folder into a tar, and removes them."""
  names = sorted(folder.iterdir())
  path.write_bytes(fake.tar({f'./tiered-imagenet/{name.name}':
                             name.read_bytes() for name in names}))
  for name in names:
    name.unlink()


def texts(folder, name_of):
  wnids = [*fake.NAMES, 'n00000001']
  (folder / 'synsets.txt').write_text('\n'.join(wnids))
  (folder / 'class_names.txt').write_text('\n'.join(map(name_of, wnids)))


@pytest.fixture
def data(tmp_path, monkeypatch):
  fake.use(monkeypatch, tmp_path / 'data')
  return tmp_path


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_published_images(layout, data, capsys):
  """Fails if an image, a label or a colour is taken for another one."""
  LAYOUTS[layout](data / 'files')
  assert fake.build(data / 'files') == 0
  turned = 'turned to RGB' in capsys.readouterr().out
  assert turned == layout.startswith('b')
  for split in fake.SPLITS:
    store = stores.load('tiered_imagenet', split)
    assert store.class_names == fake.CLASSES[split]
    assert np.diff(store.offsets).tolist() == [
        fake.sizes()[wnid] for wnid in store.class_names]
    np.testing.assert_array_equal(store.images, fake.pixels(split))
  kept = stores.builder('tiered_imagenet').info.metadata
  assert ('BGR' in kept['channels']) == turned
  assert not list((data / 'data').glob('tmp*'))


@pytest.fixture
def splits():
  """The published lists, where they are beside the test data."""
  folder = pathlib.Path(
      os.environ.get('MTL_JAX_TEST_DATA', 'none')).parent / 'splits'
  if not folder.is_dir():
    pytest.skip('no splits beside $MTL_JAX_TEST_DATA')
  return folder


def test_the_lists_are_the_published_ones(splits):
  published = json.loads((splits / 'tiered_imagenet.json').read_text())
  for split, short in fake.SPLITS.items():
    assert list(fake.CLASSES[split]) == published['splits'][short]
  assert fake.NAMES == published['names']


@pytest.mark.parametrize('split, classes, images', [
    ('train', 351, 448_695), ('validation', 97, 124_261),
    ('test', 160, 206_209)])
def test_the_numbers_of_images_are_those_of_the_paper(split, classes, images):
  """The numbers of the classes come from another source than the totals."""
  assert len(fake.CLASSES[split]) == classes
  sizes = tiered_imagenet.sizes()
  assert sum(sizes[wnid] for wnid in fake.CLASSES[split]) == images


def test_ilsvrc_has_its_number_of_images():
  changed = ilsvrc._sizes()
  assert sum(changed.values()) + 1300 * (1000 - len(changed)) == 1_281_167
  assert min(changed.values()) == 732


def test_originals_are_resized_as_opencv_does():
  """The expected values are those of cv2.resize, INTER_CUBIC (5.0.0)."""
  pixels = (np.arange(12)[:, None, None] * 37 + np.arange(20)[:, None] * 11
            + np.arange(3) * 50) % 256
  small = cubic.resize(Image.fromarray(pixels.astype(np.uint8)), 5)
  assert small[..., 0].tolist() == CV2


CV2 = [[39, 83, 127, 171, 246], [133, 176, 211, 118, 54],
       [244, 150, 40, 96, 140], [50, 95, 139, 183, 244], [145, 189, 197, 0, 68]]


def test_channels_are_turned_or_kept_as_asked(data, capsys):
  fake.write_npz(data / 'files')
  assert fake.build(data / 'files', '--channel_order=rgb') == 0
  np.testing.assert_array_equal(
      stores.load('tiered_imagenet', 'test').images,
      fake.pixels('test')[..., ::-1])


def test_other_numbers_of_images_are_taken_where_asked(data, capsys):
  files = fake.named('{split}/{wnid}/{number}.png')
  del files['train/n01530575/2.png']
  fake.write_files(data / 'files', files)
  assert fake.build(data / 'files') == 2
  assert 'class n01530575 has 1 images, not 2' in capsys.readouterr().err
  assert fake.build(data / 'files', '--counts=any') == 0
  assert 'was not compared' in capsys.readouterr().out


def _labels(change, split='train', write=fake.write_npz):
  return lambda f: write(f, change=lambda s, c: (
      {**c, **change(c)} if s == split else c))


def _named(change, pattern='{split}/{wnid}/{number}.png'):
  return lambda f: fake.write_files(f, change(fake.named(pattern)))


def _without(start):
  return lambda files: {name: content for name, content in files.items()
                        if not name.startswith(start)}


def _pngs(change):
  def damage(folder):
    fake.write_pickles(folder)
    path = folder / 'test_images_png.pkl'
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))
  return damage


_TAR = LAYOUTS['the tar of ILSVRC']
_ILSVRC = 'ILSVRC2012_img_train.tar'
_HTML = lambda content: b'<!DOCTYPE html><html>quota exceeded</html>'
DAMAGES = {
    'nothing there': (lambda f: f.mkdir(),
                      'holds nothing of tiered_imagenet: put'),
    'labels are missing': (
        changed(fake.write_pickles, 'val_labels.pkl', None),
        'val_labels.pkl is missing in'),
    'images are missing': (
        changed(fake.write_npz, 'test_images.npz', None),
        'test_images.npz is missing in'),
    'npz cut short': (
        changed(fake.write_npz, 'train_images.npz', lambda c: c[:-99]),
        'train_images.npz cannot be read'),
    'npz with a wrong byte': (
        changed(fake.write_npz, 'train_images.npz',
                 lambda c: c[:9999] + bytes([c[9999] ^ 1]) + c[10000:]),
        'bad CRC of images.npy'),
    'npz is HTML': (changed(fake.write_npz, 'train_images.npz', _HTML),
                    'is an HTML page'),
    'npz of other arrays': (
        changed(fake.write_npz, 'val_images.npz', lambda c: c.replace(
            b'images.npy', b'pixels.npy')),
        'val_images.npz lacks images (it has pixels.npy)'),
    'npz of objects': (
        lambda f: fake.write_npz(f, save=lambda path, images: np.savez(
            path, images=np.array([None, 1], object))), 'an array of objects'),
    'npz of floats': (
        lambda f: fake.write_npz(f, save=lambda path, images: np.savez(
            path, images=images[:, :9, :9] / np.float32(255))),
        'is of float32, not uint8'),
    'labels without names': (
        changed(fake.write_npz, 'train_labels.pkl', lambda c: pickle.dumps(
            {'labels': fake.listed('train')[1].tolist()})),
        'nothing says which class a number means'),
    'labels of another kind': (
        _labels(lambda c: {'label_specific': ['a', 'b']}),
        'label_specific is no list of integers'),
    'a label too large': (
        _labels(lambda c: {'label_specific': c['label_specific'] + 1}),
        'label_specific has 351, but label_specific_str has 351 names'),
    'a name of no class': (
        _labels(lambda c: {'label_specific_str': [
            'unicorn', *c['label_specific_str'][1:]]}),
        "'unicorn', which is the name of no class of the train split"),
    'a class twice': (
        _labels(lambda c: {'label_specific_str': [
            c['label_specific_str'][1], *c['label_specific_str'][1:]]}),
        'two names of label_specific_str mean class'),
    'a class of another split': (
        _labels(lambda c: {'label_specific_str': [
            fake.CLASSES['test'][0], *c['label_specific_str'][1:]]}),
        f'class {fake.CLASSES["test"][0]}, which is of the test split'),
    'two labels exchanged': (
        _labels(lambda c: {'label_specific_str': sorted(
            c['label_specific_str'])}), 'images, not'),
    'fewer images than labels': (
        _pngs(lambda pngs: pngs[:-1]), 'both again'),
    'an image that is text': (
        _pngs(lambda pngs: [np.frombuffer(b'text', np.uint8), *pngs[1:]]),
        'cannot be decoded (it is no image'),
    'images that are pixels': (
        _pngs(lambda pngs: [np.zeros((84, 84, 3), np.uint8) for _ in pngs]),
        'is no row of uint8, the bytes of a PNG'),
    'a pickle cut short': (
        changed(fake.write_pickles, 'train_images_png.pkl',
                 lambda c: c[:len(c) // 2]), 'cannot be unpickled'),
    'a pickle would run code': (
        changed(fake.write_pickles, 'val_images_png.pkl',
                 lambda c: pickle.dumps([Runs()])), 'builtins.print'),
    'texts of unequal length': (
        lambda f: (fake.write_pickles(f), texts(f, str),
                   (f / 'synsets.txt').write_text('n1')),
        'synsets.txt has 1: fetch both again'),
    'a class folder is missing': (
        _named(_without('test/n02')), 'lacks class'),
    'a class folder in another split': (
        _named(lambda files: {
            name.replace('val/' + fake.CLASSES['validation'][0], 'train/'
                         + fake.CLASSES['validation'][0]): content
            for name, content in files.items()}),
        f'train has class {fake.CLASSES["validation"][0]}, which is of the '
        'validation split'),
    'no validation': (_named(_without('val/')), 'val is missing in'),
    'other colours': (
        lambda f: fake.write_npz(f, save=lambda path, images: np.savez(
            path, images=images[..., [0, 2, 1]])), 'other colours'),
    'a tar cut short': (
        changed(_TAR, _ILSVRC, lambda c: c[:len(c) // 2]),
        'a tar that is cut short'),
    'a tar is HTML': (changed(_TAR, _ILSVRC, _HTML),
                      'an HTML page, not a tar'),
    'a tar of links and paths': (
        lambda f: fake.write_files(f, {'x.tar': hostile_tar()}),
        'holds nothing of tiered_imagenet'),
    'a tar with a header of 2 MiB': (
        lambda f: fake.write_files(f, {'x.tar': tar_of_a_huge_header()}),
        'x.tar is not readable (a header of 2097152 bytes)'),
    'a class tar is missing': (
        lambda f: fake.write_files(f, {k: v for k, v in
                                       fake.class_tars().items()
                                       if k != 'n01530575.tar'}),
        'lacks class n01530575'),
}


def hostile_tar():
  """Returns a tar whose members point elsewhere."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as archive:
    for kind, name in ((tarfile.SYMTYPE, 'n01530575/1.png'),
                       (tarfile.LNKTYPE, 'n01530575/2.png'),
                       (tarfile.FIFOTYPE, '../n01530575/3.png')):
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, '/etc/passwd'
      archive.addfile(info)
  return file.getvalue()


def tar_of_a_huge_header():
  """Returns a tar whose extended header says that it has 2 MiB and has."""
  info = tarfile.TarInfo('x')
  info.type, info.size = tarfile.XHDTYPE, 2**21
  return info.tobuf(tarfile.USTAR_FORMAT) + bytes(2**21 + 1024)


@pytest.mark.parametrize('case', DAMAGES)
def test_damaged_files_get_one_line_and_build_nothing(case, data, capsys):
  """Fails if wrong files end in a traceback or in a wrong data set."""
  write, said = DAMAGES[case]
  write(data / 'files')
  code = fake.build(data / 'files')
  assert_refused(code, capsys.readouterr(), said, data / 'files')
  assert not (data / 'data').exists()


def test_a_full_disk_is_named(data, capsys, monkeypatch):
  """Fails if a file is called damaged that had no room to be unpacked."""
  fake.write_npz(data / 'files', save=np.savez_compressed)
  monkeypatch.setattr(tempfile, 'TemporaryFile',
                      lambda dir: open('/dev/full', 'r+b'))
  assert fake.build(data / 'files') == 2
  line, = capsys.readouterr().err.splitlines()
  assert 'train_images.npz takes' in line and 'make room there' in line


def test_originals_are_resized_with_a_notice(data, capsys):
  files = fake.named('train/{wnid}/{wnid}_{number}.JPEG')
  rng = np.random.default_rng(0)
  large = fake.mini_imagenet_fake.jpeg(rng.integers(
      0, 256, (50, 70, 3), np.uint8), size=(300, 200))
  files['train/n01530575/n01530575_1.JPEG'] = large
  fake.write_files(data / 'files', files)
  assert fake.build(data / 'files') == 0
  line, = [line for line in capsys.readouterr().out.splitlines()
           if 'not 84x84' in line]
  assert '300x200' in line and 'cubic filter of OpenCV' in line
  np.testing.assert_array_equal(
      stores.load('tiered_imagenet', 'train').images[0], cubic.resize(
          Image.fromarray(fake.mini_imagenet_fake.decode(large)), 84))
