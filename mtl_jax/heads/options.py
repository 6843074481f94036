"""What the heads share: how they read their options and their features."""

import functools

import jax
import jax.numpy as jnp

from mtl_jax import fields
from mtl_jax.errors import UserError

LARGE_RESIDUAL = 0.05  # the diagnostics of a good fit are about zero


def convergence(residuals):
  """Returns whether residuals are those of a good fit.

  Args:
    residuals: name -> [], of `diagnostics` or of an inner problem; with
      `not_converged` a head has a tolerance of its own.

  Returns:
    {} without any, and else
    residual: the largest.
    not_converged: [] bool, whether one is above 0.05 or not a number, or the
      head says so.
  """
  if not residuals:
    return {}
  said = residuals.get('not_converged', False)
  values = [v for name, v in residuals.items() if name != 'not_converged']
  largest = functools.reduce(jnp.maximum, values, 0.)  # NaN if any is
  return {'residual': largest,
          'not_converged': said | ~(largest <= LARGE_RESIDUAL)}


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


def check_size(head, size, most):
  """Raises UserError where a support is too large for a head.

  Args:
    head: its name.
    size: S.
    most: the largest S that it can fit.
  """
  if size > most:
    raise UserError(
      f'the head {head} can fit at most {most:,} support images, and there are '
      f'{size:,}: choose another head (logistic and ridge have no limit), or '
      'give fewer images')


def balance(labels, num_ways, dtype=jnp.float32):
  """Returns example weights [S] by which all classes count alike.

  S / (N n) for an example of a class with n of them, which is scikit-learn's
  class_weight='balanced'. They sum to S, so they change nothing about how much
  the support counts against a penalty.

  Args:
    labels: int [S] in 0..num_ways - 1.
    num_ways: N.
    dtype: of the weights.
  """
  counts = jax.nn.one_hot(labels, num_ways, dtype=dtype).sum(0)
  return len(labels) / (num_ways * counts[labels])


def weighted(example_weights, values):
  """Returns values, [S, ..] or a number, times weights [S], which may be None.

  None, for weights of one, costs nothing and leaves the values as they are.
  """
  if example_weights is None:
    return values
  shape = (-1,) + (1,) * (jnp.ndim(values) - 1)
  return jnp.reshape(example_weights, shape) * values


def at_least_float32(features):
  """Returns features in float32, or in their own type if it is wider."""
  return features.astype(jnp.promote_types(features.dtype, jnp.float32))
