"""Reads the records of cells, and checks every field that a page shows.

A cell is one finished test of one training: (scale, benchmark, method, shots,
seed). A record is its JSON. Folders are searched for records and workdirs;
`cells.json` in a folder of records lists the cells that are expected.
"""

import json
import numbers
from typing import Any, NamedTuple

import numpy as np

from mtl_jax import algorithms, files, progress
from mtl_jax.errors import UserError, first_line
from mtl_jax.report import cell as cells
from mtl_jax.report import formats
from mtl_jax.run import workdir

EXPECTED = 'cells.json'
_DEEPEST = 20  # levels of a file; what walks them would fail far below
# The order of the columns; others follow by name.
BENCHMARKS = ('mini_imagenet', 'tiered_imagenet', 'cifar_fs', 'fc100',
              'omniglot', 'glyphs')
_NUMBER, _COUNT, _TEXT = 'a finite number >= 0', 'a whole number >= 0', 'a text'
_NAME = 'a text of at most 200 signs'  # what a table has room for
_SHARE, _OBJECT, _LIST = 'a number from 0 to 1', 'an object', 'a list'
_NEEDED = {'cell': _OBJECT, 'cell.scale': _NAME, 'cell.benchmark': _NAME,
           'cell.method': _NAME, 'cell.shots': _COUNT, 'cell.seed': _COUNT,
           'test': _OBJECT, 'test.accuracy': _SHARE}
# Each of them may be missing or null.
_KNOWN = {
    'published': _OBJECT, 'published.accuracy': _SHARE,
    'published.ci95': _SHARE, 'published.source': _TEXT,
    'published.network': _TEXT,
    'test.ci95': _SHARE, 'test.head': _TEXT, 'test.ways': _COUNT,
    'test.shots': _COUNT, 'test.queries': _COUNT, 'test.num_tasks': _COUNT,
    'test.tasks_sha256': _TEXT, 'test.batch_norm': _TEXT, 'test.data': _TEXT,
    'test.split': _TEXT, 'test.correct': _LIST, 'test.scores': _OBJECT,
    'training': _OBJECT, 'training.steps': _COUNT, 'training.best_step': _COUNT,
    'training.tasks_per_step': _NUMBER, 'training.images_per_step': _NUMBER,
    'training.images': _NUMBER, 'training.images_per_epoch': _NUMBER,
    'training.epochs': _NUMBER, 'training.seconds': _NUMBER,
    'training.validation_seconds': _NUMBER, 'training.flops_per_step': _NUMBER,
    'training.parameters': _COUNT, 'training.curve': _LIST,
    'config': _OBJECT, 'provenance': _OBJECT,
    **{f'provenance.{name}': _TEXT for name in (
        'commit', 'python', 'platform', 'device', 'processor', 'date',
        'command', 'settings_sha256')},
    'provenance.devices': _COUNT, 'provenance.versions': _OBJECT}
_POINT = {'step': _COUNT, 'seconds': _NUMBER, 'validation_accuracy': _SHARE}
_EXPECTED = {'scale': _NAME, 'benchmark': _NAME, 'method': _NAME,
             'shots': _COUNT, 'seed': _COUNT, 'status': _NAME}


class Cell(NamedTuple):
  """The record of a cell; `method` is what rows and curves are named by."""

  path: str
  scale: str
  benchmark: str
  method: str
  shots: int
  seed: int
  record: dict[str, Any]

  def get(self, name):
    """Returns a field such as 'training.seconds', None where it is not."""
    return _get(self.record, name)


class Missing(NamedTuple):
  """A cell that is expected and not there, and why."""

  scale: str
  benchmark: str
  method: str
  shots: int
  seed: int
  status: str


class Found(NamedTuple):
  """What folders hold."""

  cells: list
  missing: list
  left_out: list  # a line about each workdir without a finished test


def read(paths):
  """Returns the Found of files of records, folders of them, and workdirs.

  Folders are searched to any depth. Rows of the page have the methods' names;
  where a method was run with several settings in one column, the name has the
  beginning of their hash too.

  Raises:
    UserError: a file is damaged, a field is wrong, one cell is there twice,
      or there is none.
  """
  records, expected, left_out = [], [], []
  for path in paths:
    folder = files.at(path)
    if not folder.exists():
      raise UserError(f'{path} is not there: name a folder of records, a '
                      'record or the workdir of a run')
    for file in [folder] if folder.is_file() else _below(folder):
      # As given, so that a page shows no longer paths than the command.
      name = '/'.join([str(path), *file.parts[len(folder.parts):]])
      if file.is_dir():
        try:
          records += [(name, record) for record in cells.of_run(file)]
        except UserError as error:
          if file == folder:
            raise
          left_out.append(str(error).replace(str(file), name))
      elif file.name == EXPECTED:
        expected += _expected(file)
      else:
        record = _json(file)
        # Other files stand in folders of runs, too.
        if file == folder or isinstance(record, dict) and 'cell' in record:
          records.append((name, record))
  found = _named([_cell(*record) for record in progress.each(
      records, 'reading', unit='record')])
  if not found and not expected:
    raise UserError(left_out[0] if left_out else (
        f'{" ".join(map(str, paths))}: no record of a cell is '
        'there: name results/SCALE or workdirs of finished runs'))
  there = {(*_key(cell)[:2], base(cell.method), *_key(cell)[3:])
           for cell in found}
  missing = {_key(cell): cell for cell in expected if _key(cell) not in there}
  return Found(found, list(missing.values()), left_out)


def order_of_methods(names):
  """Returns names as METHODS has them, then all others by name."""
  known = list(algorithms.METHODS)
  return sorted(set(names), key=lambda name: (
      known.index(base(name)) if base(name) in known else len(known), name))


def base(method):
  """Returns the name of a method without the hash of its settings."""
  return method.partition(' [')[0]


def order_of_benchmarks(names):
  """Returns names in the order of BENCHMARKS, then all others by name."""
  return sorted(set(names), key=lambda name: (
      BENCHMARKS.index(name) if name in BENCHMARKS else len(BENCHMARKS), name))


def share(value):
  """Returns a number from 0 to 1 as it is, None for anything else."""
  return value if _is(_SHARE, value) else None


def _below(folder):
  """Yields the workdirs and the JSON files of records below a folder."""
  if any((folder / name).exists() for name in ('test.json', workdir.CONFIG)):
    yield folder
    return
  entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
  yield from (e for e in entries if e.name.endswith('.json') and e.is_file())
  for entry in entries:
    if entry.is_dir() and not entry.name.startswith('.'):
      yield from _below(entry)


def _json(file):
  """Returns the object in a file of JSON; of strict JSON if it is a cell's."""
  loose = []
  try:
    value = json.loads(file.read_bytes().decode(), parse_constant=loose.append)
    if isinstance(value, dict) and 'cell' not in value:
      return value  # of another program
    if loose:
      raise ValueError(f'{loose[0]} is no number of JSON')
  except (ValueError, RecursionError) as error:
    raise UserError(f'{file} cannot be read ({first_line(error)}): it must be '
                    'the JSON of a cell; write it again or remove it'
                    ) from error
  if _deep(value):
    raise UserError(f'{file} is no record of a cell: it is nested more than '
                    f'{_DEEPEST} levels deep')
  return value


def _deep(value):
  """Returns whether a value has more levels than any record."""
  level = [value]
  for _ in range(_DEEPEST):
    level = [part for item in level if isinstance(item, (dict, list))
             for part in (item.values() if isinstance(item, dict) else item)]
  return bool(level)


def _cell(path, record):
  """Returns the Cell of a record whose fields are right."""
  if not isinstance(record, dict):
    raise UserError(f'{path} is no record of a cell: it must be an object with '
                    f'the fields {", ".join(_NEEDED)}')
  for name, kind in _NEEDED.items():
    _check(path, name, kind, _get(record, name))
  for name, kind in _KNOWN.items():
    if _get(record, name) is not None:
      _check(path, name, kind, _get(record, name))
  _check_correct(path, record)
  for i, point in enumerate(_get(record, 'training.curve') or ()):
    for name, kind in _POINT.items():
      value = point.get(name) if isinstance(point, dict) else None
      _check(path, f'training.curve[{i}].{name}', kind, value)
  c = record['cell']
  return Cell(path, *(
      formats.one_line(c[name]) for name in ('scale', 'benchmark', 'method')),
      c['shots'], c['seed'], record)


def _check_correct(path, record):
  """Raises UserError where the answers contradict the test that they are of."""
  correct = _get(record, 'test.correct')
  if correct is None:
    return
  answers = (_get(record, 'test.ways') or 0) * (
      _get(record, 'test.queries') or 0)
  if not correct or not answers or not all(
      _is(_COUNT, value) and value <= answers for value in correct):
    raise UserError(f'{path}: test.correct must have for each task a whole '
                    f'number from 0 to test.ways * test.queries = {answers}')
  for name, value, expected in (
      ('num_tasks', len(correct), _get(record, 'test.num_tasks')),
      ('accuracy', np.mean(correct) / answers, record['test']['accuracy'])):
    if expected is not None and abs(value - expected) > 1e-4:
      raise UserError(f'{path}: test.{name} is {expected}, but it is '
                      f'{value:.6g} by test.correct: test again')


def _expected(file):
  """Returns the Missing of all entries of a cells.json."""
  entries = _json(file)
  if not isinstance(entries, list):
    raise UserError(f'{file} must be a list of objects with the fields '
                    + ', '.join(_EXPECTED))
  for i, entry in enumerate(entries):
    for name, kind in _EXPECTED.items():
      value = entry.get(name) if isinstance(entry, dict) else None
      _check(str(file), f'[{i}].{name}', kind, value)
  return [Missing(*(
      formats.one_line(entry[name]) if kind == _NAME else entry[name]
      for name, kind in _EXPECTED.items())) for entry in entries]


def _named(found):
  """Returns Cells with the names of rows; UserError for one cell twice."""
  settings = {}
  for cell in found:
    settings.setdefault(_key(cell)[:4], set()).add(_settings(cell))
  named = {}
  for cell in found:
    if len(settings[_key(cell)[:4]]) > 1:
      cell = cell._replace(method=f'{cell.method} [{_settings(cell)[:6]}]')
    other = named.setdefault(_key(cell), cell)
    if other is not cell:
      raise UserError(
          f'{other.path} and {cell.path} are two records of {cell.method}, '
          f'{cell.benchmark}, {cell.shots}-shot, seed {cell.seed}: name one')
  return sorted(named.values(), key=lambda cell: cell.seed)


def _settings(cell):
  return formats.one_line(cell.get('provenance.settings_sha256') or 'unknown')


def _key(cell):
  return cell.scale, cell.benchmark, cell.method, cell.shots, cell.seed


def _get(record, name):
  for part in name.split('.'):
    record = record.get(part) if isinstance(record, dict) else None
  return record


def _check(path, name, kind, value):
  """Raises UserError for a field that is not of its kind."""
  if not _is(kind, value):
    given = 'missing' if value is None else f'{repr(value)[:60]}'
    raise UserError(f'{path}: {name} is {given}: it must be {kind}')


def _is(kind, value):
  """Returns whether a value is of a kind; NaN and infinity are of none."""
  if kind == _NAME:
    return isinstance(value, str) and len(value) <= 200
  if kind in (_TEXT, _OBJECT, _LIST):
    return isinstance(value, {_TEXT: str, _OBJECT: dict, _LIST: list}[kind])
  if isinstance(value, bool) or not isinstance(
      value, int if kind == _COUNT else numbers.Real):
    return False
  return 0 <= value <= (1 if kind == _SHARE else 1e30)
