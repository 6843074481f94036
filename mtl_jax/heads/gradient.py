"""A linear head after a few steps of gradient descent: ANIL's head."""

import jax
import jax.numpy as jnp

from mtl_jax import fields
from mtl_jax.fields import COUNT, POSITIVE, Field
from mtl_jax.heads import options
from mtl_jax.heads.options import at_least_float32
from mtl_jax.solvers import inner_loop

OPTIONS = {
  'steps': Field(5, 'steps of gradient descent', COUNT),
  'rate': Field(0.1, 'rate of the steps, on the mean cross-entropy', POSITIVE),
  'bias': Field(True, 'whether there is an intercept'),
}
_DEFAULTS = fields.defaults(OPTIONS)


def fit(
  features, labels, num_ways, *, steps=_DEFAULTS['steps'],
  rate=_DEFAULTS['rate'], bias=_DEFAULTS['bias'], initial=None,
  example_weights=None,
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
    example_weights: [S], factors of the examples' losses; None: all are one.

  Returns:
    weights [D, N] and bias [N], zero if there is none.

  Raises:
    UserError: steps < 1, or rate is a number that is not positive.
  """
  options.check('gradient', OPTIONS, steps=steps, rate=rate)
  features = at_least_float32(features)

  def loss(params, _):
    kept = params['bias'] if bias else jax.lax.stop_gradient(params['bias'])
    return _loss({**params, 'bias': kept}, features, labels,
                 example_weights), None

  start = _start(features, num_ways, bias, initial)
  with jax.default_matmul_precision('highest'):
    return inner_loop.descend(
      loss, start, inner_loop.rate(jnp.asarray(rate, features.dtype)),
      steps=steps, unroll=False)[0]


def logits(params, features):
  """Returns the logits [Q, N] of features [Q, D]."""
  with jax.default_matmul_precision('highest'):
    return features @ params['weights'] + params['bias']


def diagnostics(
  params, features, labels, *, bias=_DEFAULTS['bias'], initial=None,
  example_weights=None, **unused
):
  """Returns whether the steps went down.

  A few steps end before the optimum by design, so the distance to it says
  nothing.

  Returns:
    rise: by how much the support's loss exceeds the initial one; zero unless
      the rate is too large.
  """
  del unused
  features = at_least_float32(features)
  start = _start(features, params['bias'].shape[0], bias, initial)
  data = features, labels, example_weights
  with jax.default_matmul_precision('highest'):
    rise = _loss(params, *data) - _loss(start, *data)
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
  return {**zero, **{k: at_least_float32(initial[k]) for k in given}}


def _loss(params, features, labels, example_weights):
  logp = jax.nn.log_softmax(logits(params, features))
  return -jnp.mean(options.weighted(
    example_weights, jnp.take_along_axis(logp, labels[:, None], -1)))
