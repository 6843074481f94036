"""Build a data source into TFDS files, once; find what is built.

One TFDS builder serves all sources. It writes array_record files and yields
encoded images, so that neither TensorFlow nor a download is needed.
"""

import collections
import contextlib
import io
import os
import pathlib
import types

import tensorflow_datasets as tfds
from etils import epath

from mtl_jax import fields, files, progress
from mtl_jax.data import pictures, sources
from mtl_jax.data.source import SPLITS, Request
from mtl_jax.errors import UserError, first_line

DIR_VARIABLE = 'MTL_JAX_DATA'
MANUAL_VARIABLE = 'MTL_JAX_MANUAL'


def data_dir(directory=None):
  """Returns where data sets live: the argument, $MTL_JAX_DATA, TFDS's own.

  Raises:
    UserError: its name is not UTF-8, which array_record needs.
  """
  directory = directory or os.environ.get(DIR_VARIABLE)
  if not directory:
    return None
  path = str(files.at(directory))
  try:
    path.encode()
  except UnicodeEncodeError as error:
    raise UserError(f'{pictures.text(path)} cannot hold data sets: set '
                    f'config.data.dir or ${DIR_VARIABLE} to a folder whose '
                    'name is UTF-8') from error
  return path


def builder(name, directory=None):
  """Returns the TFDS builder of a data set, to read it if it is built.

  Args:
    name: as `config.data.name`.
    directory: TFDS data_dir; None as in `data_dir`.

  Raises:
    UserError: unknown data set.
  """
  return _builder(sources.find(name), directory)


def prepare(name, directory=None, manual_dir=None, **options):
  """Builds the data set unless it is built; returns its TFDS builder.

  TFDS builds beside the final folder and renames, so that a build that was
  killed leaves nothing that looks complete.

  Args:
    name, directory: as in `builder`.
    manual_dir: folder of the published files, of a source that needs some.
    **options: of the source.

  Raises:
    UserError: unknown data set or option, files that are missing or damaged,
      or a folder that cannot be written.
  """
  chosen = sources.find(name)
  fields.check(chosen.source.options, options := {
      **fields.defaults(chosen.source.options), **options}, f'{name} --')
  built = _builder(chosen, directory)
  if built.data_path.exists():
    _check_classes(name, chosen, built)
    # A builder knows only the splits that existed when it was created:
    # another process may have renamed its build into place since.
    return built if built.info.splits else builder(name, directory)
  request = Request(chosen.variant, _folder(name, chosen.source, manual_dir),
                    options, _scratch(built.data_path))
  checked = _check(chosen.source, request)
  for line in checked.lines:
    print(pictures.text(line), flush=True)
  if chosen.source.image_shape is None:
    chosen = chosen._replace(source=chosen.source._replace(
        image_shape=checked.image_shape))
  built = _builder(chosen, directory, request, checked)
  print(f'Building {pictures.text(name)} in {built.data_path}, once.',
        flush=True)
  tfds.display_progress_bar(False)  # it knows no number of images
  try:
    with alone(built.data_path), contextlib.redirect_stdout(io.StringIO()):
      if not built.data_path.exists():  # or another process has built it
        built.download_and_prepare(file_format='array_record')
  except (OSError, RuntimeError) as error:
    raise UserError(f'{built.data_path} cannot be written '
                    f'({first_line(error)}): set config.data.dir or '
                    f'${DIR_VARIABLE} to a folder with room') from error
  return builder(name, directory)


@contextlib.contextmanager
def alone(data_path):
  """Waits for another build of `data_path`; removes what killed ones left.

  TFDS builds in 'incomplete.XXXXXX_VERSION' beside `data_path`. While this
  process holds the lock, such a folder belongs to no living process.

  Raises:
    OSError: the folder of `data_path` cannot be written.
  """
  folder = epath.Path(data_path).parent
  with files.lock(folder) as locked:
    for left in folder.glob(f'incomplete.*_{data_path.name}') if locked else ():
      left.rmtree()
    yield


def _check_classes(name, chosen, built):
  """Raises UserError where a user's source has changed since it was built."""
  if sources.is_own(chosen.source) and built.info.splits:
    of_split = chosen.source.classes(chosen.variant)
    if built.info.features['label'].names != _labels(of_split):
      raise UserError(f'{name} has other classes than its built data in '
                      f'{built.data_path}: delete this folder, or raise '
                      'version in SOURCE')


def _labels(of_split):
  """Returns the names of all classes as TFDS keeps them: lines of UTF-8."""
  return [pictures.text(name) for split in SPLITS for name in of_split[split]]


def _folder(name, source, manual_dir):
  """Returns the folder of a source's published files, or None."""
  if not source.put:
    return None
  given = manual_dir or os.environ.get(MANUAL_VARIABLE)
  if not given:
    raise UserError(
        f'{name} needs files that you fetch: put {source.put} into a folder '
        'and name it with config.data.manual_dir, --manual_dir or '
        f'${MANUAL_VARIABLE}')
  folder = pathlib.Path(given).expanduser()
  try:
    if not folder.is_dir():
      raise UserError(f'manual_dir {folder} is no folder: make it and put '
                      f'{source.put} into it')
    os.listdir(folder)
  except OSError as error:
    raise UserError(f'manual_dir {folder} cannot be read ({error.strerror}): '
                    'make it readable, or name another folder') from error
  return folder


def _scratch(path):
  """Returns the nearest folder of `path` that takes files; None: none does."""
  if '://' in str(path):  # remote
    return None
  return next((p for p in pathlib.Path(path).parents
               if os.access(p, os.W_OK | os.X_OK)), None)


def _check(source, request):
  try:
    return source.check(request)
  except OSError as error:
    raise UserError(f'{error.filename or request.folder} cannot be read '
                    f'({first_line(error)}): make it readable, or fetch it '
                    'again') from error


def _builder(chosen, directory, request=None, checked=None):
  """Returns the TFDS builder; without a `request` it can only read."""
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
  return cls(config=chosen.variant or None, data_dir=data_dir(directory),
             file_format='array_record')


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Builds and reads the source in `parts`, which a subclass sets."""

  VERSION = tfds.core.Version('1.0.0')
  parts = None

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
      return tfds.features.FeaturesDict.from_config(self.data_path)
    of_split = source.classes(variant)
    names = _labels(of_split)
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
      raise UserError(f'{source.name}: class {name} is listed twice: a class '
                      'has one split')
    return tfds.features.FeaturesDict({
        'image': tfds.features.Image(shape=source.image_shape or (None,) * 3),
        'label': tfds.features.ClassLabel(names=names),
        source.text: tfds.features.Text()})

  def _split_generators(self, dl_manager):
    del dl_manager  # downloaded by hand, or nothing to download
    return {split: self._generate_examples(split) for split in SPLITS}

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
        yield i, {'image': io.BytesIO(example.image),
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
