"""A counterfeit of CIFAR-100 in every layout: its classes, a few images."""

import functools
import io
import pathlib
import pickle
import tarfile
import zipfile

import mini_imagenet_fake
import numpy as np
from PIL import Image

from mtl_jax.data import __main__ as data_main
from mtl_jax.data.sources import cifar100

TABLE = cifar100.TABLE
TRAIN, TEST = 2, 1  # images per class; 500 and 100 in the published archive
SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
PREFIX = {'cifar_fs': 'CIFAR_FS', 'fc100': 'FC100'}


@functools.cache
def images(train=TRAIN, test=TEST):
  """Returns uint8 [100, I, 32, 32, 3], redder than blue as the real ones."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 200, (100, train + test, 32, 32, 3), np.uint8)
  return pixels + np.array([50, 40, 20], np.uint8)


def name_of(fine, i):
  """The name of an image's file, as the archive has it."""
  return f'{TABLE.fine[fine]}_s_{i:06d}.png'


def raw(part):
  """Returns images [I, 32, 32, 3], fine labels and names of train or test."""
  of_class = {'train': range(TRAIN), 'test': range(TRAIN, TRAIN + TEST)}[part]
  rows = [(fine, i) for i in of_class for fine in
          np.random.default_rng(i).permutation(100).tolist()]
  return (np.stack([images()[row] for row in rows]),
          [fine for fine, _ in rows], [name_of(*row) for row in rows])


def planes(pixels):
  return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(
      len(pixels), -1)


def python_files(change=lambda part, content: content):
  """Returns name -> bytes of the archive's files, as Python 2 wrote them."""
  files = {}
  for part in ('train', 'test'):
    pixels, fine, names = raw(part)
    content = {'data': planes(pixels), 'fine_labels': fine,
               'coarse_labels': [TABLE.coarse_of[f] for f in fine],
               'filenames': names, 'batch_label': 'training batch 1 of 1'}
    files[part] = mini_imagenet_fake.dump_python2(change(part, content))
  files['meta'] = pickle.dumps({'fine_label_names': TABLE.fine})
  return files


def binary_files():
  files = {}
  for part in ('train', 'test'):
    pixels, fine, _ = raw(part)
    coarse = [TABLE.coarse_of[f] for f in fine]
    files[f'{part}.bin'] = np.concatenate(
        [np.array([coarse, fine], np.uint8).T, planes(pixels)], 1).tobytes()
  return files


def write(folder, files):
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_tar(folder, files, name, mode='w:gz'):
  folder.mkdir(parents=True, exist_ok=True)
  with tarfile.open(folder / f'{name}.tar.gz', mode) as archive:
    for file, content in files.items():
      info = tarfile.TarInfo(f'{name}/{file}')
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))


def of_split(name, split):
  """Returns images and labels of a split, classes mixed."""
  numbers = [TABLE.fine.index(c) for c in cifar100.SOURCES[name].classes('')[
      split]]
  rows = [(fine, i) for i in range(TRAIN + TEST) for fine in numbers]
  return np.stack([images()[row] for row in rows]), [fine for fine, _ in rows]


def write_pickles(folder, name, pattern='{}.pickle', dump=pickle.dumps,
                  change=lambda split, content: content):
  for split, short in SPLITS.items():
    pixels, labels = of_split(name, split)
    write(folder, {pattern.format(short): dump(change(
        split, {'data': pixels, 'labels': labels}))})


def write_npz(folder, name):
  folder.mkdir(parents=True, exist_ok=True)
  for split, short in SPLITS.items():
    pixels, labels = of_split(name, split)
    np.savez(folder / f'few-shot-{short}.npz', features=pixels, targets=labels)


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def class_files(above=lambda fine: ''):
  """Returns 'apple/x.png' -> bytes; `above` is the folder of a class."""
  return {str(pathlib.PurePosixPath(above(fine), TABLE.fine[fine],
                                    name_of(fine, i))): png(images()[fine, i])
          for fine in range(100) for i in range(TRAIN + TEST)}


def split_folder(name, pattern='meta-{}'):
  """Returns fine -> the folder of its split."""
  folder = {c: pattern.format(SPLITS[split]) for split, classes in
            cifar100.SOURCES[name].classes('').items() for c in classes}
  return lambda fine: folder[TABLE.fine[fine]]


def write_zip(folder, files, name='cifar100.zip', inside='cifar100/data/'):
  folder.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(folder / name, 'w') as archive:
    for file, content in files.items():
      archive.writestr(inside + file, content)


def write_hdf5(folder):
  import h5py
  folder.mkdir(parents=True, exist_ok=True)
  with h5py.File(folder / 'data.hdf5', 'w') as file:
    for fine, name in enumerate(TABLE.fine):
      group = file.require_group(TABLE.coarse[TABLE.coarse_of[fine]])
      group.create_dataset(name, data=images()[fine])


def use(monkeypatch, data_dir):
  """Shrinks the data sets for one test, which builds them in `data_dir`."""
  monkeypatch.setattr(cifar100, 'IMAGES_PER_CLASS', TRAIN + TEST)
  monkeypatch.setenv('MTL_JAX_DATA', str(data_dir))
  monkeypatch.delenv('MTL_JAX_MANUAL', raising=False)


def build(name, folder, *options):
  """Runs the command that builds from a folder; returns its exit code."""
  return data_main.main(['build', name, f'--manual_dir={folder}', *options])
