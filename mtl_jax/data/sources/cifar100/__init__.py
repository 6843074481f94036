"""The data sets `cifar_fs` and `fc100`: CIFAR-100 with its classes split.

Both have the 100 classes of CIFAR-100 (Krizhevsky 2009), 600 images each: the
500 of its training set and the 100 of its test set. CIFAR-FS (Bertinetto et
al. 2019) splits them at random, FC100 (Oreshkin et al. 2018) by superclass.
files.py finds and checks the files. See docs/cifar100.md.
"""

import functools
import json
import pathlib

import numpy as np

from mtl_jax.data import pictures
from mtl_jax.data.source import (
  SPLITS,
  Checked,
  DataSource,
  Example,
  what_to_put,
)
from mtl_jax.data.sources.cifar100 import files
from mtl_jax.errors import UserError
from mtl_jax.fields import Field

_LISTS = json.loads((pathlib.Path(__file__).parents[2] / 'splits'
                     / 'cifar100.json').read_text(encoding='utf-8'))
IMAGES_PER_CLASS = 600
TABLE = files.Table(tuple(_LISTS['fine']), tuple(_LISTS['coarse']),
                    tuple(_LISTS['coarse_of']))
NUM_CLASSES = {'cifar_fs': (64, 16, 20), 'fc100': (60, 20, 20)}


def _classes(name, variant=''):
  """Returns split -> names of its classes, in the order of their numbers."""
  del variant  # each data set has only one
  return {split: tuple(TABLE.fine[i] for i in _LISTS[name][split][:count])
          for split, count in zip(SPLITS, NUM_CLASSES[name], strict=True)}


def _check(name, request):
  """Reads all images, 184 MB, and checks them."""
  wanted = files.Wanted(name, TABLE, _classes(name), IMAGES_PER_CLASS)
  found = files.read(request.folder, wanted)
  lines = [found.text, *_check_order(found, request.options['channel_order'])]
  return Checked(lines, found.classes)


def _check_order(found, order):
  """Returns notices on the means of the channels, which fall from R to B.

  Raises:
    UserError: the colours are swapped, and `order` is 'auto'.
  """
  mean = np.mean([of_class.images.mean((0, 1, 2))
                  for of_class in found.classes.values()], 0)
  if order != 'auto' or mean[0] > mean[1] > mean[2]:
    return []
  raise UserError(
      f'{found.where}: the means of the channels are {mean[0]:.1f}, '
      f'{mean[1]:.1f}, {mean[2]:.1f}, but fall from red to blue in CIFAR-100: '
      + ('this is BGR' if mean[0] < mean[1] < mean[2] else
         'these are other images or other colours')
      + '; build with --channel_order=bgr to swap them, or '
      '--channel_order=rgb to keep them')


def _build(name, request, classes, split):
  step = -1 if request.options['channel_order'] == 'bgr' else 1
  for of_class in _classes(name)[split]:
    for image, text in zip(*classes[of_class], strict=True):
      yield Example(of_class, pictures.png(image[..., ::step],
                                           compress_level=1), text)


def _source(name, description, mean, std, homepage):
  return DataSource(
      name=name, classes=functools.partial(_classes, name),
      build=functools.partial(_build, name),
      image_shape=(files.SIZE, files.SIZE, 3), mean=mean, std=std,
      check=functools.partial(_check, name),
      put=what_to_put(files.layouts(name)), layouts=files.layouts(name),
      options={'channel_order': Field(
          'auto', 'Order of the channels in the files; auto takes RGB and '
          'refuses images whose means say otherwise.',
          ('auto', 'rgb', 'bgr'))},
      description=description, homepage=homepage,
      license='CIFAR-100 states none.')


# Of pixels / 255; the constants of RFS (Tian et al. 2020) and MTL (Wang et al.
# 2021), which are those of CIFAR-100's training set.
_MEAN, _STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CIFAR_FS = _source(
    'cifar_fs', 'CIFAR-FS: 100 classes of CIFAR-100, 600 images each, 32x32, '
    'split at random (Bertinetto et al. 2019).', _MEAN, _STD,
    'https://github.com/bertinetto/r2d2')
FC100 = _source(
    'fc100', 'FC100: 100 classes of CIFAR-100, 600 images each, 32x32, split '
    'by superclass (Oreshkin et al. 2018).', _MEAN, _STD,
    'https://github.com/ElementAI/TADAM')
SOURCES = {source.name: source for source in (CIFAR_FS, FC100)}
