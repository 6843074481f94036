"""Means over tasks with their 95% intervals."""

from collections.abc import Mapping

import numpy as np


def summary(accuracies: np.ndarray) -> Mapping[str, float | None]:
  """Returns the mean and the half-width of its 95% interval.

  Normal approximation over tasks, 1.96 s / sqrt(n) with the unbiased s. One
  task alone has no interval: None.
  """
  count = len(accuracies)
  return {'accuracy': float(np.mean(accuracies)),
          'ci95': (1.96 * float(np.std(accuracies, ddof=1)) / count ** 0.5
                   if count > 1 else None)}


def text(half_width, form):
  """Returns '+- 0.50%', or '(one task: no interval)' where there is none.

  Args:
    half_width: 'ci95' of `summary`.
    form: of a number, such as '{:.2%}'.
  """
  return ('(one task: no interval)' if half_width is None
          else '+- ' + form.format(half_width))


def difference(first: np.ndarray, second: np.ndarray) -> Mapping[str, float]:
  """Returns `summary` of first - second over the same tasks, paired."""
  return summary(np.asarray(first) - np.asarray(second))
