"""Class rows: MTL's linear head, one row per training class."""

import math

import jax
import jax.numpy as jnp

from mtl_jax.errors import check_choice

INITS = ('rows', 'shared')


def init(key, num_classes, dim, ways, how='rows'):
  """Draws the rows [M, D]: U(+-1/sqrt(D)) times sqrt(M / N).

  Source: the code of Wang, Zhao & Li (ICML 2021), lightning_mtl.py.

  Args:
    key: of the draw.
    num_classes: M, classes of the training split.
    dim: D, number of features.
    ways: N, classes of one training task.
    how: 'rows' draws every row (published); 'shared' repeats one row, so that
      every task starts from the same head, as in the paper's theory.

  Raises:
    UserError: how is neither.
  """
  check_choice('config.method.head_init', how, INITS)
  bound = math.sqrt(num_classes / ways) / math.sqrt(dim)
  drawn = num_classes if how == 'rows' else 1
  rows = jax.random.uniform(key, (drawn, dim), minval=-bound, maxval=bound)
  return jnp.broadcast_to(rows, (num_classes, dim))


def logits(rows, class_ids, features):
  """Returns features [B, D] against the rows of a task's classes: [B, N].

  No bias and no temperature, as published.
  """
  return features @ rows[class_ids].T
