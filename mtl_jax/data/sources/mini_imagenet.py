"""The data set `mini_imagenet` (Vinyals et al. 2016), published files.

Classes and splits are those of Ravi & Larochelle (2017). See
docs/mini_imagenet.md for the files and for what is checked.
"""

import functools
import io
import json
import os

import tensorflow_datasets as tfds
from etils import epath

from mtl_jax.data.sources import mini_imagenet_files as files
from mtl_jax.data.sources import mini_imagenet_images as images
from mtl_jax.data.sources import mini_imagenet_lists as lists
from mtl_jax.errors import UserError, check_choice, first_line

SPLITS_FILE = epath.Path(__file__).parent.parent / 'splits/mini_imagenet.json'


@functools.cache
def published_classes():
  """Returns split -> wnids, in the order of the published lists."""
  content = json.loads(SPLITS_FILE.read_text())
  return {split: tuple(content[split]) for split in lists.SPLITS}


class MiniImagenet(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of `mini_imagenet`: 100 classes of 600 images, 84x84 RGB.

  It writes array_record files sorted by class, then by file name. JPEGs of
  the right size are stored byte for byte; whatever else has to be changed is
  stored as PNG. Decode them with Pillow, whose pixels were checked.
  """

  VERSION = tfds.core.Version('1.0.0')
  # TFDS would look for the file through a package that it does not require.
  code_path = epath.Path(__file__)
  # Of pixels / 255, over the training split; the constants of Lee et al.
  # (2019, MetaOptNet).
  MEAN = (120.39586422 / 255, 115.59361427 / 255, 104.54012653 / 255)
  STD = (70.68188272 / 255, 68.27635443 / 255, 72.54505529 / 255)
  IMAGES_PER_CLASS = 600
  NUM_CLASSES = (64, 16, 20)  # of each list, the first ones

  def __init__(self, *, manual_dir=None, channel_order='auto',
               file_format='array_record', **kwargs):
    """Makes the builder; files are looked for when it builds.

    Args:
      manual_dir: folder of the published files; None: $MTL_JAX_MANUAL.
      channel_order: 'rgb' or 'bgr', as the images are; 'auto': RGB, refused
        where the means of the channels say otherwise.
      file_format: of TFDS.
      **kwargs: of tfds.core.GeneratorBasedBuilder.
    """
    check_choice('channel_order', channel_order, images.ORDERS)
    self._manual_dir = manual_dir
    self._channel_order = channel_order
    self._found = None
    super().__init__(file_format=file_format, **kwargs)

  def classes(self):
    """Returns split -> wnids, in the order of the labels."""
    return {split: wnids[:count] for (split, wnids), count in zip(
        published_classes().items(), self.NUM_CLASSES, strict=True)}

  def check_source(self):
    """Finds the files and decodes every image, before anything is written.

    Raises:
      UserError: what is missing or wrong, and what mends it.
    """
    classes = self.classes()
    folder = self._manual_dir or os.environ.get(files.VARIABLE)
    try:
      found = files.find(folder, lists.Wanted(classes, self.IMAGES_PER_CLASS))
    except OSError as error:
      raise UserError(f'manual_dir {folder} cannot be read '
                      f'({first_line(error)})') from error
    print(found.text, flush=True)
    counts = {split: len(wnids) * self.IMAGES_PER_CLASS
              for split, wnids in classes.items()}
    for notice in images.check(found, counts, self._channel_order):
      print(notice, flush=True)
    self._found = found

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description='mini-ImageNet: 100 classes of ImageNet, 600 images each, '
                    '84x84, in the split of Ravi & Larochelle (2017).',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(
                shape=(images.SIZE, images.SIZE, 3)),
            'label': tfds.features.ClassLabel(
                names=sum(self.classes().values(), ())),
            'file_name': tfds.features.Text(),
        }),
        supervised_keys=('image', 'label'),
        homepage='https://github.com/twitter-research/meta-learning-lstm',
        license='The images are ImageNet\'s: non-commercial research.',
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    if self._found is None:
      self.check_source()
    return {split: self._generate_examples(split) for split in lists.SPLITS}

  def _generate_examples(self, split):
    opened = self._found.open(split)
    encoded = images.in_threads(
        lambda i: images.encode(opened.read(i), self._channel_order == 'bgr'),
        len(opened.classes))
    for i, image in enumerate(encoded):
      yield i, {
          'image': io.BytesIO(image),
          'label': opened.classes[i],
          'file_name': opened.names[i],
      }
