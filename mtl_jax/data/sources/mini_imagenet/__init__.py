"""The data set `mini_imagenet` (Vinyals et al. 2016), published files.

Classes and splits are those of Ravi & Larochelle (2017). files.py finds the
files, lists.py reads lists; `imagenet` checks classes and pixels.
See docs/mini_imagenet.md.

Images are stored by class, then by file name: JPEGs of the right size byte for
byte, what has to be changed as PNG.
"""

import functools
import itertools
import json
import pathlib

from mtl_jax.data.source import SPLITS, Checked, DataSource
from mtl_jax.data.sources.imagenet import images
from mtl_jax.data.sources.imagenet.wanted import Wanted
from mtl_jax.data.sources.mini_imagenet import files, lists
from mtl_jax.fields import Field

SPLITS_FILE = pathlib.Path(__file__).parents[2] / 'splits/mini_imagenet.json'
IMAGES_PER_CLASS = 600
NUM_CLASSES = (64, 16, 20)  # of each published list, the first ones


@functools.cache
def published_classes():
  """Returns split -> wnids, in the order of the published lists."""
  content = json.loads(SPLITS_FILE.read_text(encoding='utf-8'))
  return {split: tuple(content[split]) for split in SPLITS}


def _classes(variant=''):
  del variant  # the data set has only one
  return {split: wnids[:count] for (split, wnids), count in zip(
      published_classes().items(), NUM_CLASSES, strict=True)}


def wanted():
  """Returns what the files must hold."""
  classes = _classes()
  sizes = dict.fromkeys(itertools.chain(*classes.values()), IMAGES_PER_CLASS)
  return Wanted('mini_imagenet', classes, sizes, files.WHAT_TO_PUT,
                lists.LISTS, '; or, for the originals of ILSVRC-2012, put '
                'train.csv, val.csv and test.csv beside them')


def _check(request):
  """Finds the files and decodes every image."""
  layout = files.find(request.folder, wanted())
  means, notices = images.look(layout, images.LANCZOS)
  if request.options['channel_order'] == 'auto':
    notices += images.check_order(means, 'mini-ImageNet')
  return Checked([layout.text, *notices], layout)


def _build(request, layout, split):
  return images.examples(layout.open(split),
                         request.options['channel_order'] == 'bgr')


SOURCE = DataSource(
    name='mini_imagenet',
    classes=_classes,
    build=_build,
    image_shape=(images.SIZE, images.SIZE, 3),
    mean=images.MEAN,
    std=images.STD,
    check=_check,
    put=files.WHAT_TO_PUT,
    layouts=files.LAYOUTS,
    options={'channel_order': Field(
        'auto', 'Order of the channels in the files; auto takes RGB and '
        'refuses images whose means say otherwise.', images.ORDERS)},
    description='mini-ImageNet: 100 classes of ImageNet, 600 images each, '
                '84x84, in the split of Ravi & Larochelle (2017).',
    homepage='https://github.com/twitter-research/meta-learning-lstm',
    license='The images are ImageNet\'s: non-commercial research.')
