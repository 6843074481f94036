"""Gradient descent on half a sum of squares, in closed form.

In an eigendirection of the kernel with the eigenvalue s, a residual shrinks
by exp(-time s) in gradient flow and by (1 - rate s)^count in steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve


class Steps(NamedTuple):
  """Gradient steps in place of gradient flow for the time rate * count."""

  rate: float
  count: int


def transfer(cross, own, time, l2):
  """Returns A [n, s]: a support residual r adds A r to the query predictions.

  Args:
    cross: kernel [n, s] of the parameters that adapt, query to support.
    own: the same, support to support [s, s]. It may be singular: nothing
      moves in its null space.
    time: rate times time, inf, or Steps; ignored where l2 is given.
    l2: weight of the distance to the start, or None.
  """
  if l2 is not None:
    factor = cho_factor(own + l2 * jnp.eye(len(own), dtype=own.dtype))
    return cho_solve(factor, cross.T).T
  values, vectors = jnp.linalg.eigh(own)
  return (cross @ vectors * growth(values, time)) @ vectors.T


def train(phi, targets, time):
  """Returns the dual coefficients [n, k] and Phi's extreme eigenvalues.

  Args:
    phi: [n, n].
    targets: [n, k].
    time: of gradient flow, inf for convergence, or Steps.
  """
  def to_convergence():
    values = jnp.linalg.eigvalsh(phi)
    return cho_solve(cho_factor(phi), targets), values[0], values[-1]

  def for_a_time():
    values, vectors = jnp.linalg.eigh(phi)
    dual = vectors @ (growth(values, time)[:, None] * (vectors.T @ targets))
    return dual, values[0], values[-1]

  if isinstance(time, Steps):
    return for_a_time()
  return jax.lax.cond(jnp.isinf(time), to_convergence, for_a_time)


def growth(values, time):
  """Returns (1 - exp(-time values)) / values; `time` where values are 0.

  For Steps, exp(-time value) becomes (1 - rate value)^count. Values that are
  0 up to rounding count as 0; at infinite time their growth is 0.
  """
  cut = len(values) * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
  real = values > cut
  values = jnp.where(real, values, 1)
  if isinstance(time, Steps):
    grown = 1 - (1 - time.rate * values) ** time.count
    return jnp.where(real, grown / values, time.rate * time.count)
  still = jnp.where(jnp.isinf(time), 0, time)
  return jnp.where(real, -jnp.expm1(-time * values) / values, still)
