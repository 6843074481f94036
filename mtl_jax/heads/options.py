"""What the heads share: how they read their options and their features."""

import jax.numpy as jnp

from mtl_jax import fields


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


def at_least_float32(features):
  """Returns features in float32, or in their own type if it is wider."""
  return features.astype(jnp.promote_types(features.dtype, jnp.float32))
