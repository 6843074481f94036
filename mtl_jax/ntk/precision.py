"""float64 on request; the caller's own setting stays as it is."""

import contextlib

import jax
import jax.numpy as jnp

from mtl_jax.errors import check_choice


def precision(dtype):
  """Returns a context in which `dtype` can be computed with."""
  check_choice('dtype', dtype, (None, 'float32', 'float64'))
  return (jax.enable_x64(True) if dtype == 'float64'
          else contextlib.nullcontext())


def as_floats(dtype, *arrays):
  """Returns the arrays in one floating dtype, and None for None.

  Without a dtype it is the arrays' common one, float32 at least.
  """
  given = [a if isinstance(a, jax.Array) or a is None else jnp.asarray(a)
           for a in arrays]
  if dtype is None:
    dtype = jnp.result_type(*(a for a in given if a is not None), jnp.float32)
  return [None if a is None else jnp.asarray(a, dtype) for a in given]
