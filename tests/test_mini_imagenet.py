"""mini-ImageNet: one store from every layout, on a counterfeit and on the real.

Damaged files are in test_mini_imagenet_damage.py.
"""

import itertools
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import zipfile

import command
import mini_imagenet_fake as fake
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiered_imagenet_fake
from etils import epath
from PIL import Image

from mtl_jax import errors
from mtl_jax.data import __main__ as data_main
from mtl_jax.data import building, published, store
from mtl_jax.data.sources import mini_imagenet
from mtl_jax.data.sources.imagenet import ilsvrc, images
from mtl_jax.data.sources.mini_imagenet import files, lists

REAL = os.environ.get('MTL_JAX_TEST_DATA') and pathlib.Path(
    os.environ['MTL_JAX_TEST_DATA']) / 'mini_imagenet'
CLASSES = {split: wnids[:count] for (split, wnids), count in zip(
    mini_imagenet.published_classes().items(), fake.NUM_CLASSES, strict=True)}
WANTED = mini_imagenet.wanted()  # before it is shrunk


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
  fake.use(monkeypatch, tmp_path / 'data')


def pixels():
  """All that a run reads, of the three splits."""
  loaded = [store.load('mini_imagenet', split) for split in CLASSES]
  return [(split.images.tobytes(), split.offsets.tolist(), split.class_names)
          for split in loaded]


def wanted_pixels():
  wanted = []
  for split, wnids in CLASSES.items():
    images = [fake.decode(content) for *_, content in fake.ordered(split)]
    wanted.append((np.stack(images).tobytes(),
                   list(range(0, len(images) + 1, fake.IMAGES)), wnids))
  return wanted


def test_lists_are_the_published_ones():
  classes = mini_imagenet.published_classes()
  assert [len(wnids) for wnids in classes.values()] == [64, 16, 20]
  assert len(set(itertools.chain(*classes.values()))) == 100
  assert all(list(wnids) == sorted(wnids) for wnids in classes.values())


# Name -> what writes the layout, and what the command says that it found.
LAYOUTS = {
    'c zips': (fake.write_zips, 'layout c'),
    'c zips, bare names': (
        lambda folder: fake.write_zips(folder, inside=''), 'layout c'),
    'c loose': (fake.write_loose, 'layout c'),
    'c in a folder': (
        lambda folder: fake.write_zips(folder / 'mini_imagenet'), 'layout c'),
    'c in any folder': (
        lambda folder: fake.write_zips(folder / 'mini'), 'layout c'),
    'a': (fake.write_cache, 'layout a'),
    'a, validation.pkl': (
        lambda folder: fake.write_cache(folder, validation='validation'),
        'layout a'),
    'a by Python 2': (
        lambda folder: fake.write_cache(folder, fake.dump_python2),
        'layout a'),
    'b': (fake.write_category_split, 'layout b'),
    'b, protocol 2': (
        lambda folder: fake.write_category_split(
            folder, lambda content: pickle.dumps(content, 2)),
        'layout b'),
    'b, protocol 5': (
        lambda folder: fake.write_category_split(
            folder, lambda content: pickle.dumps(content, 5)),
        'layout b'),
    'b by Python 2': (
        lambda folder: fake.write_category_split(folder, fake.dump_python2),
        'layout b'),
    'd': (fake.write_folders, 'layout d'),
    # As people have them.
    'c in folders of folders': (
        lambda folder: fake.write_zips(folder / 'a/b/mini'), 'layout c'),
    'c, zips with folders of folders': (
        lambda folder: fake.write_zips(folder, inside='mini/84/images/'),
        'layout c'),
    'c, lists beside the folder of images': (
        lambda folder: fake.write_loose(folder) or moved(
            folder, folder / 'split', '*.csv'), 'layout c'),
    'c, images in class folders': (
        lambda folder: fake.write_loose(folder) or by_class(
            folder / 'images'), 'layout c'),
    'c, all in one zip': (
        lambda folder: fake.write_loose(folder / 'mini') or zipped(folder),
        'layout c'),
    'c, image and label': (
        lambda folder: relisted(folder, 'image,label\n', '{name},{wnid}\n'),
        'layout c'),
    'c, rows with numbers, class first, paths': (
        lambda folder: relisted(
            folder, ',class_name,path\n', '7,{wnid},images/{name}\n'),
        'layout c'),
    'c, no header': (
        lambda folder: relisted(folder, '', '{name},{wnid}\n'), 'layout c'),
    'a in one zip': (
        lambda folder: fake.write_cache(folder / 'mini') or zipped(folder),
        'layout a'),
    'b in folders of folders': (
        lambda folder: fake.write_category_split(folder / 'a/b'), 'layout b'),
    'd in folders of folders': (
        lambda folder: fake.write_folders(folder / 'a/b'), 'layout d'),
    'd in one zip': (
        lambda folder: fake.write_folders(folder / 'mini') or zipped(folder),
        'layout d'),
    'd, a zip for each split': (
        lambda folder: fake.write_folders(folder) or zipped_apart(
            folder, named=True), 'layout d'),
    'd, a zip for each split, without a folder of the split': (
        lambda folder: fake.write_folders(folder / 'mini') or zipped_apart(
            folder / 'mini', named=False), 'layout e'),
    'd, images in folders of the class folders': (
        lambda folder: fake.write_folders(folder) or deeper(folder, '*/n*'),
        'layout d'),
    'e': (lambda folder: one_folder(folder), 'layout e'),
    'e in folders of folders': (
        lambda folder: one_folder(folder / 'mini/images'), 'layout e'),
    'e in one zip': (
        lambda folder: one_folder(folder / 'mini') or zipped(folder),
        'layout e'),
}


def moved(folder, to, pattern):
  to.mkdir()
  for path in folder.glob(pattern):
    path.rename(to / path.name)


def by_class(folder):
  for path in folder.glob('*.jpg'):
    (folder / path.name[:9]).mkdir(exist_ok=True)
    path.rename(folder / path.name[:9] / path.name)


def deeper(folder, pattern):
  for of_class in folder.glob(pattern):
    moved(of_class, of_class / 'images', '*.jpg')


def zipped(folder):
  """Packs a folder into one zip in it, and removes what was packed."""
  inside = sorted(folder.rglob('*'))
  with zipfile.ZipFile(folder / 'archive.zip', 'w') as archive:
    for path in inside:
      archive.write(path, path.relative_to(folder))
    archive.writestr('__MACOSX/mini/._train.csv', 'of an archiver')
  for path in inside:
    path.unlink() if path.is_file() else None
  shutil.rmtree(folder / 'mini')


def zipped_apart(folder, named):
  """Packs {train,val,test} into a zip each; `named` keeps this folder in it."""
  for path in list(folder.iterdir()):
    with zipfile.ZipFile(folder / f'{path.name}.zip', 'w') as archive:
      for file in path.rglob('*.jpg'):
        archive.write(file, file.relative_to(folder if named else path))
    shutil.rmtree(path)


def relisted(folder, header, row):
  fake.write_loose(folder)
  for split, name in fake.CSVS.items():
    (folder / name).write_text(header + ''.join(
        row.format(name=image, wnid=wnid)
        for wnid, image, _ in fake.rows()[split]))


def one_folder(folder):
  """All class folders in one, with a class of ImageNet that is not wanted."""
  fake.write_folders(folder)
  for path in sorted(folder.glob('*/n*')):
    path.rename(folder / path.name)
  for split in ('train', 'val', 'test'):
    (folder / split).rmdir()
  (folder / 'n00000001').mkdir()
  (folder / 'n00000001/x.jpg').write_bytes(b'')


@pytest.mark.parametrize('case', LAYOUTS)
def test_every_layout_gives_the_same_store(case, tmp_path, capsys):
  write, text = LAYOUTS[case]
  write(tmp_path / 'files')
  assert fake.build(tmp_path / 'files') == 0
  printed = capsys.readouterr()
  assert text in printed.out and str(tmp_path / 'files') in printed.out
  assert 'not 84x84' not in printed.out and not printed.err
  assert pixels() == wanted_pixels()


def test_records_keep_jpegs_names_and_labels(tmp_path, monkeypatch):
  fake.write_zips(tmp_path / 'files')
  monkeypatch.setenv('MTL_JAX_MANUAL', str(tmp_path / 'files'))
  builder = store.prepare('mini_imagenet')
  names = builder.info.features['label'].names
  assert names == list(itertools.chain(*CLASSES.values()))
  source = builder.as_data_source(
      split='test', decoders={'image': tfds.decode.SkipDecoding()})
  for record, (wnid, name, content) in zip(
      source, fake.ordered('test'), strict=True):
    assert record['image'] == content, 'a JPEG was encoded again'
    assert (names[record['label']], record['file_name'].decode()) == (
        wnid, name)


def test_names_that_are_no_text_are_kept_as_text(tmp_path):
  folder = tmp_path / os.fsdecode(b'caf\xe9')
  fake.write_folders(folder)
  wnid, name, _ = fake.ordered('test')[0]
  image = folder / 'test' / wnid / name
  image.rename(image.with_name(os.fsdecode(b'a\xe9.jpg')))
  assert fake.build(folder) == 0
  assert store.image_names(store.load('mini_imagenet', 'test'))[0] == (
      r'a\xe9.jpg')


def test_the_first_complete_layout_wins(tmp_path, capsys):
  fake.write_cache(tmp_path)
  (tmp_path / 'train.csv').write_text('half a layout')
  (tmp_path / 'omniglot').mkdir()
  (tmp_path / 'omniglot/images_background.zip').write_bytes(b'other')
  assert fake.build(tmp_path) == 0
  assert 'layout a' in capsys.readouterr().out


def build_with(folder, capsys, split, number, content, words):
  """Builds with another JPEG; returns the notice on it that has `words`."""
  fake.write_zips(folder, **{f'{split}{number}': content})
  assert fake.build(folder) == 0
  line, = [line for line in capsys.readouterr().out.splitlines()
           if words in line]
  assert f'1 of {7 * fake.IMAGES}' in line
  assert fake.ordered(split)[number][1] in line
  return line


def test_other_sizes_are_resized_with_a_notice(tmp_path, capsys):
  wide = np.kron(fake.arrays('train')[0][2][::12, ::12],
                 np.ones((20, 30, 1), np.uint8))
  content = fake.jpeg(wide, (300, 200))
  line = build_with(tmp_path / 'files', capsys, 'train', 2, content,
                    'not 84x84')
  assert '300x200' in line and 'LANCZOS' in line
  np.testing.assert_array_equal(
      store.load('mini_imagenet', 'train').images[2],
      Image.fromarray(fake.decode(content)).resize(
          (84, 84), Image.Resampling.LANCZOS))


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_grey_images_are_converted_with_a_notice(mode, tmp_path, capsys):
  content = fake.jpeg(fake.arrays('test')[0][1], mode=mode)
  line = build_with(tmp_path / 'files', capsys, 'test', 1, content, 'not RGB')
  assert f'mode {mode}' in line
  np.testing.assert_array_equal(
      store.load('mini_imagenet', 'test').images[1], fake.decode(content))


def test_bgr(tmp_path, capsys, monkeypatch):
  def swap(content):
    return content | {'image_data': content['image_data'][..., ::-1].copy()}
  fake.write_cache(tmp_path / 'bgr', split='train', change=swap)
  assert fake.build(tmp_path / 'bgr') == 0
  assert 'Warning: the channel means' in capsys.readouterr().out
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path / 'second'))
  monkeypatch.setattr(images, 'MIN_FOR_ORDER', 3)
  assert fake.build(tmp_path / 'bgr') == 2
  line, = capsys.readouterr().err.splitlines()
  means = fake.arrays('train')[0].mean((0, 1, 2))[::-1]
  for text in ('train split', 'mini-imagenet-cache-train.pkl', 'is BGR',
               '--channel_order=bgr', ', '.join(f'{m:.1f}' for m in means)):
    assert text in line
  fake.write_cache(tmp_path / 'rbg', split='test', change=lambda content: (
      content | {'image_data': content['image_data'][..., [0, 2, 1]]}))
  assert fake.build(tmp_path / 'rbg') == 2
  assert 'test split' in (line := capsys.readouterr().err)
  assert 'other colours' in line
  assert not (tmp_path / 'second').exists()
  assert fake.build(tmp_path / 'bgr', '--channel_order=rgb') == 0
  np.testing.assert_array_equal(
      store.load('mini_imagenet', 'train').images,
      fake.arrays('train')[0][..., ::-1])
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path / 'third'))
  assert fake.build(tmp_path / 'bgr', '--channel_order=bgr') == 0
  np.testing.assert_array_equal(
      store.load('mini_imagenet', 'train').images, fake.arrays('train')[0])


KILLED = """
import os, signal, sys
import mini_imagenet_fake as fake
from mtl_jax.data import __main__ as data_main
from mtl_jax.data.sources import mini_imagenet
from mtl_jax.data.sources.imagenet import images
fake.shrink(setattr)
encode, calls = images.encode, []
def encode_some(*args):
  calls.append(0)
  if len(calls) > int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
  return encode(*args)
images.encode = encode_some
sys.exit(data_main.main(['build', 'mini_imagenet']))
"""


@pytest.mark.parametrize('encoded', [0, 17])
def test_a_killed_build_starts_again(encoded, tmp_path, capsys, monkeypatch):
  fake.write_zips(tmp_path / 'files')
  monkeypatch.setenv('MTL_JAX_MANUAL', str(tmp_path / 'files'))
  result = subprocess.run(
      [sys.executable, '-c', KILLED, str(encoded)], cwd=command.ROOT / 'tests',
      env={**os.environ, 'PYTHONPATH': str(command.ROOT)})
  assert result.returncode == -signal.SIGKILL
  folder = tmp_path / 'data/mini_imagenet'
  assert list(folder.glob('incomplete*')), 'it was not killed half way'
  assert data_main.main(['list']) == 0
  assert 'mini_imagenet            not built' in capsys.readouterr().out
  assert data_main.main(['build', 'mini_imagenet']) == 0
  assert not list(folder.glob('incomplete*'))
  assert pixels() == wanted_pixels()


def test_two_builds_wait_for_each_other(tmp_path):
  """Fails if a build removes what another one is writing."""
  path = epath.Path(tmp_path / 'set/1.0.0')
  second = threading.Thread(
      target=lambda: building.alone(path).__enter__(), daemon=True)
  with building.alone(path):
    (tmp_path / 'set/incomplete.ABC_1.0.0').mkdir()
    (tmp_path / 'set/incomplete.ABC_2.0.0').mkdir()
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert (tmp_path / 'set/incomplete.ABC_1.0.0').exists()
  second.join(20)
  assert not second.is_alive()
  assert not (tmp_path / 'set/incomplete.ABC_1.0.0').exists()
  assert (tmp_path / 'set/incomplete.ABC_2.0.0').exists()


real = pytest.mark.skipif(
    not (REAL and REAL.is_dir()),
    reason='needs $MTL_JAX_TEST_DATA/mini_imagenet, the published files')


@pytest.fixture(scope='module')
def layout():
  return files.find(REAL, WANTED)


@real
@pytest.mark.parametrize('split', CLASSES)
def test_real_files_are_in_order_and_kept(split, layout):
  opened = layout.open(split)
  wnids = mini_imagenet.published_classes()[split]
  assert opened.classes == [wnid for wnid in wnids for _ in range(600)]
  assert opened.names == sorted(opened.names)
  means = []
  for i in range(0, len(opened.classes), 75):
    content = opened.read(i)
    assert opened.names[i].startswith(opened.classes[i])
    assert images.encode(content, swap=False) is content
    means.append(fake.decode(content).mean((0, 1)))
  red, green, blue = np.mean(means, axis=0)
  assert red > green > blue
  if split == 'train':
    np.testing.assert_allclose(
        np.mean(means, axis=0) / 255, mini_imagenet.SOURCE.mean,
        atol=0.02)


@real
def test_real_lists_that_are_exchanged_are_refused(layout, tmp_path):
  for name, of in (('train', 'train'), ('val', 'test'), ('test', 'val')):
    (tmp_path / f'{name}.csv').write_bytes((REAL / f'{of}.csv').read_bytes())
  (tmp_path / 'images').mkdir()
  with pytest.raises(errors.UserError, match='val.csv has class n01930112, '
                     'which is of the test split'):
    files.find(tmp_path, WANTED)


def write_originals(folder, form):
  """Writes lists with names of rank 1 to 899 of 900, and ILSVRC's images."""
  fake.write_lists(folder)
  files = {f'{wnid}/{wnid}_{number}.JPEG': content
           for wnid, numbered in fake.originals(900).items()
           for number, content in numbered.items()}
  if form == 'tree':
    tiered_imagenet_fake.write_files(folder / 'ILSVRC/train', files)
    return
  tars = {}
  for name, content in files.items():
    wnid, image = name.split('/')
    tars.setdefault(f'{wnid}.tar', {})[image] = content
  tars = {name: tiered_imagenet_fake.tar(of_class)
          for name, of_class in tars.items()}
  if form == 'tar':
    tars = {'ILSVRC2012_img_train.tar': tiered_imagenet_fake.tar(tars)}
  tiered_imagenet_fake.write_files(folder, tars)


@pytest.fixture
def ilsvrc_of_900(monkeypatch):
  monkeypatch.setattr(ilsvrc, 'sizes', lambda wnids: dict.fromkeys(wnids, 900))


@pytest.mark.parametrize('form', ['tree', 'tar', 'tars of classes'])
def test_originals_are_found_by_their_rank(
    form, tmp_path, capsys, ilsvrc_of_900):
  """Fails if image 5 of a class is taken for the one that is numbered 5."""
  write_originals(tmp_path / 'files', form)
  assert fake.build(tmp_path / 'files') == 0
  assert 'layout f' in capsys.readouterr().out
  assert pixels() == wanted_pixels()


def test_originals_of_which_one_is_missing_are_refused(
    tmp_path, capsys, ilsvrc_of_900):
  """Fails if all images behind a gap are taken for their neighbours."""
  write_originals(tmp_path / 'files', 'tree')
  lost, = (tmp_path / 'files').rglob(f'{CLASSES["test"][1]}_14.JPEG')
  lost.unlink()
  assert fake.build(tmp_path / 'files') == 2
  line, = capsys.readouterr().err.splitlines()
  assert f'class {CLASSES["test"][1]} has 899 images, not 900' in line


def test_originals_without_lists_are_told_which_lists(
    tmp_path, capsys, ilsvrc_of_900):
  write_originals(tmp_path / 'files', 'tree')
  for name in fake.CSVS.values():
    (tmp_path / 'files' / name).unlink()
  assert fake.build(tmp_path / 'files') == 2
  line, = capsys.readouterr().err.splitlines()
  assert 'put train.csv, val.csv and test.csv beside them' in line


@real
def test_real_lists_name_no_image_that_ilsvrc_does_not_have():
  for split, name in fake.CSVS.items():
    for wnid, image in lists.read_csv(published.File(REAL, name)):
      assert 1 <= int(image[9:17]) <= ilsvrc.sizes([wnid])[wnid], split
