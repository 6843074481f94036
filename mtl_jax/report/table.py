"""A table of any number of tests: one row per run and score, seeds together.

Runs that differ in their seed alone are one group. A row has the mean over its
seeds and two intervals: over seeds, as other trainings would score, and over
tasks, as precisely as these trainings are known.
"""

import json
import pathlib
import re
from typing import NamedTuple

import numpy as np

from mtl_jax import files, progress
from mtl_jax.errors import UserError
from mtl_jax.evaluate import interval
from mtl_jax.report import compare
from mtl_jax.run import score, workdir


class Tasks(NamedTuple):
  """Which tasks a row was tested on; equal only for the same tasks."""

  sha256: str  # of run/score.py; '' where an older version tested
  data: str
  split: str
  ways: int
  shots: int
  queries: int
  num_tasks: int
  seed: int | None  # where an older version drew them
  episodes: str

  def __str__(self):
    return (f'{self.ways}-way {self.shots}-shot, {self.queries} queries per '
            f'class, {self.num_tasks} tasks of the {self.split} classes of '
            f'{self.data}')


class Difference(NamedTuple):
  """What a row has more than another one; accuracies as shares."""

  accuracy: float
  over_seeds: float | None  # half-widths of the 95% intervals
  over_tasks: float | None


class Row(NamedTuple):
  """A score of a group of runs; accuracies as shares."""

  run: str
  method: str
  head: str
  tasks: Tasks
  seeds: tuple  # None for a run whose seed is not known
  by_seed: np.ndarray  # accuracies [S]
  by_task: np.ndarray  # accuracies [T], means over seeds
  accuracy: float
  over_seeds: float | None  # half-widths of the 95% intervals
  over_tasks: float | None
  difference: Difference | None = None


def rows(paths, against=None):
  """Returns the Rows of tests, in the order of their paths.

  Args:
    paths: workdirs of runs, folders of --mode=evaluate, or folders of seeds.
    against: one more of them, from whose row with the same head and tasks
      each row gets a difference.

  Raises:
    UserError: a folder has no test, two are of the same seed of the same run,
      or no row has a difference.
  """
  found = _rows(runs_of(paths))
  if against is None:
    return found
  others = _rows(runs_of([against]))
  result = [row._replace(difference=_difference(row, others)) for row in found]
  if not any(row.difference for row in result):
    raise UserError(f'--against={against} has no score with a head and tasks '
                    'of the others: test all with the same config.eval')
  return result


def runs_of(paths):
  """Returns the folders of tests; for a folder of seeds those of its seeds.

  Raises:
    UserError: a folder is neither.
  """
  found = []
  for path in paths:
    folder = files.at(path)
    seeds = [] if (folder / 'test.json').exists() else sorted(
        (test.parent for test in folder.glob('seed_*/test.json')),
        key=lambda p: (len(p.name), p.name))
    # As given, so that a table shows no longer paths than the command.
    found += [str(pathlib.PurePath(path) / seed.name) if '://' not in str(path)
              else str(seed) for seed in seeds] or [path]
  return found


def _rows(paths):
  """Returns the Rows of folders of tests, seeds together."""
  groups = {}
  for path in progress.each(paths, 'reading', unit='test'):
    test = compare.read(path)
    run = _training(test)
    for label, accuracies in test.accuracies.items():
      head, tasks = _head_and_tasks(test, label)
      if len(accuracies) != tasks.num_tasks:
        raise UserError(f'{path} holds a damaged test: test.json has '
                        f'{tasks.num_tasks} tasks and tasks.npz '
                        f'{len(accuracies)}; test again')
      key = ((run['settings_sha256'], run.get('validation_sha256')),
             test.result.get('method'), head, tasks, _measure(test, head))
      group = groups.setdefault(key, {})
      if run['seed'] in group:
        raise UserError(
            f'{group[run["seed"]][0].path} and {path} are two tests of seed '
            f'{run["seed"]} of the same run on the same tasks: name one')
      group[run['seed']] = test, accuracies
  return [_row(key, group) for key, group in groups.items()]


def _row(key, group):
  """Returns the Row of the tests of one score: seed -> (Test, accuracies)."""
  _, method, head, tasks, _ = key
  accuracies = np.stack([values for _, values in group.values()])  # [S, T]
  by_seed, by_task = accuracies.mean(1), accuracies.mean(0)
  seeds = interval.over_seeds(by_seed)
  return Row(
      run=_name([test.path for test, _ in group.values()]), method=str(method),
      head=head, tasks=tasks, seeds=tuple(group), by_seed=by_seed,
      by_task=by_task, accuracy=seeds['accuracy'], over_seeds=seeds['ci95'],
      over_tasks=interval.summary(by_task)['ci95'])


def _difference(row, others):
  """Returns row minus the one of `others` with its head and tasks, or None."""
  same = [other for other in others
          if (other.head, other.tasks) == (row.head, row.tasks)]
  if not same:
    return None
  tasks = interval.difference(row.by_task, same[0].by_task)
  seeds = interval.difference_over_seeds(row.by_seed, same[0].by_seed)
  return Difference(tasks['accuracy'], seeds['ci95'], tasks['ci95'])


def _training(test):
  """Returns what is known of the run of a test, of workdir.of_training.

  The config beside the test is asked first: its fields have the defaults of
  this version, whichever version tested.
  """
  folder = files.at(test.path)
  for place in (folder, folder.parent):
    if (place / workdir.CONFIG).exists() and (
        place == folder or 'training' not in test.result):
      return workdir.of_training(workdir.saved_config(place))
  return test.result.get('training') or {
      'seed': None, 'settings_sha256': f'unknown, of {folder}'}


def _measure(test, head):
  """Returns as text how a test measured, beside its tasks."""
  c = test.result
  options = dict(c.get('heads', {}).get(head, {}))
  if 'C' in c and head == 'logistic':  # chosen, so that seeds may differ
    options['C'] = sorted(c.get('validation_by_C', ()))
  return json.dumps([c.get('batch_norm'), c.get('normalise_features'),
                     c.get('support_copies'), options], sort_keys=True)


def _head_and_tasks(test, label):
  """Returns the head, and the Tasks, of a label such as 'svm 1-shot'.

  Raises:
    UserError: test.json lacks a field.
  """
  head, shots = score.split_label(label)
  c = test.result
  try:
    shots = int(shots or c['shots'])
    sha256 = c.get('tasks_sha256', {}).get(str(shots), '')
    # Where the images are known, it does not matter how they were drawn.
    drawn = (None, '') if sha256 else (c['seed'], c.get('episodes', ''))
    return head, Tasks(
        sha256, c['data'], c['split'], c['ways'], shots, c['queries'],
        c['num_tasks'], *drawn)
  except KeyError as error:
    raise UserError(f'{test.path} holds no finished test: test.json lacks '
                    f'{error}; test again') from error


def _name(paths):
  """Returns a name for the runs of a group: one path, or the folder of all."""
  if len(paths) == 1:
    return str(paths[0])
  folders = {pathlib.PurePath(str(path)).parent for path in paths}
  if len(folders) == 1 and all(
      re.fullmatch(r'seed_\d+', pathlib.PurePath(str(path)).name)
      for path in paths):
    return str(folders.pop())
  return f'{paths[0]} and {len(paths) - 1} more'
