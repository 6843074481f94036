"""What a check of the theory is, and what all checks share."""

import collections
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mtl_jax import fields, files
from mtl_jax.errors import UserError


class Check(NamedTuple):
  """One check of the theory; it can fail, unless it only observes.

  options: name -> Field. The flags of the command, their help and their
    defaults follow from it. A folder can be resumed with other values of the
    options that are `free`.
  run: (options, folder) -> result. `options` maps names to values; the ones
    left out keep their defaults. `folder` is an epath.Path: results, figures
    and what a stopped run needs to resume are written there. The result is a
    dict of JSON's types, and its 'holds' is a bool; None where the theory
    predicts nothing, so that the check only observes. Raises UserError where
    an option is wrong or the folder belongs to other options.
  verdict: result -> one line that says what holds or does not hold.
  summary: result -> lines of text, the verdict among them.
  figures: (result, folder) -> [(file name, caption)]; draws the files.
  table: result -> (header, rows), all cells texts; None where there is none.
  """

  options: Mapping
  run: Callable
  verdict: Callable
  summary: Callable
  figures: Callable
  table: Callable


def settle(declared, given):
  """Returns a NamedTuple of all options: those given, and else defaults.

  Args:
    declared: name -> Field.
    given: name -> value.

  Raises:
    UserError: an option is unknown, or its value is not allowed.
  """
  values = {**fields.defaults(declared), **given}
  fields.check(declared, values, path='--')
  return collections.namedtuple('Options', values)(**values)


def claim(folder, declared, options, stored):
  """Returns the options that belong to a folder, as JSON has them.

  Args:
    folder: epath.Path, for the message.
    declared: name -> Field.
    options: of this run, as `settle` returns them.
    stored: options that the folder belongs to; {} for a new folder.

  Raises:
    UserError: an option that is not free has another value in the folder.
  """
  mine = {name: value for name, value in options._asdict().items()
          if not declared[name].free}
  mine = load(text(mine))
  for name, value in stored.items():
    if mine.get(name) != value:
      raise UserError(f'--out: {folder} holds --{name}={value}, not '
                      f'{mine.get(name)}: set it so, or name another folder')
  return mine


def claim_cells(folder, name, declared, options):
  """Makes `folder`/cells, or checks that it belongs to these options.

  They are kept in `folder`/`name`_options.json.

  Args:
    folder, declared, options: as of `claim`, which may raise.
    name: of the check.
  """
  files.make(folder / 'cells')
  file = folder / f'{name}_options.json'
  files.write(file, text(claim(folder, declared, options, read(file, {}))))


def read(file, otherwise):
  """Returns the contents of a JSON file; `otherwise` if it does not exist.

  Raises:
    UserError: the file is damaged.
  """
  if not file.exists():
    return otherwise
  try:
    return load(file.read_text())
  except ValueError as error:
    raise UserError(f'{file} is damaged: delete it, and it is computed '
                    'again') from error


def write(file, contents):
  """Writes a JSON file whole; returns the contents as a reader gets them."""
  written = text(contents, indent=1)
  files.write(file, written)
  return load(written)


def text(contents, **options):
  """Returns strict JSON, with 'inf', '-inf' and 'nan' as texts.

  Args:
    contents: of dictionaries, lists, texts and numbers.
    **options: of json.dumps.
  """
  return files.json_text(_map(lambda value: str(value) if isinstance(
      value, float) and not math.isfinite(value) else value, contents),
      **options)


def load(written):
  """Returns what `text` was given; reads the NaN and Infinity of old files.

  Raises:
    ValueError: it is no JSON.
  """
  return _map(lambda value: float(value) if isinstance(value, str) and value
              in ('inf', '-inf', 'nan') else value, json.loads(written))


def _map(function, value):
  if isinstance(value, dict):
    return {name: _map(function, part) for name, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_map(function, part) for part in value]
  return function(value)


def write_figures(folder, figures, dpi=120):
  """Writes figures of matplotlib as PNG files.

  Args:
    folder: epath.Path.
    figures: [(file name, figure, caption)].
    dpi: dots per inch.

  Returns:
    [(file name, caption)], as Check.figures.
  """
  for name, figure, _ in figures:
    packed = io.BytesIO()
    figure.savefig(packed, format='png', dpi=dpi)
    files.write(folder / name, packed.getvalue())
  return [(name, caption) for name, _, caption in figures]
