"""Where a data set lies, and which published files it is built from."""

import hashlib
import os
import pathlib
import re

from mtl_jax import files, progress
from mtl_jax.data import building, pictures, published, sources
from mtl_jax.errors import first_line

_PIECE = 2**24  # bytes that are read at a time
_IMAGES = ('.jpg', '.jpeg', '.png')
_BRACES = re.compile(r'\{([^}]*)\}')


def lines(name, manual_dir=None):
  """Yields where a data set lies, and which files to put where.

  Args:
    name: as `config.data.name`.
    manual_dir: folder of published files, which are looked for there; None:
      that of $MTL_JAX_MANUAL, if it is set.

  Raises:
    UserError: unknown data set, or a folder that cannot be read.
  """
  source, _ = sources.find(name)
  given = source.put and (
      manual_dir or os.environ.get(building.MANUAL_VARIABLE))
  found = given and _look(building.manual_folder(source, given))
  built = building.builder(name).data_path
  yield str(built)  # alone, for scripts
  with files.errors():
    yield (f'built, {sum(file.stat().length for file in built.iterdir()):,} '
           'bytes' if built.exists() else 'not built')
  if sources.is_own(source):
    yield source.description or 'A data source of your own.'
  yield ('Put the files of one of these forms into a folder, at any depth, and '
         f'name it with --manual_dir or ${building.MANUAL_VARIABLE}:'
         if source.put else 'No published files are needed.')
  if not source.layouts and source.put:
    yield f'  {source.put}'
  for text, needed in source.layouts.items():
    yield f'  {text}'
    for file in needed:
      yield f'    {_about(file)}'
      names = _alternatives(file.name) if given else []
      for each in names:
        yield ('      ' + f'{each}: ' * (len(names) > 1)
               + _state(each, file, found))


def _look(folder):
  """Returns the paths below a folder as texts, also those of images in zips."""
  found = [*published.look(folder, ('',)).files,
           *(file for file in published.look(folder, _IMAGES).files
             if file.zip)]
  return [os.path.join(file.folder, file.name) for file in found]


def _about(file):
  """Returns what is known of a PublishedFile."""
  size = 'size not known' if file.size is None else f'{file.size:,} bytes'
  return '; '.join(filter(None, (
      f'{file.name}: {size}', file.checksum or 'checksum not known', file.url,
      file.note)))


def difference(path, file):
  """Returns how a file differs from the published one, '' if it does not.

  Args:
    path: of the file.
    file: PublishedFile; only what is known of it is compared.

  Raises:
    OSError: it cannot be read.
  """
  size = path.stat().st_size
  if file.size is not None and size != file.size:
    return (f'{abs(size - file.size):,} bytes '
            + ('shorter' if size < file.size else 'longer') + ' than published')
  with path.open('rb') as opened:
    if files.is_html(opened.read(200)):
      return 'an HTML page that was saved in place of the file'
  if not file.checksum:
    return ''
  kind, wanted = file.checksum.split()
  digest = hashlib.new(kind, usedforsecurity=False)
  with path.open('rb') as opened, progress.bar(
      size, f'reading {path.name}', unit='byte') as bar:
    while piece := opened.read(_PIECE):
      digest.update(piece)
      bar.update(len(piece))
  return '' if digest.hexdigest() == wanted else (
      f'its {kind} is {digest.hexdigest()}, another than published')


def _alternatives(name):
  """Returns the names that a name with {a,b} stands for."""
  braces = _BRACES.search(name)
  return [name] if braces is None else [
      name[:braces.start()] + part + name[braces.end():]
      for part in braces[1].split(',')]


def _state(name, file, found):
  """Says whether a file is among those found, and is the published one.

  Args:
    name: that it must have, of `_alternatives`.
    file: PublishedFile.
    found: paths, those nearest to the folder first.
  """
  pattern = re.compile('(?:.*/)?' + re.escape(name).replace(
      r'\*', '[^/]*').replace('WNID', r'n\d{8}'))
  paths = list(filter(pattern.fullmatch, found))
  if not paths:
    return 'missing'
  if '*' in name:
    return f'{len(paths):,} there'
  path = pathlib.Path(paths[0])
  try:
    wrong, size = difference(path, file), path.stat().st_size
  except OSError as error:
    return f'{pictures.text(path)} cannot be read ({first_line(error)})'
  place = f'{pictures.text(path)}, {size:,} bytes, '
  if wrong:
    return f'{place}but {wrong}'
  known = [what for what, value in (
      ('size', file.size), (file.checksum.split(' ')[0], file.checksum))
           if value]
  return place + (f'{" and ".join(known)} as published' if known else
                  'not compared: neither size nor checksum is known')
