"""Progress of what takes long: a bar with the time left, on a terminal only."""

import os
import sys

import tqdm


def columns():
  """Returns the width of the terminal of stderr, 0 if it is no terminal."""
  try:
    return os.get_terminal_size(sys.stderr.fileno()).columns
  except (OSError, ValueError):
    return 0


def each(items, what, *, total=None, unit='image', show=True):
  """Yields items, with a bar on stderr where it is a terminal.

  The bar tells the time left and disappears at the end. Elsewhere, such as in
  a pipe, nothing is printed.

  Args:
    items: to iterate over.
    what: is done to them, shown before the bar.
    total: their number; None: len(items), or unknown.
    unit: what one item is.
    show: whether there may be a bar.
  """
  return tqdm.tqdm(items, desc=what, total=total, unit=unit, leave=False,
                   dynamic_ncols=True, disable=not (show and columns()))
