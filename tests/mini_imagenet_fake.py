"""A counterfeit of mini-ImageNet in every published layout, a few images."""

import functools
import io
import pickle
import struct
import zipfile

import numpy as np
from PIL import Image

from mtl_jax.data import __main__ as data_main
from mtl_jax.data.sources import mini_imagenet

NUM_CLASSES, IMAGES = (3, 2, 2), 4
CSVS = {'train': 'train.csv', 'validation': 'val.csv', 'test': 'test.csv'}
ZIPS = {'train': 'images-1.zip', 'validation': 'images-2.zip',
        'test': 'images-2.zip'}


def shrink(patch):
  """Makes the data set as small as the counterfeit, by a monkeypatch."""
  patch(mini_imagenet, 'NUM_CLASSES', NUM_CLASSES)
  patch(mini_imagenet, 'IMAGES_PER_CLASS', IMAGES)


def jpeg(pixels, size=(84, 84), mode='RGB', kind='JPEG'):
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).resize(size).save(file, kind)
  return file.getvalue()


def decode(content):
  return np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))


@functools.cache
def rows():
  """split -> [(wnid, name, JPEG)], neither by class nor by name."""
  rng = np.random.default_rng(3)
  of_splits = {}
  for (split, wnids), count in zip(
      mini_imagenet.published_classes().items(), NUM_CLASSES, strict=True):
    of_split = []
    for wnid in wnids[:count]:
      for number in rng.permutation(900)[:IMAGES]:
        coarse = rng.integers(0, 180, (6, 6, 3)) + [60, 40, 10]
        pixels = np.kron(coarse, np.ones((14, 14, 1))).astype(np.uint8)
        of_split.append((wnid, f'{wnid}{number:08d}.jpg', jpeg(pixels)))
    rng.shuffle(of_split)
    of_splits[split] = [(str(w), str(n), bytes(c)) for w, n, c in of_split]
  return of_splits


def ordered(split):
  """Rows in the order of the store."""
  return sorted(rows()[split])


def write_lists(folder, **changes):
  """The CSVs; changes: split -> text."""
  folder.mkdir(parents=True, exist_ok=True)
  for split, name in CSVS.items():
    lines = [f'{name},{wnid}\n' for wnid, name, _ in rows()[split]]
    (folder / name).write_text(
        changes.get(split, 'filename,label\n' + ''.join(lines)))


def write_zips(folder, inside='images/', skip=(), **changes):
  """Layout c in zips; changes: number of an image in training -> JPEG."""
  write_lists(folder)
  for name in sorted(set(ZIPS.values())):
    with zipfile.ZipFile(folder / name, 'w') as archive:
      for split in ZIPS:
        for i, (_, image, content) in enumerate(ordered(split)):
          if ZIPS[split] == name and image not in skip:
            archive.writestr(
                inside + image, changes.get(f'{split}{i}', content))


def write_loose(folder):
  """Layout c in a folder."""
  write_lists(folder)
  (folder / 'images').mkdir()
  for split in CSVS:
    for _, image, content in rows()[split]:
      (folder / 'images' / image).write_bytes(content)


def arrays(split):
  """Returns uint8 [I, 84, 84, 3] and wnids [I], in the order of the store."""
  of_split = ordered(split)
  return (np.stack([decode(content) for *_, content in of_split]),
          [wnid for wnid, *_ in of_split])


def mixed(split):
  """As `arrays`, classes mixed, within a class in the same order."""
  images, wnids = arrays(split)
  order = np.argsort(np.arange(len(wnids)) % IMAGES, kind='stable')
  return images[order], [wnids[i] for i in order]


def write_cache(folder, dump=pickle.dumps, validation='val', split=None,
                change=lambda content: content):
  """Layout a; `change` of the content of one split."""
  folder.mkdir(parents=True, exist_ok=True)
  for key, name in zip(CSVS, ('train', validation, 'test'), strict=True):
    images, wnids = mixed(key)
    content = {'image_data': images, 'class_dict': {
        wnid: [i for i, w in enumerate(wnids) if w == wnid]
        for wnid in sorted(set(wnids), reverse=True)}}
    content = change(content) if key == split else content
    (folder / f'mini-imagenet-cache-{name}.pkl').write_bytes(dump(content))


def write_category_split(folder, dump=pickle.dumps, split=None,
                         change=lambda content: content):
  """Layout b."""
  folder.mkdir(parents=True, exist_ok=True)
  first = 0
  for key, name in zip(CSVS, ('train_phase_train', 'val', 'test'),
                       strict=True):
    images, wnids = mixed(key)
    numbers = {wnid: first + i for i, wnid in enumerate(sorted(set(wnids)))}
    first += len(numbers)
    content = {'data': images, 'labels': [numbers[w] for w in wnids],
               'catname2label': numbers}
    content = change(content) if key == split else content
    (folder / f'miniImageNet_category_split_{name}.pickle').write_bytes(
        dump(content))


def write_folders(folder):
  """Layout d."""
  for split, name in (('train', 'train'), ('validation', 'val'),
                      ('test', 'test')):
    for wnid, image, content in rows()[split]:
      (folder / name / wnid).mkdir(parents=True, exist_ok=True)
      (folder / name / wnid / image).write_bytes(content)


def dump_python2(value):
  """Pickles as Python 2 and its numpy did, protocol 2: text is bytes."""
  return b'\x80\x02' + _python2(value) + b'.'


def _python2(value):
  if isinstance(value, str):
    return b'T' + struct.pack('<i', len(value)) + value.encode('latin1')
  if isinstance(value, bytes):
    return b'T' + struct.pack('<i', len(value)) + value
  if isinstance(value, int):
    return b'J' + struct.pack('<i', value)
  if value is None:
    return b'N'
  if isinstance(value, tuple):
    return b'(' + b''.join(map(_python2, value)) + b't'
  if isinstance(value, list):
    return b'(' + b''.join(map(_python2, value)) + b'l'
  if isinstance(value, dict):
    return b'(' + b''.join(
        _python2(k) + _python2(v) for k, v in value.items()) + b'd'
  dtype = (b'cnumpy\ndtype\n' + _python2((value.dtype.str[1:], 0, 1))
           + b'R' + _python2((3, value.dtype.str[0], None, None, None, -1, -1,
                              0)) + b'b')
  return (b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n'
          + _python2((0,)) + _python2('b') + b'tR(' + _python2(1)
          + _python2(value.shape) + dtype + b'I00\n'
          + _python2(value.tobytes()) + b'tb')


def use(monkeypatch, data_dir):
  """Shrinks the data set for one test, which builds it in `data_dir`."""
  shrink(monkeypatch.setattr)
  monkeypatch.setenv('MTL_JAX_DATA', str(data_dir))
  monkeypatch.delenv('MTL_JAX_MANUAL', raising=False)


def build(folder, *options):
  """Runs the command that builds from a folder; returns its exit code."""
  return data_main.main(['build', 'mini_imagenet',
                         f'--manual_dir={folder}', *options])


def originals(size):
  """Returns wnid -> the JPEGs of its class in ILSVRC, by number.

  The numbers have gaps. The published images are those whose ranks their names
  state; the others are grey.
  """
  grey = jpeg(np.full((84, 84, 3), 99, np.uint8))
  of_class = {}
  for split in CSVS:
    for wnid, name, content in rows()[split]:
      numbered = of_class.setdefault(wnid, {7 * i: grey for i in range(
          1, size + 1)})
      numbered[7 * int(name[9:17])] = content
  return of_class
