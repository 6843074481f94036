"""Checks what is built of a data set: `python -m mtl_jax.data check NAME`."""

import hashlib
import io
import itertools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from mtl_jax import files, fonts
from mtl_jax.data import pictures, pixels, sources, store
from mtl_jax.data.source import SPLITS

_CHUNK = 1024  # images
_NEAR = 3  # of the 64 bits of two looks, how many may differ
_BANDS = 4  # of bits; looks with at most 3 bits apart are equal in one of them
_BAND = 2**16 - 1  # mask of a band
_CROWD = 512  # images with an equal band that are too many to compare
_OFF = 0.02  # of 1: how far the means of channels may be from the published
_ROWS, _COLUMNS = 12, 10  # classes and images of a contact sheet
_PICTURE, _NAMES, _GAP, _SIZE = 56, 170, 4, 13  # pixels of a contact sheet


class Prints(NamedTuple):
  """What tells the images of a split apart."""

  store: Any  # without its images
  exact: np.ndarray  # uint64 [I], of the pixels
  looks: np.ndarray  # uint64 [I], alike for images that look alike


def lines(name, built, directory=None):
  """Yields what is found, line by line, and draws the contact sheets.

  Args:
    name: as config.data.name, of a data set that is built.
    built: its TFDS builder.
    directory: TFDS data_dir.
  """
  source, variant = sources.find(name)
  prints, left_out = [], []
  for split in SPLITS:
    loaded = store.load(name, split, directory)
    yield from _split(loaded, built, source, variant, left_out)
    prints.append(fingerprint(loaded))
    sheet = built.data_path / f'check-{split}.png'
    files.write(sheet, contact_sheet(loaded))
    yield f'  a contact sheet is in {pictures.text(sheet)}'
  yield from duplicates(prints)
  yield from look_alikes(prints, left_out)
  yield from (f'not checked: {line}' for line in left_out)


def _split(loaded, built, source, variant, left_out):
  """Yields the lines on one split."""
  sizes = np.diff(loaded.offsets)
  mean, std = pixels.mean_and_std(loaded.images)
  yield (f'{loaded.split}: {len(sizes)} classes of {sizes.min()} to '
         f'{sizes.max()} images {loaded.images.shape[1:]}, {sizes.sum()} in '
         f'all, mean {np.round(mean, 4)}, std {np.round(std, 4)}')
  records = built.info.splits[loaded.split].num_examples
  if records != len(loaded.images):
    yield (f'  WRONG: {records} records and {len(loaded.images)} images: '
           f'delete {built.data_path} and build again')
  expected = tuple(map(pictures.text, source.classes(variant)[loaded.split]))
  if expected != loaded.class_names:
    yield (f'  WRONG: the classes are not those of the source: delete '
           f'{built.data_path} and build again')
  if loaded.split != 'train':
    return
  if source.mean is None:
    left_out.append('means of the channels, as none are published')
  elif not source.mean[0]:
    left_out.append('means of the channels, as published pipelines do not '
                    'normalise these images')
  else:
    for what, ours, theirs in (('mean', mean, source.mean),
                               ('std', std, source.std)):
      gap = np.abs(ours - theirs).max()
      yield (f'  {what} is {gap:.4f} from the published {np.round(theirs, 4)}'
             + ('' if gap < _OFF else ': WRONG: other images, or swapped '
                'colours'))


def fingerprint(loaded):
  """Returns the Prints of a split, read in pieces.

  A look has a bit for each of 8x8 places of the grey image: whether it is
  lighter than the place to its right.
  """
  hashes, looks = [], []
  for images in _chunks(loaded.images):
    hashes.append(_exact(images))
    looks.append(_looks(images))
  # Without the images, whose pages would stay in memory.
  return Prints(loaded._replace(images=None), np.concatenate(hashes),
                np.concatenate(looks))


def exact(images):
  """Returns a hash of the pixels of each image: uint64 [I], read in pieces."""
  return np.concatenate([_exact(part) for part in _chunks(images)])


def _chunks(images):
  for start in range(0, len(images), _CHUNK):
    yield np.asarray(images[start:start + _CHUNK])


def _exact(images):
  return np.array([int.from_bytes(hashlib.blake2b(
      image, digest_size=8).digest(), 'little') for image in images], np.uint64)


def _looks(images):
  """Returns uint64 [I] of uint8 [I, h, w, c]."""
  grey = images.mean(-1) if images.shape[-1] > 1 else images[..., 0]
  small = _means(_means(grey, 8, 1), 9, 2)
  bits = (small[:, :, :-1] > small[:, :, 1:]).reshape(len(images), 64)
  return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _means(x, count, axis):
  """Returns means over `count` pieces of an axis, as equal as can be."""
  edges = np.linspace(0, x.shape[axis], count + 1).round().astype(int)
  edges[1:] = np.maximum(edges[1:], edges[:-1] + 1)
  starts = np.minimum(edges[:-1], x.shape[axis] - 1)
  sums = np.add.reduceat(x.astype(np.float64), starts, axis)
  shape = [-1 if i == axis else 1 for i in range(x.ndim)]
  return sums / np.diff([*starts, x.shape[axis]]).clip(1).reshape(shape)


def duplicates(prints):
  """Yields a line for each kind of images that are there twice."""
  of_split, number, label = _flat(prints)
  exact = np.concatenate([p.exact for p in prints])
  order = np.argsort(exact, kind='stable')
  same = exact[order][1:] == exact[order][:-1]
  first, second = order[:-1][same], order[1:][same]
  apart = of_split[first] != of_split[second]
  within = ~apart & (label[first] == label[second])
  for what, chosen in (('in two splits', apart),
                       ('in two classes of a split', ~apart & ~within),
                       ('twice in a class', within)):
    if chosen.any():
      a, b = first[chosen][0], second[chosen][0]
      yield (f'{int(chosen.sum())} images are {what}, pixel by pixel, such as '
             f'{_where(prints, of_split, number, a)} and '
             f'{_where(prints, of_split, number, b)}')
  if not apart.any():
    yield 'no image is in two splits'


def look_alikes(prints, left_out):
  """Yields a line on images of different splits that look alike.

  Args:
    prints: of all splits.
    left_out: list that gets a line on what could not be compared.
  """
  of_split, number, _ = _flat(prints)
  looks = np.concatenate([p.looks for p in prints])
  parts = np.stack([(looks >> np.uint64(64 // _BANDS * band)) & np.uint64(_BAND)
                    for band in range(_BANDS)]).astype(np.int32)
  crowded = np.zeros(parts.shape, bool)
  count, first = 0, None
  for band in range(_BANDS):
    order = np.argsort(parts[band], kind='stable')
    edges = np.flatnonzero(np.diff(parts[band][order], prepend=-1, append=-1))
    for start, end in itertools.pairwise(edges):
      group = order[start:end]
      if end - start > _CROWD:
        crowded[band, group] = np.ptp(of_split[group]) > 0
      elif end - start > 1 and np.ptp(of_split[group]):
        a, b = _pairs(looks, of_split, group)
        # A pair that an earlier band has found is not counted again.
        known = ((parts[:band, a] == parts[:band, b]) & ~crowded[:band, a]
                 ).any(0)
        count += int((~known).sum())
        first = first or next(zip(a[~known], b[~known], strict=True), None)
  partly = int(crowded.any(0).sum())
  if partly:
    left_out.append(f'all pairs of {partly} images that may look alike: more '
                    f'than {_CROWD} share a quarter of their coarse look')
  if count:
    yield (f'{count} pairs of images in different splits look alike (their '
           f'coarse looks differ in at most {_NEAR} of 64 places), such as '
           f'{_where(prints, of_split, number, first[0])} and '
           f'{_where(prints, of_split, number, first[1])}')
  else:
    yield ('no two images of different splits look alike'
           + ', of those compared' * bool(partly))


def _pairs(looks, of_split, group):
  """Returns (a, b): pairs of a group, of different splits, that look alike."""
  a, b = (group[i] for i in np.triu_indices(len(group), 1))
  chosen = (np.bitwise_count(looks[a] ^ looks[b]) <= _NEAR) & (
      of_split[a] != of_split[b])
  return a[chosen], b[chosen]


def _flat(prints):
  """Returns the split, number in the split and label of all images."""
  counts = [len(p.exact) for p in prints]
  return (np.repeat(np.arange(len(prints)), counts),
          np.concatenate([np.arange(count) for count in counts]),
          np.concatenate([np.repeat(
              np.arange(p.store.num_classes), np.diff(p.store.offsets))
                          for p in prints]))


def _where(prints, of_split, number, i):
  """Returns what to call an image: its split, class and place in the class."""
  loaded = prints[of_split[i]].store
  label = np.searchsorted(loaded.offsets, number[i], 'right') - 1
  return (f'{loaded.split} {loaded.class_names[label]} '
          f'{number[i] - loaded.offsets[label]}')


def contact_sheet(loaded):
  """Returns a PNG of some images of some classes of a split, as bytes."""
  classes = np.unique(np.linspace(
      0, loaded.num_classes - 1, _ROWS).round().astype(int))
  step = _PICTURE + _GAP
  sheet = Image.new('RGB', (_NAMES + _COLUMNS * step, len(classes) * step),
                    'white')
  draw = ImageDraw.Draw(sheet)
  for row, label in enumerate(classes):
    first, end = loaded.offsets[label:label + 2]
    name = fonts.fit(loaded.class_names[label], _NAMES - 2 * _GAP, _SIZE)
    fonts.write(draw, (_GAP, row * step + _PICTURE // 2 - _SIZE // 2), name,
                'black', _SIZE)
    chosen = np.linspace(first, end - 1, min(_COLUMNS, end - first))
    for column, i in enumerate(chosen.round().astype(int)):
      image = np.asarray(loaded.images[i])
      picture = Image.fromarray(image.squeeze()).convert('RGB')
      picture = ImageOps.contain(picture, (_PICTURE, _PICTURE))
      sheet.paste(picture, (_NAMES + column * step, row * step))
  encoded = io.BytesIO()
  sheet.save(encoded, 'PNG')
  return encoded.getvalue()
