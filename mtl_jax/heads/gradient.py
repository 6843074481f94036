"""A linear head after a few steps of gradient descent: ANIL's head."""

import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.solvers import inner_loop

OPTIONS = {'steps': 5, 'rate': 0.1, 'bias': True}  # what a config may set


def fit(
  features, labels, num_ways, *, steps=5, rate=0.1, bias=True, initial=None
):
  """Fits one task: steps of w <- w - rate * gradient of the loss.

  The loss is the mean cross-entropy of the whole support. Differentiable in
  features, rate and initial, through the steps (ANIL: Raghu et al., ICLR 2020;
  5 steps of 0.1 are learn2learn's).

  Args:
    features: [S, D], computed in float32 at least.
    labels: int [S] in 0..num_ways - 1.
    num_ways: N.
    steps: number of steps, 1 or more.
    rate: positive number, or an array [] or [steps], learnable.
    bias: whether there is an intercept.
    initial: weights [D, N] and, if bias, bias [N]; None is zero.

  Returns:
    weights [D, N] and bias [N], zero if there is none.

  Raises:
    UserError: steps < 1, or rate is a number that is not positive.
  """
  if steps < 1:
    raise UserError(f'config.heads.gradient.steps: {steps} is too few; use 1 '
                    'or more')
  if isinstance(rate, (int, float)) and not rate > 0:
    raise UserError(
      f'config.heads.gradient.rate: {rate} is not positive; 0.1 is usual')
  features = _at_least_float32(features)

  def loss(params, _):
    kept = params['bias'] if bias else jax.lax.stop_gradient(params['bias'])
    return _loss({**params, 'bias': kept}, features, labels), None

  start = _start(features, num_ways, bias, initial)
  with jax.default_matmul_precision('highest'):
    return inner_loop.descend(
      loss, start, inner_loop.rate(jnp.asarray(rate, features.dtype)),
      steps=steps, unroll=False)[0]


def logits(params, features):
  """Returns the logits [Q, N] of features [Q, D]."""
  return features @ params['weights'] + params['bias']


def diagnostics(
  params, features, labels, *, bias=True, initial=None, **unused
):
  """Returns whether the steps went down.

  Few steps are meant to end before the optimum, so its distance says nothing.

  Returns:
    rise: what the support's loss gained over the initial one, zero unless the
      rate is too large.
  """
  del unused
  features = _at_least_float32(features)
  start = _start(features, params['bias'].shape[0], bias, initial)
  with jax.default_matmul_precision('highest'):
    rise = (_loss(params, features, labels) - _loss(start, features, labels))
  return {'rise': jnp.maximum(rise, 0)}


def _start(features, num_ways, bias, initial):
  """Returns the weights and bias before the first step."""
  zero = {
    'weights': jnp.zeros((features.shape[-1], num_ways), features.dtype),
    'bias': jnp.zeros(num_ways, features.dtype),
  }
  if initial is None:
    return zero
  given = ('weights', 'bias') if bias else ('weights',)
  return {**zero, **{k: _at_least_float32(initial[k]) for k in given}}


def _loss(params, features, labels):
  logp = jax.nn.log_softmax(logits(params, features))
  return -jnp.mean(jnp.take_along_axis(logp, labels[:, None], -1))


def _at_least_float32(features):
  return features.astype(jnp.promote_types(features.dtype, jnp.float32))
