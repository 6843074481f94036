"""Means over tasks, and over seeds, with their 95% intervals."""

from collections.abc import Mapping, Sequence

import numpy as np

# 0.975 quantiles of Student's t by degrees of freedom, from 1 on.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622,
      2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009,
      2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518,
      2.0484, 2.0452, 2.0423)


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


def t_quantile(freedom: float) -> float:
  """Returns the 0.975 quantile of Student's t, to 0.001.

  Args:
    freedom: degrees of freedom, at least 1; a fraction is rounded down, which
      makes an interval wider.
  """
  if freedom < len(_T) + 1:
    return _T[int(freedom) - 1]
  # The first terms of its expansion around the normal quantile (Abramowitz
  # and Stegun 26.7.5).
  z = 1.959964
  return z + (z ** 3 + z) / (4 * freedom) + (
      5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2)


def over_seeds(accuracies: Sequence[float]) -> Mapping[str, float | None]:
  """Returns `summary` of a few seeds: t s / sqrt(S), for normal accuracies.

  Args:
    accuracies: of each seed [S]; one alone has no interval.
  """
  count = len(accuracies)
  return {'accuracy': float(np.mean(accuracies)),
          'ci95': (t_quantile(count - 1) * float(np.std(accuracies, ddof=1))
                   / count ** 0.5 if count > 1 else None)}


def difference_over_seeds(first: Sequence[float], second: Sequence[float]
                          ) -> Mapping[str, float | None]:
  """Returns the difference of two means over seeds with Welch's interval.

  The seeds of the two are not paired. No interval where one has one seed.

  Args:
    first, second: accuracies of each seed.
  """
  gap = float(np.mean(first) - np.mean(second))
  if min(len(first), len(second)) < 2:
    return {'accuracy': gap, 'ci95': None}
  # Of the two means.
  variances = [float(np.var(x, ddof=1)) / len(x) for x in (first, second)]
  total = sum(variances)
  if not total:
    return {'accuracy': gap, 'ci95': 0.}
  freedom = total ** 2 / sum(
      v ** 2 / (len(x) - 1) for v, x in zip(variances, (first, second),
                                            strict=True))
  return {'accuracy': gap, 'ci95': t_quantile(freedom) * total ** 0.5}
