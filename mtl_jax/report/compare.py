"""The paired difference of two tests, from their files."""

import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np

from mtl_jax import files
from mtl_jax.errors import UserError, first_line
from mtl_jax.evaluate import interval
from mtl_jax.run import score, workdir

# What two tests must share for the tasks drawn to be the same.
_SETTINGS = ('data', 'split', 'num_tasks', 'ways', 'shots', 'queries', 'seed')


class Test(NamedTuple):
  """A finished test, from its files."""

  path: Any
  result: dict[str, Any]  # test.json
  accuracies: dict[str, np.ndarray]  # label -> accuracy of each task


def compare(first, second):
  """Returns the paired differences of two tests on the same tasks, as lines.

  Args:
    first, second: folders with test.json and tasks.npz, of a run or of
      --mode=evaluate.

  Raises:
    UserError: files are missing or damaged, or the tasks differ.
  """
  a, b = read(first), read(second)
  pairs = _pairs(a, b)
  if not pairs:
    raise UserError(f'{first} has scores of {", ".join(a.accuracies)}, '
                    f'{second} of {", ".join(b.accuracies)}: test both with '
                    'the same config.eval.heads')
  by_hash = all('tasks_sha256' in test.result for test in (a, b))
  for ours, theirs in pairs:
    if by_hash and _tasks(a, ours) != _tasks(b, theirs):
      _refuse(a, b, _SETTINGS, 'the images of the tasks differ')
  if not by_hash:
    _refuse(a, b, (*_SETTINGS, 'episodes'))
  lines = [f'{first} minus {second}, {len(a.accuracies[pairs[0][0]])} tasks, '
           'paired:']
  for ours, theirs in pairs:
    gap = interval.difference(a.accuracies[ours], b.accuracies[theirs])
    half_width = gap['ci95'] and 100 * gap['ci95']
    label = ours if ours == theirs else f'{ours} minus {theirs}'
    lines.append(f'  {label:<24} {100 * gap["accuracy"]:+6.2f} points '
                 + interval.text(half_width, '{:.2f}'))
  for i, test in enumerate((a, b)):
    alone = [label for label in test.accuracies
             if label not in [pair[i] for pair in pairs]]
    if alone:
      lines.append(f'  of {test.path} alone: {", ".join(alone)}')
  if not by_hash:
    lines.append('  An older version made one of these tests: that the tasks '
                 'are the same follows from their settings alone.')
  return '\n'.join(lines)


def read(path):
  """Returns the Test in a folder.

  Raises:
    UserError: it has none, its files are damaged, or it is a run whose training
      has gone on since.
  """
  folder = files.at(path)
  try:
    result = json.loads((folder / 'test.json').read_text())
    with np.load(io.BytesIO((folder / 'tasks.npz').read_bytes())) as packed:
      accuracies = dict(packed)
    if not isinstance(result, dict):
      raise ValueError(f'test.json is a {type(result).__name__}')
  except FileNotFoundError as error:
    name = files.at(error.filename or 'test.json').name
    raise UserError(f'{path} holds no finished test (it has no {name}): name '
                    'the workdir of a run or of --mode=evaluate; --page=FOLDER '
                    'takes a folder of runs, too') from error
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'{path} holds no finished test ({first_line(error)}): '
                    'name the workdir of a run or of --mode=evaluate'
                    ) from error
  _check_ended(folder, result)
  return Test(path, result, accuracies)


def _check_ended(folder, result):
  """Raises UserError for the test of a run that was started again to go on."""
  before = result.get('training', {}).get('max_epochs')
  if before is None or not (folder / workdir.CONFIG).exists():
    return  # an older version tested; or it is that of --mode=evaluate
  now = workdir.saved_config(folder).train.max_epochs
  if now != before:
    raise UserError(
        f'{folder} is a run of {now} epochs that has not ended, and its test '
        f'is that of {before}: let it end, by the same command')


def _pairs(a, b):
  """Returns the labels of two tests that are compared.

  The first of each test, which may be of different heads, then those that both
  have.
  """
  firsts = [test.result.get('head') for test in (a, b)]
  both = [(label, label) for label in a.accuracies if label in b.accuracies]
  if all(head in test.accuracies for head, test in zip(
      firsts, (a, b), strict=True)) and firsts[0] != firsts[1]:
    both.insert(0, tuple(firsts))
  return both


def _tasks(test, label):
  """Returns what names the tasks of a label, see run/score.py."""
  _, shots = score.split_label(label)
  return test.result['tasks_sha256'].get(str(shots or test.result['shots']))


def _refuse(a, b, names, otherwise=None):
  """Raises UserError for the first setting of two tests that differs.

  Args:
    a, b: Tests.
    names: fields of test.json.
    otherwise: what to say where all are equal; None: nothing is wrong then.
  """
  differs = otherwise
  for name in names:
    values = [test.result.get(name) for test in (a, b)]
    if values[0] != values[1]:
      differs = f'{name} is {values[0]} and {values[1]}'
      break
  if differs:
    raise UserError(f'{a.path} and {b.path} were tested on different tasks: '
                    f'{differs}; test both with the same config.eval')
