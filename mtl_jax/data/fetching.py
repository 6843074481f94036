"""Fetch the published archive of a data set, and take it only as published."""

import http.client
import pathlib
import tempfile
import urllib.request

from mtl_jax import files, progress
from mtl_jax.data import building, sources, where
from mtl_jax.errors import UserError, first_line

_PIECE = 2**20  # bytes that are read at a time
_WAIT = 30.  # seconds without an answer


def fetch(name, directory=None):
  """Returns the folder of a fetched archive, to be built from; None: is built.

  The archive stays there, below 'downloads' of the folder of all data sets, and
  is not fetched again. Data sets of the same archive share it. TFDS's own
  download manager is not used: without a network it tries for minutes, it may
  wait without end, and Ctrl-C does not stop it.

  Args:
    name: as `config.data.name`.
    directory: TFDS data_dir; None as in `building.data_dir`.

  Raises:
    UserError: no archive of the data set can be fetched, or it differs from
      the published one.
  """
  source, _ = sources.find(name)
  file = next((needed[0] for needed in source.layouts.values()
               if len(needed) == 1 and needed[0].url), None)
  if file is None:
    raise UserError(f'--download: {name} has no archive that can be fetched: '
                    + (f'put {source.put} into a folder and name it with '
                       '--manual_dir' if source.put else 'leave it out'))
  built = building.builder(name, directory)
  if built.data_path.exists():
    return None
  root = str(built.data_dir_root)
  if not files.can_append(root):  # its archives could not be read in place
    raise _refused(file, f'{root} is no folder of this machine')
  folder = pathlib.Path(root, 'downloads', file.name.partition('.')[0])
  try:
    with building.alone(folder):
      if not (folder / file.name).exists() or where.difference(
          folder / file.name, file):
        _fetch(file, folder)
  except (OSError, http.client.HTTPException) as error:
    raise _refused(file, first_line(error).strip('<>')) from error
  return folder


def _fetch(file, folder):
  """Writes a PublishedFile beside a folder, and moves it there if it is whole.

  What a killed process leaves there, `building.alone` removes.
  """
  print(f'Fetching {file.url}, {file.size:,} bytes.', flush=True)
  with tempfile.TemporaryDirectory(
      prefix='incomplete.', suffix=f'_{folder.name}',
      dir=folder.parent) as beside:
    path, left = pathlib.Path(beside, file.name), file.size
    with urllib.request.urlopen(file.url, timeout=_WAIT) as page, path.open(
        'wb') as target, progress.bar(
            file.size, f'fetching {file.name}', unit='byte') as bar:
      while left >= 0 and (piece := page.read(_PIECE)):
        target.write(piece)
        bar.update(len(piece))
        left -= len(piece)
    if wrong := where.difference(path, file):
      raise _refused(file, wrong)
    folder.mkdir(exist_ok=True)
    path.replace(folder / file.name)


def _refused(file, why):
  return UserError(
      f'{file.url} cannot be fetched ({why}): try again, or fetch {file.name} '
      'by hand, put it into a folder and name it with --manual_dir')
