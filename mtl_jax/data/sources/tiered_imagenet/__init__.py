"""The data set `tiered_imagenet` (Ren et al. 2018), published files.

It has 608 classes of ImageNet, with all their 779,165 training images, divided
by 34 categories. files.py finds the files, labels.py says which class a label
means, `imagenet` checks classes and pixels. See docs/tiered_imagenet.md.

Images are stored by class, in the order of the files: encoded ones of the
right size byte for byte, others as PNG.
"""

import functools
import itertools
import json
import pathlib

from mtl_jax.data.source import SPLITS, Checked, DataSource
from mtl_jax.data.sources.imagenet import cubic, ilsvrc, images
from mtl_jax.data.sources.imagenet.wanted import Wanted
from mtl_jax.data.sources.tiered_imagenet import files
from mtl_jax.fields import Field

SPLITS_FILE = (pathlib.Path(__file__).parents[2]
               / 'splits/tiered_imagenet.json')
# The originals were shrunk with this one.
RESIZE = images.Resize(
    'the cubic filter of OpenCV',
    lambda image: cubic.resize(image, images.SIZE))


@functools.cache
def _published():
  return json.loads(SPLITS_FILE.read_text(encoding='utf-8'))


def names():
  """Returns wnid -> what the class is called."""
  return _published()['names']


def _classes(variant=''):
  del variant  # the data set has only one
  return {split: tuple(_published()[split]) for split in SPLITS}


def sizes():
  """Returns wnid -> number of its images."""
  return ilsvrc.sizes(itertools.chain(*_classes().values()))


def _check(request):
  """Finds the files and decodes every image."""
  wanted = Wanted(
      'tiered_imagenet', _classes(),
      sizes() if request.options['counts'] == 'published' else None,
      files.WHAT_TO_PUT, files.LISTS)
  layout = files.find(request.folder, wanted, names(), request.scratch)
  means, notices = images.look(layout, RESIZE)
  swap, said = _order(means, request.options['channel_order'])
  lines = [layout.text, *notices, *said]
  if wanted.sizes is None:
    count = sum(of_split.images for of_split in means.values())
    lines.append(f'tiered_imagenet: the number of images, {count}, was not '
                 'compared with the published ones (--counts=any).')
  return Checked(lines, (layout, swap), metadata={
      'channels': 'BGR in the files, turned to RGB' if swap else
                  'as in the files', 'found': ' '.join(lines),
      **request.options})


def _order(means, order):
  """Returns whether the channels must be turned, and lines for the user.

  Args:
    means: split -> images.Means.
    order: of images.ORDERS; 'auto' looks at the means.

  Raises:
    UserError: the means are in no order of a known cause.
  """
  if order != 'auto':
    return order == 'bgr', []
  rising = [of_split.rgb[0] < of_split.rgb[1] < of_split.rgb[2]
            for of_split in means.values()]
  count = sum(of_split.images for of_split in means.values())
  if all(rising) and count >= images.MIN_FOR_ORDER:
    mean = means['train'].rgb
    return True, [
        f'The channel means rise from red to blue ({mean[0]:.1f}, '
        f'{mean[1]:.1f}, {mean[2]:.1f}): the files are BGR, and are turned to '
        'RGB (--channel_order=rgb keeps them).']
  return False, images.check_order(means, 'tiered-ImageNet')


def _build(request, found, split):
  del request
  layout, swap = found
  return images.examples(layout.open(split), swap, RESIZE)


SOURCE = DataSource(
    name='tiered_imagenet',
    classes=_classes,
    build=_build,
    image_shape=(images.SIZE, images.SIZE, 3),
    # RFS and MTL take those of mini-ImageNet, too.
    mean=images.MEAN,
    std=images.STD,
    check=_check,
    put=files.WHAT_TO_PUT,
    layouts=files.LAYOUTS,
    options={
        'channel_order': Field(
            'auto', 'Order of the channels in the files; auto looks at their '
            'means and turns BGR.', images.ORDERS),
        'counts': Field(
            'published', 'published refuses files whose classes have not all '
            'their images; any takes them.', ('published', 'any'))},
    description='tiered-ImageNet: 608 classes of ImageNet, 779,165 images, '
                '84x84, split by category (Ren et al. 2018).',
    homepage='https://github.com/renmengye/few-shot-ssl-public',
    license='The images are ImageNet\'s: non-commercial research.')
