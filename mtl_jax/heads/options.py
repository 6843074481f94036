"""What the heads share: how they read their options and their features."""

import jax
import jax.numpy as jnp

from mtl_jax import fields
from mtl_jax.fields import Field

BALANCED = Field(True, 'whether every class counts alike, however many of the '
                 'support images it has; else every image does')


def check(head, options, **values):
  """Raises UserError for an option that the head's declaration forbids.

  Args:
    head: its name in a config.
    options: its OPTIONS.
    **values: option -> value. Arrays, which may be traced, are not checked.
  """
  for name, value in values.items():
    if isinstance(value, (int, float, str)):
      fields.check_value(f'config.heads.{head}.{name}', options[name], value)


def weights(labels, num_ways, dtype, balanced):
  """Returns the weights [S] of the examples in the sum of their losses.

  S / (N n) for an example of a class with n of them: class_weight='balanced' of
  scikit-learn. Exactly 1 where all classes have the same size.

  Args:
    labels: int [S].
    num_ways: N.
    dtype: of the weights.
    balanced: False: all are 1.
  """
  if not balanced:
    return jnp.ones(len(labels), dtype)
  counts = jax.nn.one_hot(labels, num_ways, dtype=dtype).sum(0)
  return len(labels) / (num_ways * counts[labels])


def at_least_float32(features):
  """Returns features in float32, or in their own type if it is wider."""
  return features.astype(jnp.promote_types(features.dtype, jnp.float32))
