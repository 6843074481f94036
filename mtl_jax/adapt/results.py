"""The folder of results: what may be written there, and the files."""

import io
import json
import os
import pathlib

from etils import epath

from mtl_jax import files
from mtl_jax.adapt import sheet
from mtl_jax.errors import UserError, first_line

_TABLES = ('predictions.json', 'predictions.csv', 'predictions.png')
_CONFUSION = 'confusion.png'


def check_out(out, inputs):
  """Returns --out as a path.

  Raises:
    UserError: results cannot be written there, or would be read as input.
  """
  path = check_folder('--out', out)
  for given in inputs if '://' not in str(out) else ():
    folder = pathlib.Path(given).expanduser().resolve()
    if folder.is_dir() and path.is_relative_to(folder):
      raise UserError(f'--out {out} is within {folder}: the next start would '
                      'read the results as your pictures; choose another '
                      'folder')
  return path


def check_folder(flag, given):
  """Returns the path of a folder for results, which need not be there.

  Raises:
    UserError: it names the flag; nothing can be written there.
  """
  if '://' in str(given):
    return epath.Path(given)
  try:
    path = pathlib.Path(given).expanduser().resolve()
    nearest = next(p for p in (path, *path.parents) if p.exists())
    is_folder = nearest.is_dir()
  except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
    reason = getattr(error, 'strerror', None) or first_line(error)
    raise UserError(f'{flag} {given} cannot be read ({reason}): name another '
                    'folder') from error
  if not is_folder:
    raise UserError(f'{flag} {given}: {nearest} is a file; name a folder')
  if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
    raise UserError(f'{flag} {given}: {nearest} cannot be written; name '
                    'another folder')
  return epath.Path(path)


def check_results(out, query_files, classes):
  """Returns the names of the results of an earlier start in a folder.

  Raises:
    UserError: a file there has the name of a result and is none, or is to be
      classified.
  """
  before = _results_in(out)
  labelled = not set(classes).isdisjoint(query_files.labels)
  given = {os.path.realpath(path) for path in query_files.paths}
  for name in (*_TABLES, *[_CONFUSION] * labelled):
    if not (out / name).exists():
      continue
    if name not in before:
      raise UserError(f'--out {out}: the {name} there is not of this command; '
                      'move it, or name another folder')
    if os.path.realpath(out / name) in given:
      raise UserError(f'--out {out}: {name} would be replaced, which --query '
                      'names; name another folder')
  return before


def _results_in(out):
  """Returns the names of the files that predictions.json was written with."""
  try:
    contents = json.loads((out / _TABLES[0]).read_text())
    # The keys are those of no other program.
    known = all(key in contents for key in (
        'checkpoint_step', 'trained_on', 'predictions'))
    return {*_TABLES, *[_CONFUSION] * bool(contents['score'])} if known else ()
  except (OSError, ValueError, TypeError, KeyError):
    return ()


def write(out, result, support, query, before=()):
  """Writes the results into a folder: the tables first, then the pictures.

  Args:
    out: the folder, an epath.
    result: of `adapt`.
    support, query: the Pictures.
    before: names of results there of an earlier start. A confusion.png among
      them is removed unless it is replaced, as it would show other results.

  Raises:
    UserError: the folder cannot be made or written.
  """
  try:
    out.mkdir(parents=True, exist_ok=True)
    if _CONFUSION in before and not result['score']:
      (out / _CONFUSION).unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f'--out {out} cannot be written ({error.strerror}): name '
                    'another folder') from error
  text = io.StringIO()
  json.dump(result, text, indent=2, allow_nan=False)  # in pieces: little memory
  files.write(out / 'predictions.json', text.getvalue())
  files.write(out / 'predictions.csv', sheet.table(result))
  files.write(out / 'predictions.png', sheet.sheet(result, support, query))
  if result['score']:
    files.write(out / _CONFUSION, sheet.confusion(result))
