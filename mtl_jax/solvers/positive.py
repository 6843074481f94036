"""Inverses of positive definite matrices, of many tasks at once too.

Batched calls of LAPACK are avoided. jaxlib 0.10 divides them among the threads
of XLA's pool and lets the calling thread wait, which is one of the pool. Where
as many of them wait as there are threads, the process waits for ever
(docs/heads.md).
"""

import jax
import jax.numpy as jnp

_SWEPT = 256  # rows; above, LAPACK inverts faster


def inverse(matrix):
  """Returns the inverse of a positive definite matrix [S, S].

  Rounding may have made it indefinite: the inverse is inaccurate then, and not
  NaN, as that by a Cholesky factor would be.
  """
  if len(matrix) <= _SWEPT:
    return _by_sweeps(matrix)
  return jax.lax.platform_dependent(
    matrix, cpu=jax.custom_batching.sequential_vmap(jnp.linalg.inv),
    default=jnp.linalg.inv)


def _by_sweeps(matrix):
  """Inverts by Gauss and Jordan, a loop of changes of rank one.

  A positive definite matrix needs no pivoting. Mapped tasks go through the loop
  together: a tenth of the time of LAPACK's triangular solves at 75 rows.
  """
  size = len(matrix)

  def one(i, m):
    unit = jnp.zeros(size, m.dtype).at[i].set(1)
    column, row = m[:, i], m[i]
    return m - jnp.outer((column - unit) / column[i], row + unit)

  largest = jnp.max(jnp.diag(matrix))  # pivots of order one, for their digits
  return jax.lax.fori_loop(0, size, one, matrix / largest) / largest
