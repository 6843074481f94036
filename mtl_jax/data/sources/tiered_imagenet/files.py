"""Finds the published files of tiered-ImageNet, in one of several layouts.

See docs/tiered_imagenet.md for the layouts.
"""

import functools

import numpy as np

from mtl_jax import unpickle
from mtl_jax.data import pickled, published
from mtl_jax.data.source import SPLITS, PublishedFile, what_to_put
from mtl_jax.data.sources.imagenet import files, ilsvrc
from mtl_jax.data.sources.imagenet import wanted as wanted_files
from mtl_jax.data.sources.tiered_imagenet import labels
from mtl_jax.errors import UserError

LISTS = ('use the lists of Ren et al. (2018): '
         'fewshot/data/tiered_imagenet_split of '
         'github.com/renmengye/few-shot-ssl-public')
_LABELS = PublishedFile('{train,val,test}_labels.pkl')
LAYOUTS = {
    'PNGs in pickles (layout a)': (
        PublishedFile('{train,val,test}_images_png.pkl'), _LABELS),
    'npz files (layout b)': (
        PublishedFile('{train,val,test}_images.npz'), _LABELS),
    'class folders of splits (layout d)': (
        PublishedFile('{train,val,test}/WNID/*.jpg'),),
    'originals': (ilsvrc.TAR,),
}
WHAT_TO_PUT = what_to_put(LAYOUTS)
_PREFIXES = ('', 'tiered-imagenet-')
_TEXTS = ('class_names.txt', 'synsets.txt')


def find(top, wanted, names, scratch):
  """Finds the first complete layout: see files.find of imagenet.

  Args:
    top: pathlib.Path of the folder.
    wanted: Wanted.
    names: wnid -> what the class is called.
    scratch: as of published.mapped.
  """
  kinds = [functools.partial(_split_files, names=names, scratch=scratch,
                             text=text, ending=ending, load=load)
           for text, ending, load in (
               ('PNGs in pickles (layout a)', 'images_png.pkl', _pngs),
               ('npz files (layout b)', 'images.npz', _arrays))]
  return files.find(top, wanted, (*kinds, files.class_folders),
                    ('.pkl', '.npz', *_TEXTS))


def _split_files(tree, wanted, *, names, scratch, text, ending, load):
  """Yields the Candidates of a file of images and one of labels per split."""
  for folder, there in tree.folders.items():
    for prefix in _PREFIXES:
      images, label_files, missing = {}, {}, []
      for split in SPLITS:
        for of_split, last in ((images, ending), (label_files, 'labels.pkl')):
          every = [f'{prefix}{name}_{last}' for name in files.NAMES[split]]
          of_split[split] = next(
              (there[name] for name in every if name in there), None)
          if of_split[split] is None:
            missing.append(every[0])
      if any(images.values()):
        texts = [there.get(prefix + name, there.get(name)) for name in _TEXTS]
        present = [file.name for file in (*images.values(),
                                          *label_files.values()) if file]
        yield files.Candidate(
            folder, text, present, missing, functools.partial(
                _read, wanted, names, images, label_files,
                texts if all(texts) else None,
                functools.partial(load, scratch=scratch)))


def _read(wanted, names, images, label_files, texts, load):
  """Returns split -> Split. A file is large: it is opened when it is read."""

  def open_split(split):
    path = images[split].path
    rows, count = labels.read(label_files[split], split, wanted, names, texts)
    wanted_files.check(
        {split: [(wnid, '') for wnid, of in rows.items() for _ in of]},
        {split: label_files[split].path}, wanted)
    loaded, read = load(images[split])
    if loaded != count:
      raise UserError(f'{path} has {loaded} images, but '
                      f'{label_files[split].path} has {count} labels: fetch '
                      'both again')
    order = [(wnid, row) for wnid in wanted.classes[split]
             for row in rows[wnid]]
    return files.Split(
        [wnid for wnid, _ in order], [''] * len(order),
        lambda i: read(order[i][1]),
        lambda i: f'image {order[i][1]} of class {order[i][0]} in {path}')

  return open_split


def _pngs(file, scratch):
  """Returns the number of encoded images of a pickle, and what reads one."""
  content = pickled.value(file, large=True, scratch=scratch)
  if not isinstance(content, list | tuple):
    raise UserError(f'{file.path} holds a {type(content).__name__}, not a list '
                    'of encoded images: fetch it again')

  def read(i):
    try:
      image = unpickle.plain(content[i])
    except unpickle.Damaged as error:
      raise UserError(f'{file.path}: image {i} is {error}: fetch the file '
                      'again') from error
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and (
        image.size == max(image.shape, default=0)):
      return image.tobytes()
    if isinstance(image, bytes | memoryview):
      return bytes(image)
    raise UserError(f'{file.path}: image {i} is no row of uint8, the bytes of '
                    'a PNG: fetch the file again as it was published')

  return len(content), read


def _arrays(file, scratch):
  """Returns the same of an npz file with one array of images."""
  images = published.npz_array(file, 'images', scratch)
  pickled.check_images(file.path, 'images', images)
  return len(images), images.__getitem__
