"""The TFDS builder that serves all data sources.

It writes array_record files and yields encoded images, so that neither
TensorFlow nor a download is needed. `building` imports it when it builds or
reads.
"""

import collections
import contextlib
import io
import itertools
import types

import tensorflow_datasets as tfds
from etils import epath

from mtl_jax import progress
from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS, labels
from mtl_jax.errors import UserError

_AT_ONCE = 1000  # examples; after these TFDS writes down how many there are
_OF_FILE = 50_000


def make(chosen, data_dir, request=None, checked=None):
  """Returns the TFDS builder of a source; without a `request` it only reads.

  Args:
    chosen: of sources.find.
    data_dir: of TFDS; None: its own.
    request, checked: Request and Checked of a source that is to be built.
  """
  source = chosen.source
  configs = [tfds.core.BuilderConfig(name=name, description=text)
             for name, text in source.variants.items()]
  cls = types.new_class(
      source.name, (_Builder,), {'skip_registration': True},
      lambda body: body.update(
          name=source.name, __module__=__name__, BUILDER_CONFIGS=configs,
          VERSION=tfds.core.Version(source.version),
          # TFDS would look for it through a package that it does not require.
          code_path=epath.Path(__file__),
          parts=(source, chosen.variant, request, checked)))
  return cls(config=chosen.variant or None, data_dir=data_dir,
             file_format='array_record')


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds and reads the source in `parts`, which a subclass sets."""

  VERSION = tfds.core.Version('1.0.0')
  parts = None

  def write(self):
    """Builds the files, without TFDS's own lines and bars."""
    tfds.display_progress_bar(False)  # it knows no number of images
    with contextlib.redirect_stdout(io.StringIO()):
      self.download_and_prepare(file_format='array_record')

  def _info(self):
    source, *_, checked = self.parts
    kept = tfds.core.MetadataDict(checked.metadata) if checked else None
    return tfds.core.DatasetInfo(
        builder=self, description=source.description, metadata=kept,
        features=self._features(), supervised_keys=('image', 'label'),
        homepage=source.homepage or None, license=source.license or None,
        disable_shuffling=True)

  def _features(self):
    """Returns the features; those of the built files where they exist."""
    source, variant, *_ = self.parts
    if (self.data_path / 'features.json').exists():
      kept = tfds.features.FeaturesDict.from_config(self.data_path)
      # TFDS gives classes numbers as names where it cannot read the names.
      kept['label'].get_names_filepath(self.data_path, 'label').read_bytes()
      return kept
    of_split = source.classes(variant)
    names = labels(of_split)
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
      raise UserError(f'{source.name}: class {name} is listed twice: a class '
                      'has one split')
    return tfds.features.FeaturesDict({
        'image': tfds.features.Image(shape=source.image_shape or (None,) * 3),
        'label': tfds.features.ClassLabel(names=names),
        source.text: tfds.features.Text()})

  def _download_and_prepare(self, dl_manager, download_config):
    """Writes the examples of each split as they come.

    TFDS's own way would hold a split in memory, and from a gigabyte on it needs
    TensorFlow.
    """
    del dl_manager, download_config  # nothing is downloaded here
    # Of the folder of the build, which TFDS renames when it is whole.
    info = self._info()
    writer = tfds.core.SequentialWriter(info, _OF_FILE,
                                        file_format='array_record')
    writer.initialize_splits(list(SPLITS))
    for split in SPLITS:
      examples = self._generate_examples(split)
      while some := list(itertools.islice(examples, _AT_ONCE)):
        writer.add_examples({split: some})
    writer.close_all()
    self.info.set_splits(info.splits)

  def _split_generators(self, dl_manager):
    raise NotImplementedError  # `_download_and_prepare` needs none

  def _generate_examples(self, split):
    source, variant, request, checked = self.parts
    names = list(source.classes(variant)[split])
    number = self.info.features['label'].str2int
    numbers = {name: number(pictures.text(name)) for name in names}
    shape, seen = self.info.features['image'].shape, set()
    # How many images there are, no source says; it mostly goes class by class.
    with progress.bar(len(names), f'building {split}',
                      unit='class') as bar:
      for i, example in enumerate(
          source.build(request, checked.files, split)):
        if example.class_name not in numbers:
          raise UserError(
              f'{source.name}: the {split} split has an image of class '
              f'{example.class_name!r}: classes() does not list it')
        if example.class_name not in seen:
          seen.add(example.class_name)
          bar.update()
        _check_image(f'{source.name}: image {i} of the {split} split '
                     f'(class {example.class_name!r}, {source.text} '
                     f'{example.text!r})', example.image, shape)
        yield {'image': io.BytesIO(example.image),
               'label': numbers[example.class_name],
               source.text: example.text}


def _check_image(what, content, shape):
  """Raises UserError for a picture of another shape than a source says."""
  try:
    found = pictures.shape(content)
  except pictures.NoImage as error:
    raise UserError(f'{what}: {error}; build() yields the bytes of an encoded '
                    'picture, such as those of pictures.png') from error
  if found != tuple(shape):
    raise UserError(f'{what} is {found}, height, width and channels, not '
                    f'{tuple(shape)}, as image_shape says: resize the image, '
                    'or change image_shape')
