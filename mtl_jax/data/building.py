"""Build a data source into TFDS files, once; find what is built."""

import contextlib
import os
import pathlib

from etils import epath

from mtl_jax import fields, files
from mtl_jax.data import pictures, sources
from mtl_jax.data.source import Request, labels
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


def prepare(name, directory=None, manual_dir=None, options=()):
  """Builds the data set unless it is built; returns its TFDS builder.

  TFDS builds beside the final folder and renames, so that a build that was
  killed leaves nothing that looks complete.

  Args:
    name, directory: as in `builder`.
    manual_dir: folder of the published files, of a source that needs some.
    options: of the source, by name.

  Raises:
    UserError: unknown data set or option, files that are missing or damaged,
      or a folder that cannot be written.
  """
  chosen = sources.find(name)
  fields.check(chosen.source.options, options := {
      **fields.defaults(chosen.source.options), **dict(options)}, f'{name} --')
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
  try:
    with alone(built.data_path):
      if not built.data_path.exists():  # or another process has built it
        built.write()
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
    if built.info.features['label'].names != labels(of_split):
      raise UserError(f'{name} has other classes than its built data in '
                      f'{built.data_path}: delete this folder, or raise '
                      'version in SOURCE')


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
  return manual_folder(source, given)


def manual_folder(source, given):
  """Returns the path of a folder of published files.

  Args:
    source: DataSource that needs them.
    given: name of the folder.

  Raises:
    UserError: it cannot be read.
  """
  path = pathlib.Path(given).expanduser()
  try:
    if not path.is_dir():
      raise UserError(f'manual_dir {path} is no folder: make it and put '
                      f'{source.put} into it')
    os.listdir(path)
  except OSError as error:
    raise UserError(f'manual_dir {path} cannot be read ({error.strerror}): '
                    'make it readable, or name another folder') from error
  return path


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
  # Imported late: TFDS takes a while to start.
  from mtl_jax.data import tfds_builder
  try:
    return tfds_builder.make(chosen, data_dir(directory), request, checked)
  except UserError:
    raise
  except Exception as error:
    if request:
      raise
    # Damaged descriptions may raise any error of their readers.
    raise UserError(
        f'{data_dir(directory)}: the description of {chosen.source.name} there '
        f'cannot be read ({type(error).__name__}: {first_line(error)}): delete '
        'its folder, and build the data set again') from error
