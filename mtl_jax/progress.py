"""Progress of what takes long: a bar with the time left, or lines in a log."""

import contextlib
import os
import sys

import tqdm

from mtl_jax import program
from mtl_jax.errors import reason

# A bar would only flash where all is done by then.
DELAY = 1.  # seconds
EVERY = 60.  # seconds between lines where there is no terminal


def columns():
  """Returns the width of the terminal of stderr, 0 if it is no terminal."""
  try:
    return os.get_terminal_size(sys.stderr.fileno()).columns
  except (OSError, ValueError):
    return 0


def say(text):
  """Prints a line on stdout, above a bar.

  Where stdout cannot be written, as on a full disk or when its reader has
  ended, a line on stderr says so, and the program goes on without it.
  """
  try:
    tqdm.tqdm.write(text)
    sys.stdout.flush()
  except OSError as error:
    program.silence(sys.stdout)
    with contextlib.suppress(OSError):
      print(f'warning: stdout: {reason(error)}: going on without it',
            file=sys.stderr)


def bar(total, what, *, unit='image', show=True):
  """Returns a context manager: a bar on stderr, whose update(n) moves it.

  The bar tells the time left, and disappears at the end. Where stderr is no
  terminal, such as in the log of a job, a line is printed once a minute.

  Args:
    total: number of items.
    what: is done to them, shown before the bar.
    unit: what one item is.
    show: whether anything is printed.
  """
  return tqdm.tqdm(total=total, **_options(what, unit, show))


def each(items, what, *, total=None, unit='image', show=True):
  """Yields items, with a `bar` of `total`; None: of as many as there are."""
  return tqdm.tqdm(items, total=total, **_options(what, unit, show))


def _options(what, unit, show):
  options = {'desc': what, 'unit': f' {unit}', 'leave': False,
             'disable': not show}
  if columns():
    return options | {'delay': DELAY, 'dynamic_ncols': True}
  return options | {
      'delay': EVERY, 'mininterval': EVERY, 'maxinterval': EVERY,
      'file': _Lines(), 'position': 0,  # without it, tqdm moves the cursor
      'bar_format': '{desc}: {n_fmt} of {total_fmt}, {remaining} left'}


class _Lines:
  """A file for tqdm that keeps lines where tqdm would draw over them."""

  def write(self, text):
    try:
      if text.strip():
        print(text.strip(), file=sys.stderr, flush=True)
    except OSError:
      program.silence(sys.stderr)

  def flush(self):
    pass
