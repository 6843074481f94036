"""Means over tasks with their 95% intervals."""

from collections.abc import Mapping

import numpy as np


def summary(accuracies: np.ndarray) -> Mapping[str, float]:
  """Returns the mean and the half-width of its 95% interval.

  Normal approximation over tasks, 1.96 s / sqrt(n) with the unbiased s.
  """
  count = len(accuracies)
  spread = float(np.std(accuracies, ddof=1)) if count > 1 else float('nan')
  return {'accuracy': float(np.mean(accuracies)),
          'ci95': 1.96 * spread / count ** 0.5}


def difference(first: np.ndarray, second: np.ndarray) -> Mapping[str, float]:
  """Returns `summary` of first - second over the same tasks, paired."""
  return summary(np.asarray(first) - np.asarray(second))
