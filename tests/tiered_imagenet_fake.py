"""A counterfeit of tiered-ImageNet in every layout: its classes, few images."""

import functools
import io
import pickle
import tarfile
import zipfile

import mini_imagenet_fake
import numpy as np

from mtl_jax.data import __main__ as data_main
from mtl_jax.data.sources import tiered_imagenet
from mtl_jax.data.sources.imagenet import images

SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
CLASSES = tiered_imagenet.SOURCE.classes('')
NAMES = tiered_imagenet.names()


def sizes():
  """Returns wnid -> number of images: 2 for each ninth class, else 1."""
  wnids = [wnid for of_split in CLASSES.values() for wnid in of_split]
  return {wnid: 1 + (i % 9 == 0) for i, wnid in enumerate(wnids)}


@functools.cache
def rows(split):
  """Returns [(wnid, number, PNG)] in the order of the store."""
  rng = np.random.default_rng(len(split))
  of_split = []
  for wnid in CLASSES[split]:
    for number in range(sizes()[wnid]):
      coarse = rng.integers(0, 180, (3, 3, 3)) + [60, 40, 10]
      pixels = np.kron(coarse, np.ones((28, 28, 1))).astype(np.uint8)
      of_split.append((wnid, 1 + number, mini_imagenet_fake.jpeg(
          pixels, kind='PNG')))
  return of_split


@functools.cache
def pixels(split):
  """Returns uint8 [I, 84, 84, 3] in the order of the store."""
  return np.stack([mini_imagenet_fake.decode(png) for *_, png in rows(split)])


@functools.cache
def listed(split):
  """Returns the order of a pickle: classes in the order of another disk.

  Returns:
    Rows of the store, the number of the class of each, and their wnids.
  """
  wnids = list(np.random.default_rng(5).permutation(CLASSES[split]))
  number = {wnid: i for i, wnid in enumerate(wnids)}
  labels = np.array([number[wnid] for wnid, *_ in rows(split)], np.int32)
  order = np.argsort(labels, kind='stable')
  return order, labels[order], list(map(str, wnids))


def label_content(split, names=None):
  """Returns what Ren et al. keep in {split}_labels.pkl."""
  _, labels, wnids = listed(split)
  return {'label_specific': labels, 'label_general': labels // 30,
          'label_specific_str': [names[w] if names else w for w in wnids],
          'label_general_str': ['animal']}


def write_labels(folder, names=NAMES, prefix='', dump=pickle.dumps,
                 change=lambda split, content: content):
  folder.mkdir(parents=True, exist_ok=True)
  for split, short in SPLITS.items():
    (folder / f'{prefix}{short}_labels.pkl').write_bytes(
        dump(change(split, label_content(split, names))))


def write_pickles(folder, dump=pickle.dumps, column=True, prefix='', **kwargs):
  """Layout a."""
  write_labels(folder, prefix=prefix, dump=dump, **kwargs)
  for split, short in SPLITS.items():
    pngs = [np.frombuffer(rows(split)[i][2], np.uint8)
            for i in listed(split)[0]]
    (folder / f'{prefix}{short}_images_png.pkl').write_bytes(
        dump([png[:, None] if column else png for png in pngs]))


def write_npz(folder, save=np.savez, step=-1, **kwargs):
  """Layout b, BGR as OpenCV decodes."""
  write_labels(folder, **kwargs)
  for split, short in SPLITS.items():
    save(folder / f'{short}_images.npz',
         images=pixels(split)[listed(split)[0]][..., ::step])


def named(pattern):
  """Returns the path of each image -> its bytes."""
  return {pattern.format(split=SPLITS[split], wnid=wnid, number=number): png
          for split in SPLITS for wnid, number, png in rows(split)}


def write_files(folder, files):
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_zip(folder, files):
  folder.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(folder / 'tiered.zip', 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)


def tar(files):
  """Returns the bytes of a tar."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return file.getvalue()


def class_tars():
  """Returns 'n01530575.tar' .. -> bytes, and a class of no split."""
  tars = {}
  for split in SPLITS:
    for wnid, number, png in rows(split):
      tars.setdefault(f'{wnid}.tar', {})[f'{wnid}_{number}.JPEG'] = png
  tars = {name: tar(files) for name, files in tars.items()}
  return tars | {'n00000001.tar': b'another class'}


def use(monkeypatch, data_dir):
  """Shrinks the data set for one test, which builds it in `data_dir`."""
  monkeypatch.setattr(tiered_imagenet, 'sizes', sizes)
  monkeypatch.setattr(images, 'MIN_FOR_ORDER', 20)
  monkeypatch.setenv('MTL_JAX_DATA', str(data_dir))
  monkeypatch.delenv('MTL_JAX_MANUAL', raising=False)


def build(folder, *options):
  """Runs the command that builds from a folder; returns its exit code."""
  return data_main.main(['build', 'tiered_imagenet',
                         f'--manual_dir={folder}', *options])
