"""Multinomial logistic regression with an l2 penalty: MTL's test-time head."""

import functools

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from mtl_jax import fields
from mtl_jax.errors import UserError
from mtl_jax.fields import POSITIVE, Field
from mtl_jax.heads import options
from mtl_jax.heads.options import at_least_float32
from mtl_jax.solvers import multinomial

OPTIONS = {
  'C': Field(3., 'weight of the cross-entropy, the inverse of the penalty',
             POSITIVE),
}
_DEFAULTS = fields.defaults(OPTIONS)
# Up to _FEW examples are fitted by their Gram matrix, and up to _MANY where
# they are fewer than the features. More of them take too long or too much
# memory. (See `_optimum` for those with weights.)
_FEW, _MANY = 1000, 2000
_TOLERANCE = {'float32': 1e-4, 'float64': 1e-10}
_PULL_BACK = {'float32': {'tol': 1e-6, 'maxiter': 300},
              'float64': {'tol': 1e-12, 'maxiter': 1000}}


def fit(
  features, labels, num_ways, *, C=_DEFAULTS['C'], example_weights=None,
  intercept=None, tolerance=None, max_steps=200,
):
  """Fits one task: minimises 1/2 |W|^2 + C sum_i v_i cross_entropy_i.

  The intercepts are not penalised. For three and more classes this is what
  scikit-learn's LogisticRegression(C=C) minimises, the head of Wang, Zhao & Li
  (ICML 2021); for two it stays multinomial, where scikit-learn's is binary.
  Reverse-differentiable in features and C: through the optimality conditions
  (implicit function theorem), not through the iterations.

  Args:
    features: [S, D], computed in float32 at least.
    labels: int [S] in 0..num_ways - 1; every class at least once.
    num_ways: N >= 2.
    C: weight of the cross-entropy (inverse of the penalty), positive.
    example_weights: v [S], positive; None: all are one.
    intercept: whether there are intercepts; None: unless there are
      example_weights. An intercept says how frequent a class is, and weights
      have said it. Besides, W fits few images so closely that the intercept of
      their class becomes too small for new ones. Without intercepts all classes
      are equally probable at the weighted mean of the features.
    tolerance: of the support logits, see solvers.multinomial.fit; None: 1e-4,
      and 1e-10 in float64.
    max_steps: bound on the solver's steps.

  Returns:
    weights [D, N] and bias [N]; the bias sums to zero.

  Raises:
    UserError: num_ways < 2, or C is a number that is not positive.
  """
  if num_ways < 2:
    raise UserError(f'num_ways: {num_ways} is too few; use 2 or more')
  options.check('logistic', OPTIONS, C=C)
  features = at_least_float32(features)
  onehot = jax.nn.one_hot(labels, num_ways, axis=0, dtype=features.dtype)
  if intercept is None:
    intercept = example_weights is None
  if tolerance is None:
    tolerance = _TOLERANCE[features.dtype.name]

  with jax.default_matmul_precision('highest'):
    weights, bias = _optimum(
      features, onehot, example_weights, C, intercept, tolerance, max_steps)
    mean = _mean(features, example_weights, intercept)
    return {'weights': weights, 'bias': bias - mean @ weights}


def logits(params, features):
  """Returns the logits [Q, N] of features [Q, D]."""
  with jax.default_matmul_precision('highest'):
    return features @ params['weights'] + params['bias']


def diagnostics(
  params, features, labels, *, C=_DEFAULTS['C'], example_weights=None,
  intercept=None, **unused,
):
  """Returns how far params are from the optimum on the support.

  Features of norm 1,000 magnify the rounding of float32 to about 1e-2 in
  `weights`, with probabilities still right to 1e-5.

  Returns:
    weights: largest |W - C sum_i v_i (y_i - p_i) x_i|, relative to the largest
      |W|.
    bias: largest |mean_i v_i (y_i - p_i)|, a probability; without intercepts
      the largest |logit| at the weighted mean.
  """
  del unused
  features = at_least_float32(features)
  if intercept is None:
    intercept = example_weights is None
  weights = params['weights']
  num_ways = weights.shape[-1]
  onehot = jax.nn.one_hot(labels, num_ways, axis=0, dtype=features.dtype)
  with jax.default_matmul_precision('highest'):
    mean = _mean(features, example_weights, intercept)
    bias = params['bias'] + mean @ weights
    by_weights, by_bias = _gradient(
      (weights, bias - bias.mean()), features, onehot, example_weights, C,
      intercept
    )
  # Equal features of all classes have weights of nothing but rounding.
  least = 100 * jnp.finfo(features.dtype).eps * C * jnp.sum(jnp.max(
    jnp.abs(options.weighted(example_weights, features)), -1))
  scale = jnp.maximum(jnp.max(jnp.abs(weights)), least)
  residual = jnp.max(jnp.abs(by_weights))
  return {
    'weights': jnp.where(scale > 0, residual / scale, residual),
    'bias': jnp.max(jnp.abs(by_bias)) / C / features.shape[0],
  }


def _highest(function):
  """Returns a function whose products have the highest precision.

  A setting around `fit` does not reach the rules of its derivative, which are
  traced later.
  """
  @functools.wraps(function)
  def at_highest(*args):
    with jax.default_matmul_precision('highest'):
      return function(*args)

  return at_highest


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _optimum(
  features, onehot, example_weights, C, intercept, tolerance, max_steps
):
  """Returns weights [D, N], and the bias [N] for features less `_mean`."""
  size, dim = features.shape
  how = {'example_weights': example_weights, 'intercept': intercept,
         'tolerance': tolerance, 'max_steps': max_steps}
  # Weights that differ by orders of magnitude make the Gram matrix's form
  # diverge where it has more unknowns than there are features.
  unequal = example_weights is not None and size > dim
  if unequal or size > max(_FEW, min(dim, _MANY)):
    weights, bias = multinomial.fit_weights(
      features - _mean(features, example_weights, intercept), onehot, C, **how)
    return weights.T, bias
  if not intercept:
    centred = features - _mean(features, example_weights, intercept)
    dual, bias = multinomial.fit(centred @ centred.T, onehot, C, **how)
    return (dual @ centred).T, bias
  gram = _gram(features)
  gram = gram - gram.mean(0)  # centred again, because of rounding
  dual, bias = multinomial.fit(gram, onehot, C, **how)
  # Rows of dual sum to zero, so the features need not be centred here. Without
  # the barrier the CPU's compiler transposes the features instead.
  return jax.lax.optimization_barrier(dual @ features).T, bias


def _mean(features, example_weights, intercept):
  """Returns the mean [D] at which logits are the bias; see `fit`."""
  if intercept or example_weights is None:
    return features.mean(0)
  return example_weights @ features / jnp.sum(example_weights)


def _gram(features):
  """Returns the Gram matrix of centred features, one task at a time on a CPU.

  A CPU's batched product first writes out all transposed tasks. They do not
  fit into the cache, and the product takes twice as long.
  """
  def product(features):
    centred = features - features.mean(0)
    return centred @ centred.T

  return jax.lax.platform_dependent(
    features, cpu=jax.custom_batching.sequential_vmap(product),
    default=product
  )


@_highest
def _optimum_forward(
  features, onehot, example_weights, C, intercept, tolerance, max_steps
):
  params = _optimum(
    features, onehot, example_weights, C, intercept, tolerance, max_steps)
  return params, (params, features, onehot, example_weights, C)


@_highest
def _optimum_backward(intercept, tolerance, max_steps, saved, cotangent):
  """Pulls back through g(params, data) = 0: -cotangent H^-1 dg/ddata."""
  del tolerance, max_steps
  params, *data = saved
  flat, unravel = ravel_pytree(cotangent)  # cg on a tree failed under vmap

  def hessian_product(v):
    of_params = lambda params: _gradient(params, *data, intercept)
    return ravel_pytree(jax.jvp(of_params, (params,), (unravel(v),))[1])[0]

  solution = cg(hessian_product, -flat, **_PULL_BACK[flat.dtype.name])[0]
  pull = jax.vjp(
    lambda *data: _gradient(params, *data, intercept), *data)[1]
  return pull(unravel(solution))


_optimum.defvjp(_optimum_forward, _optimum_backward)


def _gradient(params, features, onehot, example_weights, C, intercept):
  """Returns the objective's gradient; zero only where the bias sums to zero.

  Adding one number to all intercepts changes no probability; the mean makes
  the optimum unique and the Hessian positive definite. Without intercepts all
  of the bias is to be zero.
  """
  weights, bias = params
  centred = features - _mean(features, example_weights, intercept)
  wrong = jax.nn.softmax(centred @ weights + bias) - onehot.T
  wrong = C * options.weighted(example_weights, wrong)
  return (weights + centred.T @ wrong,
          wrong.sum(0) + bias.mean() if intercept else bias)
