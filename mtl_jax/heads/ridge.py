"""Ridge regression on one-hot labels: the closed-form head."""

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from mtl_jax import fields
from mtl_jax.fields import POSITIVE, Field
from mtl_jax.heads import options
from mtl_jax.solvers import positive

OPTIONS = {  # the defaults are MetaOptNet's
  'regulariser': Field(50., 'factor of the penalty', POSITIVE),
  'target': Field(2., 'height of the one-hot labels'),
  'bias': Field(False, 'whether there is an intercept, which is penalised'),
  'average': Field(False, 'whether squares are averaged, not summed'),
}
_DEFAULTS = fields.defaults(OPTIONS)
_REFINEMENTS = 3
# A support with repeated images and a large norm has a nearly singular matrix.
# Where `normal` is above this, logits may be off by 0.3% and gradients by more.
_TOLERANCE = 1e-3
_INVERTED = 4000  # rows of a matrix; an inverse of more takes too long


def fit(
  features, labels, num_ways, *, regulariser=_DEFAULTS['regulariser'],
  target=_DEFAULTS['target'], bias=_DEFAULTS['bias'],
  average=_DEFAULTS['average'], example_weights=None,
):
  """Fits one task: minimises a sum of squares and a penalty,

    sum_i |W^T x_i + b - target one_hot(y_i)|^2 + regulariser (|W|^2 + |b|^2).

  The defaults are the ridge head of MetaOptNet's code (Lee et al., CVPR 2019);
  its R2D2 head is target=1. R2D2 itself (Bertinetto et al., ICLR 2019, section
  3) is target=1, bias=True, average=True. The labels' height changes no
  prediction, only the confidence.

  Solved by an inverse of size S (dual) or D (primal), the smaller, or by
  conjugate gradients where both are large.
  Differentiable in features, regulariser and target, through the solution.

  Args:
    features: [S, D], computed in float32 at least.
    labels: int [S] in 0..num_ways - 1.
    num_ways: N.
    regulariser: positive. Zero is refused: a repeated image is enough to make
      the system singular.
    target: height of the one-hot labels.
    bias: whether there is an intercept b; it is penalised, as published.
    average: whether the squares are averaged instead of summed; the
      regulariser then counts S times.
    example_weights: [S], factors of the examples' squares; None: all are one.

  Returns:
    weights [D, N] and bias [N], zero if there is none.

  Raises:
    UserError: regulariser is a number that is not positive.
  """
  options.check('ridge', OPTIONS, regulariser=regulariser)
  x, y, penalty = _problem(
    features, labels, num_ways, regulariser, target, bias, average,
    example_weights)
  size, dim = x.shape
  with jax.default_matmul_precision('highest'):
    if min(size, dim) > _INVERTED:
      weights = cg(lambda w: x.T @ (x @ w) + penalty * w, x.T @ y,
                   tol=1e-6, maxiter=1000)[0]
    elif size <= dim:
      weights = x.T @ _solve(x @ x.T, penalty, y)
    else:
      weights = _solve(x.T @ x, penalty, x.T @ y)
  if bias:
    return {'weights': weights[:-1], 'bias': weights[-1]}
  return {'weights': weights, 'bias': jnp.zeros_like(weights[0])}


def logits(params, features):
  """Returns the outputs [Q, N] of features [Q, D]."""
  with jax.default_matmul_precision('highest'):
    return features @ params['weights'] + params['bias']


def diagnostics(
  params, features, labels, *, regulariser=_DEFAULTS['regulariser'],
  target=_DEFAULTS['target'], bias=_DEFAULTS['bias'],
  average=_DEFAULTS['average'], example_weights=None,
):
  """Returns how far params are from the optimum on the support.

  Returns:
    normal: largest |X^T (X W - Y) + regulariser W|, relative to the largest
      |X^T Y|; rows of X and Y times the root of their example's weight.
    not_converged: whether it exceeds 1e-3 or is not a number.
  """
  weights = params['weights']
  x, y, penalty = _problem(
    features, labels, weights.shape[-1], regulariser, target, bias, average,
    example_weights)
  if bias:
    weights = jnp.concatenate([weights, params['bias'][None]])
  with jax.default_matmul_precision('highest'):
    residual = x.T @ (x @ weights - y) + penalty * weights
    scale = jnp.max(jnp.abs(x.T @ y))
  residual = jnp.max(jnp.abs(residual))
  normal = jnp.where(scale > 0, residual / scale, residual)
  return {'normal': normal, 'not_converged': ~(normal <= _TOLERANCE)}


def _problem(
  features, labels, num_ways, regulariser, target, bias, average,
  example_weights,
):
  """Returns X, Y and the penalty of min |X W - Y|^2 + penalty |W|^2."""
  dtype = jnp.promote_types(features.dtype, jnp.float32)
  x = features.astype(dtype)
  if bias:
    x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], -1)
  y = target * jax.nn.one_hot(labels, num_ways, dtype=dtype)
  penalty = regulariser * (len(x) if average else 1)
  if example_weights is None:
    return x, y, penalty
  root = jnp.sqrt(example_weights)
  return options.weighted(root, x), options.weighted(root, y), penalty


def _solve(gram, penalty, right):
  """Returns (gram + penalty I)^-1 right.

  Where the rounding of a large gram outweighs the penalty, the matrix is not
  positive definite. So one with a larger diagonal is inverted, by as much as
  rounding may take, and refinement corrects the solution. The gradient is
  another such solve.
  """
  eps = jnp.finfo(gram.dtype).eps
  matrix = gram + penalty * jnp.eye(len(gram), dtype=gram.dtype)
  jitter = jax.lax.stop_gradient(eps * jnp.trace(matrix))
  inverse = positive.inverse(jax.lax.stop_gradient(
    matrix + jitter * jnp.eye(len(gram), dtype=gram.dtype)))

  def refined(product, b):
    x = inverse @ b
    for _ in range(_REFINEMENTS):
      x = x + inverse @ (b - product(x))
    return x

  return jax.lax.custom_linear_solve(
    lambda x: matrix @ x, right, refined, symmetric=True)
