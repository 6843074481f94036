"""What a run reports while it runs: metrics.jsonl, a bar, writers."""

import json
import math
import time
import types

import jax
import numpy as np
import tqdm

from mtl_jax import files, progress
from mtl_jax.errors import UserError
from mtl_jax.evaluate import interval

FILE = 'metrics.jsonl'
_PARTS = 'metrics.*.jsonl'  # on object stores, after FILE
_OF_PART = 200  # records
# A run keeps its rate, so that it can be resumed.
_REMEDY = ('start again with a lower config.optimizer.learning_rate (or '
           'config.method.inner_rate, if there is one) and another --workdir; '
           'the last good checkpoint stays')


def means(metrics):
  """Returns the means of a list of {name: (sum, count)} of single steps."""
  names = metrics[0] if metrics else ()
  return {name: sum(float(m[name][0]) for m in metrics)
          / sum(float(m[name][1]) for m in metrics) for name in names}


def fetch(pending, first_step):
  """Brings the metrics of several steps to the host and checks them.

  Args:
    pending: the metrics of each step, on the device.
    first_step: number of the first of them.

  Raises:
    UserError: names the first step whose loss or gradient is not finite.
  """
  metrics = jax.device_get(pending)
  for step, values in enumerate(metrics, first_step):
    for name in ('loss', 'gradient_norm'):
      total, count = values[name]
      if not count:
        raise UserError(f'{name} is that of no image: the loss of this method '
                        'needs other config.train.shots or queries')
      if not math.isfinite(total):
        raise UserError(
            f'{name} is {total / count} at step {step}: {_REMEDY}')
  return metrics


def check_parameters(params, step):
  """Raises UserError where a parameter is not finite after a step.

  The loss of a step is that of the parameters before it.
  """
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if not np.isfinite(x).all():
      raise UserError(f'the parameter {jax.tree_util.keystr(path)} is not '
                      f'finite after step {step}: {_REMEDY}')


def unsolved(values, prefix, remedy):
  """Returns a line on the tasks of a record that were not solved.

  Args:
    values: the record; `not_converged` is the share of these tasks.
    prefix: of its names: '', or 'validation_'.
    remedy: which fields to change.
  """
  share = values[f'{prefix}not_converged']
  sizes = ', '.join(f'{name} {values[prefix + name]:.1e}'
                    for name in ('residual', 'stationarity')
                    if prefix + name in values)
  where = 'validation' if prefix else 'training'
  what = 'their accuracy' if prefix else 'the gradient'
  return (f'Not converged in {share:.1%} of the {where} tasks up to step '
          f'{values["step"]} (means: {sizes}; 0 is solved), so {what} is that '
          f'of approximate solutions: {remedy}. {FILE} has '
          f'`{prefix}not_converged` of every record.')


def guessing(values, ways, before):
  """Returns a line on a validation that is no better than guessing, or ''.

  A training may diverge to a loss that is finite, and goes on for hours.

  Args:
    values: the record of the validation.
    ways: N of its tasks.
    before: the best accuracy of earlier ones, -inf if there is none.
  """
  accuracy, ci95 = (values[f'validation_{x}'] for x in ('accuracy', 'ci95'))
  better = lambda value: value - (ci95 or 0) > 1 / ways
  if better(accuracy):
    return ''
  earlier = f'; it was {before:.2%}' if better(before) else ''
  return (f'Validation is no better than guessing at step {values["step"]}: '
          f'{accuracy:.2%} {interval.text(ci95, "{:.2%}")} in tasks of {ways} '
          f'classes{earlier}. If this goes on, {_REMEDY}.')


def read(path, upto=None):
  """Returns the records of a run; lines that are no records are left out.

  A run that is killed may leave half a line, or a validation whose state was
  not saved yet: the next start makes it again, and the later record counts.

  Args:
    path: the workdir.
    upto: leave out records of later steps (a resumed run makes them again).
  """
  lines = {}  # each once: a start may have been killed while it joined parts
  for file in [path / FILE, *sorted(path.glob(_PARTS))]:
    if file.exists():
      lines |= dict.fromkeys(file.read_bytes().split(b'\n'))
  records = {}  # one of training and one of validation for a step
  for record in filter(None, map(_record, lines)):
    if upto is None or record['step'] <= upto:
      records[record['step'], 'validation_accuracy' in record] = record
  return list(records.values())


def _record(line):
  """Returns the record of a line, None if it is none; null is NaN."""
  try:
    record = json.loads(line)
  except (ValueError, RecursionError):  # also bytes that are no text
    return None
  if not isinstance(record, dict) or not isinstance(record.get('step'), int):
    return None
  return {name: math.nan if value is None else value
          for name, value in record.items()}


def _line(record):
  """Returns a record as a line of strict JSON, which has no NaN."""
  finite = {name: None if isinstance(value, float) and not math.isfinite(value)
            else value for name, value in record.items()}
  return files.json_text(finite) + '\n'


class Log:
  """Keeps the records of a run and shows its progress.

  A record is appended to the file. Object stores cannot append: there FILE
  holds what an earlier start has kept, and further records follow in numbered
  parts, of which only the last one is written again.
  """

  def __init__(self, path, config, upto, total_steps, remedies=(), name='',
               write=None):
    """Keeps the records up to a step.

    Args:
      path: the workdir.
      config: config.log.
      upto: the step.
      total_steps: of the whole run.
      remedies: '' (training) and 'validation_' -> which fields to change where
        tasks have not converged; it is said once a run.
      name: of the run, shown before its progress where several go at once.
      write: (step, values) -> None, of writers.opened.
    """
    self._path, self._name = path, name
    kept = read(path, upto)
    self._keep(kept)
    self._last = kept[-1] if kept else {}
    self._part, self._parts = [], 0  # lines of the last part; parts before it
    self._first, self._total = upto, total_steps
    self._start = time.monotonic()
    self.every_steps = config.every_steps
    self._bar = None
    if config.progress and progress.columns():
      self._bar = tqdm.tqdm(total=total_steps, initial=upto, unit='step',
                            dynamic_ncols=True, smoothing=0.05,
                            desc=name or None)
    self._plain = config.progress and self._bar is None
    self._remedies = dict(remedies)  # of what this run has not said yet
    for record in kept:
      self._converged(record)
    self._writers = write or (lambda step, values: None)

  def _keep(self, records):
    """Makes FILE hold these records, and no part any."""
    file, parts = self._path / FILE, list(self._path.glob(_PARTS))
    contents = ''.join(map(_line, records))
    before = file.read_bytes() if file.exists() else b''
    if before != contents.encode():
      files.write(file, contents)
    for part in parts:
      part.unlink()

  def _write(self, line):
    if files.can_append(self._path):
      files.append(self._path / FILE, line)
      return
    if len(self._part) == _OF_PART:
      self._part, self._parts = [], self._parts + 1
    self._part.append(line)
    files.write(self._path / f'metrics.{self._parts:05}.jsonl',
                ''.join(self._part))

  def record(self, values):
    """Adds a record of a step: 'step', 'epoch' and what was measured."""
    before, self._last = self._last, values
    self._write(_line(values))
    self._writers(values['step'], {
        name: value for name, value in values.items() if name != 'step'})
    if self._bar is not None:
      self._bar.update(values['step'] - self._bar.n)
      # Loss and validation come in turn: the bar keeps both.
      self._bar.set_postfix_str(_short({**before, **values}))
    elif self._plain:
      self.say(f'step {values["step"]}  {_short(values)}  '
               f'{self._left(values["step"])}'.rstrip())
    for line in self._converged(values):
      self.say(line)

  def _left(self, step):
    """Says how long the rest takes at the pace so far, validations included.

    Training may end before that, see train.stop_patience.
    """
    if step == self._first or step >= self._total:
      return ''
    pace = (time.monotonic() - self._start) / (step - self._first)
    return f'{duration(pace * (self._total - step))} left'

  def say(self, text):
    """Prints a line above the bar."""
    progress.say(f'{self._name}: {text}' if self._name else text)

  def _converged(self, values):
    """Returns a line for each kind of task that first has not converged."""
    return [unsolved(values, prefix, self._remedies.pop(prefix))
            for prefix in tuple(self._remedies)
            if values.get(f'{prefix}not_converged', 0) > 0]

  def close(self):
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()


def no_log(every_steps):
  """Returns what takes the place of a Log in processes that write nothing."""
  nothing = lambda _: None
  return types.SimpleNamespace(record=nothing, say=nothing,
                               every_steps=every_steps)


def duration(seconds):
  """Returns a duration as text: '45 s', '12 min' or '3.2 h'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = seconds / 60
  return f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.1f} h'


def _short(values):
  forms = {'loss': ('loss', '{:.4f}'), 'accuracy': ('accuracy', '{:.1%}'),
           'validation_accuracy': ('validation', '{:.2%}'),
           'learning_rate': ('rate', '{:.2g}'),
           'tasks_per_second': ('tasks/s', '{:.3g}')}
  return '  '.join(f'{label} {form.format(values[name])}'
                   for name, (label, form) in forms.items() if name in values)
