"""Large matrices, tile by tile."""

import jax
import jax.numpy as jnp


def fill(tile, rows, columns, block, symmetric, dtype):
  """Returns two matrices [rows, columns], computed tile by tile.

  Tiles are written in place, so that only one of them is held beside the
  result. All have one size: the last ones overlap their neighbours.

  Args:
    tile: (i, j, height, width) -> two matrices [height, width] whose first
      entry belongs at (i, j).
    rows: of the result.
    columns: of the result.
    block: largest side of a tile.
    symmetric: whether the lower half is the upper one's mirror image.
    dtype: of the result.
  """
  starts_i, height = _starts(rows, block)
  starts_j, width = _starts(columns, block)
  corners = [(i, j) for i in starts_i for j in starts_j
             if not symmetric or i <= j]
  if len(corners) == 1:
    return tile(0, 0, rows, columns)
  corners = jnp.array(corners, jnp.int32)

  def write(k, kernels):
    i, j = corners[k]
    for_corner = lambda whole, part: jax.lax.dynamic_update_slice(
        whole, part, (i, j))
    for_mirror = lambda whole, part: jax.lax.dynamic_update_slice(
        whole, part.T, (j, i))
    parts = tile(i, j, height, width)
    kernels = jax.tree.map(for_corner, kernels, parts)
    return (jax.tree.map(for_mirror, kernels, parts) if symmetric
            else kernels)

  empty = tuple(jnp.zeros((rows, columns), dtype) for _ in range(2))
  return jax.lax.fori_loop(0, len(corners), write, empty)


def _starts(size, block):
  number = -(-size // block)
  length = -(-size // number)
  return [min(k * length, size - length) for k in range(number)], length
