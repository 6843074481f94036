"""Multi-class support vector machine: MetaOptNet's head."""

import jax
import jax.numpy as jnp

from mtl_jax import fields
from mtl_jax.errors import UserError
from mtl_jax.fields import NOT_NEGATIVE, POSITIVE, Field
from mtl_jax.heads import options
from mtl_jax.heads.options import at_least_float32
from mtl_jax.solvers import crammer_singer

OPTIONS = {
  'C': Field(0.1, 'bound of the dual', POSITIVE),
  'ridge': Field(1., 'factor of the identity that is added to the Gram '
                 'matrix', NOT_NEGATIVE),
}
_DEFAULTS = fields.defaults(OPTIONS)
GAP = 1e-5  # relative; `diagnostics` reports more as not converged
MOST = 5000  # support images: the solver keeps matrices of their square


def fit(
  features, labels, num_ways, *, C=_DEFAULTS['C'], ridge=_DEFAULTS['ridge'],
  example_weights=None, tolerance=None, max_rounds=100,
):
  """Fits one task: Crammer and Singer's machine, without intercepts.

  Maximises over dual [S, N]

    sum_i dual[i, y_i] - 1/2 sum_m dual_m^T (X X^T + ridge I) dual_m

  with dual <= C one_hot(y) and rows that sum to zero: the problem of
  MetaOptNet (Lee et al., CVPR 2019, section 3.2), whose code adds the ridge of
  one. At ridge zero it is scikit-learn's LinearSVC(multi_class=
  'crammer_singer', fit_intercept=False, C=C). Features are taken as they are;
  MetaOptNet normalises them nowhere.

  Reverse-differentiable in features, C and ridge: through the optimality
  conditions, not through the iterations.

  Args:
    features: [S, D], computed in float32 at least.
    labels: int [S] in 0..num_ways - 1.
    num_ways: N >= 2.
    C: bound of the dual, positive.
    ridge: non-negative.
    example_weights: [S], positive factors of the examples' C; None: all are
      one. They weight the examples' losses, as scikit-learn's do.
    tolerance: relative duality gap to stop at; None: 1e-6, and 1e-10 in
      float64.
    max_rounds: bound on the solver's rounds.

  Returns:
    weights [D, N], dual [S, N] and rest [S, N]: what float32 leaves out of
    the dual, where classes overlap and features are long.

  Raises:
    UserError: num_ways < 2, C not positive, ridge negative, or S > MOST.
  """
  options.check_size('svm', len(labels), MOST)
  if num_ways < 2:
    raise UserError(f'num_ways: {num_ways} is too few; use 2 or more')
  options.check('svm', OPTIONS, C=C, ridge=ridge)
  C = options.weighted(example_weights, C)
  features, onehot = _inputs(features, labels, num_ways)
  with jax.default_matmul_precision('highest'):
    dual, rest = crammer_singer.fit(
      crammer_singer.parts(features), onehot, C, ridge, tolerance, max_rounds)
    return {'weights': features.T @ (dual + rest), 'dual': dual, 'rest': rest}


def logits(params, features):
  """Returns the outputs [Q, N] of features [Q, D], margins of about one."""
  with jax.default_matmul_precision('highest'):
    return features @ params['weights']


def diagnostics(
  params, features, labels, *, C=_DEFAULTS['C'], ridge=_DEFAULTS['ridge'],
  example_weights=None, **unused,
):
  """Returns how far params are from the optimum on the support.

  Returns:
    gap: relative duality gap (primal - dual) / primal.
    bound: largest excess of the dual over its bound, relative to the largest
      bound.
    sum: largest |row sum| of the dual, relative to its largest entry.
    not_converged: whether the gap exceeds 1e-5 or is not a number.
  """
  del unused
  dual = params['dual']
  features, onehot = _inputs(features, labels, dual.shape[-1])
  C = options.weighted(example_weights, C)
  with jax.default_matmul_precision('highest'):
    gap = crammer_singer.gap(
      (dual, params['rest']), crammer_singer.parts(features), onehot, C, ridge)
  largest = jnp.maximum(jnp.max(jnp.abs(dual)), jnp.finfo(dual.dtype).tiny)
  return {
    'gap': gap,
    'bound': jnp.maximum(
      jnp.max(dual - jnp.reshape(C, (-1, 1)) * onehot), 0) / jnp.max(C),
    'sum': jnp.max(jnp.abs(dual.sum(-1))) / largest,
    'not_converged': ~(gap <= GAP),
  }


def _inputs(features, labels, num_ways):
  """Returns features in float32 at least, and labels one-hot [S, N]."""
  features = at_least_float32(features)
  return features, jax.nn.one_hot(labels, num_ways, dtype=features.dtype)
