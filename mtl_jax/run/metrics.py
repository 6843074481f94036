"""What a run reports while it runs: metrics.jsonl, the bar, TensorBoard."""

import json
import math
import os
import sys
import time

import jax
import tqdm

from mtl_jax import files
from mtl_jax.errors import UserError

FILE = 'metrics.jsonl'


def means(metrics):
  """Returns the means of a list of {name: (sum, count)} of single steps.

  None for a mean that is not finite, which JSON cannot hold; `fetch` refuses
  such a loss or gradient.
  """
  names = metrics[0] if metrics else ()
  values = {name: sum(float(m[name][0]) for m in metrics)
            / sum(float(m[name][1]) for m in metrics) for name in names}
  return {name: value if math.isfinite(value) else None
          for name, value in values.items()}


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
            f'{name} is {total / count} at step {step}: lower '
            f'config.optimizer.learning_rate; the last good checkpoint stays')
  return metrics


def read(path, upto=None):
  """Returns the records of a run, up to the first line that is damaged.

  Args:
    path: the workdir.
    upto: leave out records of later steps (a resumed run makes them again).
  """
  file = path / FILE
  records = []
  for line in file.read_bytes().splitlines() if file.exists() else ():
    try:
      record = json.loads(line)
      counts = upto is None or record['step'] <= upto
    except (ValueError, TypeError, KeyError):
      break
    if counts:
      records.append(record)
  return records


class Log:
  """Keeps the records of a run and shows its progress.

  Every record replaces the whole file: object stores allow that, but not
  appending.
  """

  def __init__(self, path, config, upto, total_steps):
    self._path = path / FILE
    self._records = read(path, upto)
    self._first, self._total = upto, total_steps
    self._start = time.monotonic()
    self.every_steps = config.every_steps
    self._bar = None
    if config.progress and _columns():
      self._bar = tqdm.tqdm(total=total_steps, initial=upto, unit='step',
                            dynamic_ncols=True, smoothing=0.05)
    self._plain = config.progress and self._bar is None
    self._events = _events(path) if config.tensorboard else None

  def record(self, values):
    """Adds a record of a step: 'step', 'epoch' and what was measured."""
    before = self._records[-1] if self._records else {}
    self._records.append(values)
    files.write(self._path, ''.join(
        files.json_text(record) + '\n' for record in self._records))
    if self._events:
      for name, value in values.items():
        if name != 'step' and value is not None:
          self._events.add_scalar(name, value, values['step'])
    if self._bar is not None:
      self._bar.update(values['step'] - self._bar.n)
      # Loss and validation come in turn: the bar keeps both.
      self._bar.set_postfix_str(_short({**before, **values}))
    elif self._plain:
      self.say(f'step {values["step"]}  {_short(values)}  '
               f'{self._left(values["step"])}'.rstrip())

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
    tqdm.tqdm.write(text)
    sys.stdout.flush()

  def close(self):
    """Ends the bar and the events."""
    if self._bar is not None:
      self._bar.close()
    if self._events:
      self._events.close()


def duration(seconds):
  """Returns a duration as text: '45 s', '12 min' or '3.2 h'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = seconds / 60
  return f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.1f} h'


def _columns():
  """Returns the width of the terminal of stderr, 0 if it is no terminal."""
  try:
    return os.get_terminal_size(sys.stderr.fileno()).columns
  except (OSError, ValueError):
    return 0


def _events(path):
  try:
    import tensorboardX  # the extra `tensorboard`
  except ImportError:
    return None
  return tensorboardX.SummaryWriter(str(path / 'tensorboard'))


def _short(values):
  forms = {'loss': ('loss', '{:.4f}'), 'accuracy': ('accuracy', '{:.1%}'),
           'validation_accuracy': ('validation', '{:.2%}'),
           'learning_rate': ('rate', '{:.2g}'),
           'tasks_per_second': ('tasks/s', '{:.3g}')}
  return '  '.join(f'{label} {form.format(values[name])}'
                   for name, (label, form) in forms.items()
                   if values.get(name) is not None)
