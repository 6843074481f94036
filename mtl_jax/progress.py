"""Progress of what takes long: a bar with the time left, on a terminal only."""

import os
import sys

import tqdm

# A bar would only flash where all is done by then.
DELAY = 1.  # seconds


def columns():
  """Returns the width of the terminal of stderr, 0 if it is no terminal."""
  try:
    return os.get_terminal_size(sys.stderr.fileno()).columns
  except (OSError, ValueError):
    return 0


def bar(total, what, *, unit='image', show=True):
  """Returns a context manager: a bar on stderr, whose update(n) moves it.

  The bar tells the time left, and disappears at the end. Where stderr is no
  terminal, such as in a pipe, nothing is printed.

  Args:
    total: number of items.
    what: is done to them, shown before the bar.
    unit: what one item is.
    show: whether there may be a bar.
  """
  return tqdm.tqdm(total=total, **_options(what, unit, show))


def each(items, what, *, total=None, unit='image', show=True):
  """Yields items, with a `bar` of `total`; None: of as many as there are."""
  return tqdm.tqdm(items, total=total, **_options(what, unit, show))


def _options(what, unit, show):
  return {'desc': what, 'unit': f' {unit}', 'leave': False, 'delay': DELAY,
          'dynamic_ncols': True, 'disable': not (show and columns())}
