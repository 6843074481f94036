"""The paired difference of two tests, from their files."""

import io
import json
import zipfile

import numpy as np

from mtl_jax import files
from mtl_jax.errors import UserError, first_line
from mtl_jax.evaluate import interval

# What two tests must share for their tasks to be the same.
_SAME_TASKS = ('data', 'split', 'num_tasks', 'ways', 'shots', 'queries',
               'seed', 'episodes')


def compare(first, second):
  """Returns the paired differences of two tests on the same tasks, as lines.

  Args:
    first, second: folders with test.json and tasks.npz, of a run or of
      --mode=evaluate.

  Raises:
    UserError: files are missing, or the tasks differ.
  """
  results, accuracies = [], []
  for path in map(files.at, (first, second)):
    try:
      results.append(json.loads((path / 'test.json').read_text()))
      with np.load(io.BytesIO((path / 'tasks.npz').read_bytes())) as packed:
        accuracies.append(dict(packed))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      raise UserError(f'{path} holds no finished test ({first_line(error)}): '
                      'name the workdir of a run or of --mode=evaluate'
                      ) from error
  for field in _SAME_TASKS:
    values = [result.get(field) for result in results]
    if values[0] != values[1]:
      raise UserError(f'{first} and {second} were tested on different tasks: '
                      f'{field} is {values[0]} and {values[1]}; test both with '
                      'the same config.eval')
  lines = [f'{first} minus {second}, {results[0]["num_tasks"]} tasks, '
           'paired:']
  for name in accuracies[0]:
    if name in accuracies[1]:
      gap = interval.difference(accuracies[0][name], accuracies[1][name])
      lines.append(f'  {name:<24} {100 * gap["accuracy"]:+6.2f} points '
                   f'+- {100 * gap["ci95"]:.2f}')
  if len(lines) == 1:
    raise UserError(f'{first} has scores of {", ".join(accuracies[0])}, '
                    f'{second} of {", ".join(accuracies[1])}: test both with '
                    'the same config.eval.heads')
  return '\n'.join(lines)
