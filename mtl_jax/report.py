"""Tables and figures from workdirs.

    python -m mtl_jax.report FIRST SECOND     paired difference of two tests
"""

import io
import json
import sys
import zipfile

import numpy as np
from etils import epath

from mtl_jax import evaluate
from mtl_jax.errors import UserError, first_line
from mtl_jax.train import metrics, workdir

# What two tests must share for their tasks to be the same.
_SAME_TASKS = ('data', 'split', 'num_tasks', 'ways', 'shots', 'queries',
               'seed', 'episodes')
_LABELS = {'untrained': 'untrained backbone', 'raw_pixels': 'raw pixels'}


def scores(result):
  """Returns the lines that a run ends with, from the contents of test.json.

  Baselines stand beside the trained score, with the protocol above them.
  """
  data = result['data']
  if result['trained_on'] != data:
    data += f' (trained on {result["trained_on"]})'
  lines = [
      f'{result["ways"]}-way {result["shots"]}-shot, {result["queries"]} '
      f'queries a class, {result["num_tasks"]} tasks of the '
      f'{result["split"]} classes of {data}; BatchNorm: '
      f'{result["batch_norm"]}; step {result["checkpoint_step"]}']
  if 'C' in result:
    lines.append(f'  C of the logistic head: {result["C"]}, chosen on '
                 'validation tasks')
  if result['support_copies']:
    lines.append(f'  {result["support_copies"]} augmented copies of each '
                 'support image')
  for name, score in result['scores'].items():
    label, _, shots = name.partition(' ')
    label = _LABELS.get(label, f'{result["method"]}, trained, {label} head')
    lines.append(f'  {f"{label} {shots}".strip():<34} '
                 f'{score["accuracy"]:7.2%} +- {score["ci95"]:.2%}')
  return '\n'.join(lines)


def compare(first, second):
  """Returns lines on the paired difference of two tests on the same tasks.

  Args:
    first, second: folders with test.json and tasks.npz, of a run or of
      --mode=evaluate.

  Raises:
    UserError: files missing, or other tasks.
  """
  results, accuracies = [], []
  for path in map(epath.Path, (first, second)):
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
      raise UserError(f'{first} and {second} were tested on other tasks: '
                      f'{field} is {values[0]} and {values[1]}')
  lines = [f'{first} minus {second}, {results[0]["num_tasks"]} tasks, '
           'paired:']
  for name in accuracies[0]:
    if name in accuracies[1]:
      found = evaluate.difference(accuracies[0][name], accuracies[1][name])
      lines.append(f'  {name:<24} {100 * found["accuracy"]:+6.2f} points '
                   f'+- {100 * found["ci95"]:.2f}')
  if len(lines) == 1:
    raise UserError(f'{first} has scores of {", ".join(accuracies[0])}, '
                    f'{second} of {", ".join(accuracies[1])}: none in common')
  return '\n'.join(lines)


def curves(path):
  """Draws curves.png of a run: loss and accuracies over the steps."""
  # Imported late: it takes a second, and only here is it needed.
  import matplotlib.figure

  records = metrics.read(path)
  training = [r for r in records if 'loss' in r]
  validated = [r for r in records if 'validation_accuracy' in r]
  figure = matplotlib.figure.Figure(figsize=(9, 3.5), layout='constrained')
  left, right = figure.subplots(1, 2)
  left.plot([r['step'] for r in training], [r['loss'] for r in training])
  left.set(xlabel='step', ylabel='training loss')
  right.plot([r['step'] for r in training],
             [100 * r['accuracy'] for r in training], label='training tasks')
  right.errorbar([r['step'] for r in validated],
                 [100 * r['validation_accuracy'] for r in validated],
                 [100 * r['validation_ci95'] for r in validated],
                 marker='.', label='validation tasks, new head')
  test = path / 'test.json'
  if test.exists():
    result = json.loads(test.read_text())
    right.errorbar([result['checkpoint_step']], [100 * result['accuracy']],
                   [100 * result['ci95']], fmt='*', markersize=10,
                   color='black', label='test tasks, best epoch')
  right.set(xlabel='step', ylabel='accuracy, %')
  right.legend(fontsize='small')
  for axes in (left, right):
    axes.grid(alpha=0.3)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=120)
  workdir.write(path / 'curves.png', buffer.getvalue())


def main(argv=None):
  """Runs the command line; returns the exit code."""
  paths = sys.argv[1:] if argv is None else argv
  try:
    if len(paths) != 2:
      raise UserError('usage: python -m mtl_jax.report FIRST SECOND')
    print(compare(*paths))
  except UserError as error:
    print(f'mtl_jax.report: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
