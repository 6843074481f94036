"""The tables of accuracies: the paper's layout, published values, pairs.

A column is a benchmark and a number of shots. A group is a method in a column:
its seeds. Accuracies are shares, shown in per cent.
"""

import collections
from typing import NamedTuple

import numpy as np

from mtl_jax.evaluate import interval
from mtl_jax.report import cost, page, records

MISSING = 'missing'
_LAYOUT = (
    'Mean accuracy in % over the seeds, with the half-width of its 95% '
    'interval over tasks: 1.96 s / sqrt(tasks), where s is the standard '
    'deviation of the accuracies of the tasks, means over the seeds. Below: '
    "the half-width of the 95% interval over seeds (Student's t), where there "
    'are at least two, and the published value with its interval.')
_PUBLISHED = (
    'Differences in points, ours minus published. The half-widths of the 95% '
    'intervals are roots of the sum of squares of ours and of the published '
    'one: "tasks" takes our interval over tasks, "seeds" the one over seeds. '
    '"*": the record has no published interval, so it is ours alone. The '
    'published networks, schedules and test tasks may differ from ours. '
    'Images are those of the whole training, with repetitions: ours, and those '
    'of the source of the recipe, which may be another than that of the value. '
    '"until": it trains until validation has not risen for so many epochs. '
    '"(nearest)": nobody published a schedule of this method for this '
    'benchmark and these shots, so that it is the one of the nearest recipe. '
    '"-": not known.')
_PAIRS = (
    'Points by which the method of the row is above that of the column, '
    'paired over the same test tasks, with the half-width of the 95% interval '
    'over tasks; each task counts by its mean over the seeds. Below, where '
    "both have at least two seeds: the half-width over seeds, Welch's t.")


class Column(NamedTuple):
  """What is tested: a scale of the training, a benchmark, shots."""

  scale: str
  benchmark: str
  shots: int

  def __str__(self):
    return f'{self.benchmark}, {self.shots}-shot'


class Score(NamedTuple):
  """Of a group; half-widths of 95% intervals, None where there is none."""

  accuracy: float
  over_tasks: float | None
  over_seeds: float | None
  by_seed: list
  by_task: np.ndarray | None  # [T], means over the seeds; None: not the same


def groups(cells):
  """Returns Column -> method -> its cells, in the order they are shown in."""
  found = collections.defaultdict(lambda: collections.defaultdict(list))
  for cell in cells:
    found[Column(cell.scale, cell.benchmark, cell.shots)][cell.method].append(
        cell)
  return {column: {name: found[column][name] for name in
                   records.order_of_methods(found[column])}
          for column in order(found)}


def order(columns):
  """Returns Columns by scale, benchmark and shots."""
  names = records.order_of_benchmarks(c.benchmark for c in columns)
  return sorted(columns, key=lambda c: (
      c.scale, names.index(c.benchmark), c.shots))


def score(cells):
  """Returns the Score of a group."""
  by_seed = [cell.get('test.accuracy') for cell in cells]
  by_task = None
  tasks = {_answered(cell) for cell in cells}
  if len(tasks) == 1 and None not in tasks:
    by_task = np.mean([_by_task(cell) for cell in cells], 0)
  seeds = interval.over_seeds(by_seed)
  over_tasks = (interval.summary(by_task)['ci95'] if by_task is not None
                else cells[0].get('test.ci95') if len(cells) == 1 else None)
  return Score(seeds['accuracy'], over_tasks, seeds['ci95'], by_seed, by_task)


def _answered(cell):
  """Returns what names the tasks of a cell whose answers are known, or None."""
  sha256, correct = cell.get('test.tasks_sha256'), cell.get('test.correct')
  return (sha256, len(correct), _answers(cell)) if sha256 and correct else None


def layout(found, scale):
  """Returns the page.Table of a scale: methods by columns.

  Args:
    found: records.Found.
    scale: of its cells.
  """
  there = {c: g for c, g in groups(found.cells).items() if c.scale == scale}
  missing = collections.defaultdict(list)
  for cell in found.missing:
    if cell.scale == scale:
      missing[Column(*cell[:2], cell.shots), cell.method].append(cell)
  columns = order({*there, *(column for column, _ in missing)})
  # A phone shows three columns: those with cells come first.
  columns.sort(key=lambda column: column not in there)
  methods = records.order_of_methods(
      [*(name for g in there.values() for name in g),
       *(name for _, name in missing)])
  rows = [(name, *(_entry(there.get(column, {}), name, missing[column, name])
                   for column in columns)) for name in methods]
  return page.Table(('method', *((column.benchmark, f'{column.shots}-shot')
                                 for column in columns)), rows, note=_LAYOUT)


def published(found, scale):
  """Returns the page.Table of all groups with a published value, or None."""
  rows = []
  for column, methods in groups(found.cells).items():
    for name, cells in methods.items():
      given = of_publication(cells)
      if column.scale != scale or given is None:
        continue
      ours, theirs = score(cells), given.get('ci95')
      mark = '' if theirs is not None else '*'
      schedule = cost.schedule(
          records.base(name), column.benchmark, column.shots)
      gap = ours.accuracy - given['accuracy']
      rows.append((
          name, str(column), given.get('source') or '-',
          given.get('network') or '-', percent(ours.accuracy),
          percent(given['accuracy'], theirs), percent(gap, sign='+'),
          *(f'{percent(_root(own, theirs))}{mark}' if own is not None else '-'
            for own in (ours.over_tasks, ours.over_seeds)),
          cost.count(cost.of_group(cells).images),
          schedule.images_text() if schedule else '-'))
  header = ('method', 'column', 'source', 'published network', 'ours',
            'published', 'difference', '± tasks', '± seeds',
            ('images', 'ours'), ('images', 'published'))
  return page.Table(header, rows, 4, _PUBLISHED) if rows else None


def pairs(methods):
  """Returns [page.Table] of paired differences, one per set of test tasks.

  Args:
    methods: of `groups`.
  """
  tasks = collections.defaultdict(dict)
  for name, cells in methods.items():
    for cell in cells:
      key = _answered(cell)
      if key:
        tasks[key].setdefault(name, []).append(cell)
  return [_matrix({name: score(cells) for name, cells in same.items()})
          for same in tasks.values() if len(same) > 1]


def of_publication(cells):
  """Returns the first published value of a group that has an accuracy."""
  return next((cell.get('published') for cell in cells
               if cell.get('published.accuracy') is not None), None)


def percent(share, half_width=None, sign=''):
  """Returns '62.10' or '62.10 ± 0.37'; '-' for None."""
  if share is None:
    return '-'
  tail = '' if half_width is None else f' ± {100 * half_width:.2f}'
  return f'{100 * share:{sign}.2f}{tail}'


def _matrix(scores):
  """Returns the page.Table of all pairs of name -> Score on one set."""
  def entry(first, second):
    if first is second:
      return ''
    gap = interval.difference(first.by_task, second.by_task)
    seeds = interval.difference_over_seeds(first.by_seed, second.by_seed)
    lines = [percent(gap['accuracy'], sign='+')]
    if gap['ci95'] is not None:
      lines.append(f'± {percent(gap["ci95"])}')
    if seeds['ci95'] is not None:
      lines.append(f'seeds ± {percent(seeds["ci95"])}')
    return tuple(lines)

  count = len(next(iter(scores.values())).by_task)
  return page.Table((('row - column', f'{count} tasks'), *scores), [
      (name, *(entry(first, second) for second in scores.values()))
      for name, first in scores.items()], note=_PAIRS)


def _entry(methods, name, missing):
  """Returns the lines of a method in a column of the paper's layout."""
  cells = methods.get(name)
  if not cells:
    return '; '.join(dict.fromkeys(cell.status for cell in missing)) or MISSING
  found, count = score(cells), len(cells)
  lines = [percent(found.accuracy, found.over_tasks)]
  if missing:
    lines.append(f'{count} of {count + len(missing)} seeds')
  if found.over_seeds is not None:
    lines.append(f'{count} seeds ± {percent(found.over_seeds)}')
  tasks = {cell.get('test.tasks_sha256') for cell in cells}
  if len(tasks) > 1 and None not in tasks:
    lines.append('seeds on different tasks')
  if _tasks(cells) != _tasks(
      [cell for others in methods.values() for cell in others])[:1]:
    lines.append('other tasks')
  given = of_publication(cells)
  if given:
    lines.append('published ' + percent(given['accuracy'], given.get('ci95')))
  return tuple(lines)


def _tasks(cells):
  """Returns the hashes of the test tasks, the most frequent first."""
  return [name for name, _ in collections.Counter(
      cell.get('test.tasks_sha256') for cell in cells).most_common()]


def _by_task(cell):
  return np.asarray(cell.get('test.correct')) / _answers(cell)


def _answers(cell):
  return (cell.get('test.ways') or 0) * (cell.get('test.queries') or 0)


def _root(ours, theirs):
  return (ours ** 2 + (theirs or 0.) ** 2) ** 0.5
