"""Two gradients of one task: through an inner solver, and past it.

With w*(theta) the head that an inner solver fits, and an outer loss
L(theta, w), the *bi-level* gradient is dL(theta, w*(theta)) / dtheta. The
*plain* gradient is the partial derivative in theta with w* held constant.
Joint training (MTL) follows plain gradients. Both gradients pass through the
features X of the task: they are compared as cotangents of X, which `pull`
takes to the parameters.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from mtl_jax.heads import gradient, logistic, ridge, svm
from mtl_jax.models import conv4, layers

_TOLERANCE = {'float32': 1e-5, 'float64': 1e-12}  # of logistic logits


class Conv4(conv4.Conv4):
  """conv4 in the precision of its inputs; conv4 itself refuses float64."""

  dtype: str = 'float64'

  def __post_init__(self):
    nn.Module.__post_init__(self)


class Inner(NamedTuple):
  """An inner problem: min over w of objective(w, x, y).

  w is a dict of weights [D, N] and bias [N], x are features [S, D], y labels
  [S]. The objective is the sum of data(w, x, y) and penalty(w).
  """

  solve: Callable  # (x, y) -> w, differentiable
  data: Callable
  penalty: Callable
  curvature: Callable  # x -> (smallest, largest), bounds of the Hessian

  def objective(self, w, x, y):
    """Returns J, its penalty included."""
    return self.data(w, x, y) + self.penalty(w)


class Kind(NamedTuple):
  """How the outer loss of a case relates to the inner objective J."""

  outer: str  # 'J', 'data' (J without its penalty) or 'cross_entropy'
  apart: bool  # solved on the support, judged on the query; else on both
  text: str  # for display, with a place for the solver's name


# 'identity' is what the theory states; the others are the ways to fail.
KINDS = {
    'identity': Kind('J', False, '{}, J'),
    'penalty': Kind('data', False, '(a) {}, no penalty'),
    'loss': Kind('cross_entropy', False, '(b) {}, cross-entropy'),
    'data': Kind('J', True, '(c) {}, J on the query'),
    'published': Kind('cross_entropy', True, 'as published: {}'),
}
_SOLVERS = {'ridge': 'ridge', 'logistic': 'logistic', 'svm': 'SVM'}
_METHODS = {'ridge': 'R2D2', 'svm': 'MetaOptNet', 'steps': 'ANIL'}


class Case(NamedTuple):
  """One pair of gradients."""

  kind: str  # key of KINDS
  solver: str  # 'ridge', 'logistic', 'svm' or 'steps'

  @property
  def fails(self):
    """Whether the two gradients are expected to differ."""
    return self.kind != 'identity'

  @property
  def joint(self):
    """The solver of the joint training that this case is compared with."""
    squares = self.solver == 'ridge' and (
        KINDS[self.kind].outer != 'cross_entropy')
    return 'ridge' if squares else 'logistic'

  @property
  def label(self):
    """The name of the case for a reader; results are stored under it."""
    names = _METHODS if self.kind == 'published' else _SOLVERS
    return KINDS[self.kind].text.format(names[self.solver])


CASES = (
    Case('identity', 'ridge'), Case('identity', 'logistic'),
    Case('penalty', 'ridge'), Case('penalty', 'logistic'),
    Case('loss', 'ridge'), Case('loss', 'svm'),
    Case('data', 'ridge'), Case('data', 'logistic'),
    Case('published', 'ridge'), Case('published', 'svm'),
    Case('published', 'steps'),
)


def cross_entropy(w, x, y):
  """Returns the summed cross-entropy of features x [B, D] under a head."""
  logp = jax.nn.log_softmax(x @ w['weights'] + w.get('bias', 0.))
  return -jnp.sum(jnp.take_along_axis(logp, y[:, None], -1))


def inner_problems(ways, regulariser, C):
  """Returns the two inner problems with a known optimum: {name: Inner}."""
  def squares(w, x, y):
    error = x @ w['weights'] - jax.nn.one_hot(y, ways, dtype=x.dtype)
    return jnp.sum(error ** 2)

  largest = lambda x: jnp.linalg.eigvalsh(x.T @ x)[-1]
  with_bias = lambda x: jnp.concatenate(
      [x, jnp.ones_like(x[:, :1])], 1)
  norm = lambda w: jnp.sum(w['weights'] ** 2)
  return {
      'ridge': Inner(
          lambda x, y: ridge.fit(x, y, ways, regulariser=regulariser,
                                 target=1.),
          squares, lambda w: regulariser * norm(w),
          lambda x: (2 * regulariser, 2 * (regulariser + largest(x)))),
      'logistic': Inner(
          lambda x, y: logistic.fit(x, y, ways, C=C, max_steps=1000,
                                    tolerance=_TOLERANCE[x.dtype.name]),
          lambda w, x, y: C * cross_entropy(w, x, y), lambda w: norm(w) / 2,
          # The softmax' own Hessian is at most 1/2.
          lambda x: (1., 1. + C * largest(with_bias(x)) / 2)),
  }


def unrolled(inner, ways, num_steps):
  """Returns (x, y, n) -> w after n <= num_steps gradient steps from zero.

  Differentiable through the steps. The rate, 2 / (smallest + largest
  curvature), counts as a constant.
  """
  def solve(x, y, n):
    low, high = inner.curvature(jax.lax.stop_gradient(x))
    rate = 2 / (low + high)
    start = {'weights': jnp.zeros((x.shape[1], ways), x.dtype),
             'bias': jnp.zeros(ways, x.dtype)}

    def step(w, i):
      slope = jax.grad(inner.objective)(w, x, y)
      move = jnp.where(i < n, rate, 0.)
      return jax.tree.map(lambda a, b: a - move * b, w, slope), None

    return jax.lax.scan(step, start, jnp.arange(num_steps))[0]

  return solve


def solvers(ways, inners, svm_C):
  """Returns the functions that fit heads: {name: (x, y) -> w}."""
  return {
      **{name: inner.solve for name, inner in inners.items()},
      'svm': lambda x, y: {'weights': svm.fit(x, y, ways, C=svm_C)['weights']},
      'steps': lambda x, y: gradient.fit(x, y, ways)}


def both(inners, solvers, x, y, num_support):
  """Returns the bi-level and the plain cotangents of features, for all CASES.

  Args:
    inners: {name: Inner}, of `inner_problems`.
    solvers: {name: (x, y) -> w}, of `solvers`.
    x: features [B, D] of a task, support first.
    y: labels [B].
    num_support: S.

  Returns:
    {label: [2, B, D]}.
  """
  support, query = slice(num_support), slice(num_support, None)
  fitted = {}  # once for all cases that judge it
  result = {}
  for case in CASES:
    kind = KINDS[case.kind]
    rows = support if kind.apart else slice(None)
    key = case.solver, kind.apart
    if key not in fitted:
      fitted[key] = jax.vjp(
          lambda x, solve=solvers[case.solver], rows=rows:
          solve(x[rows], y[rows]), x)
    w, through_solver = fitted[key]
    loss = _outer(kind.outer, inners.get(case.solver))
    rows = query if kind.apart else slice(None)
    by_w, plain = jax.grad(
        lambda w, x, loss=loss, rows=rows: loss(w, x[rows], y[rows]),
        (0, 1))(w, x)
    result[case.label] = jnp.stack([plain + through_solver(by_w)[0], plain])
  return result


def _outer(name, inner):
  """Returns the outer loss (w, x, y) -> number of a Kind."""
  if name == 'cross_entropy':
    return cross_entropy
  return inner.objective if name == 'J' else inner.data


def after_steps(inner, ways, x, y, counts):
  """Returns cotangents of x for numbers of inner steps `counts`, [n].

  Returns:
    Bi-level ones through the steps [n, B, D], plain ones at the head after
    the steps [n, B, D], and plain ones at the optimum [B, D].
  """
  solve = unrolled(inner, ways, int(max(counts)))

  def after(n):
    at_end = solve(x, y, n)
    return (jax.grad(lambda x: inner.objective(solve(x, y, n), x, y))(x),
            jax.grad(inner.objective, 1)(at_end, x, y))

  optimum = inner.solve(x, y)
  return (*jax.vmap(after)(jnp.asarray(counts)),
          jax.grad(inner.objective, 1)(optimum, x, y))


def predicted_failure(inner, ways, x, y, num_steps):
  """Returns -penalty'(w*) . dw*/dx, differentiated through gradient steps.

  The theory says that leaving the penalty out of the outer loss adds this to
  the gradient.
  """
  optimum = inner.solve(x, y)
  solve = unrolled(inner, ways, num_steps)
  _, pull_back = jax.vjp(lambda x: solve(x, y, num_steps), x)
  slope = jax.grad(inner.penalty)(optimum)
  return -pull_back({'bias': jnp.zeros_like(optimum['bias']), **slope})[0]


@functools.partial(jax.jit, static_argnums=0)
def features(backbone, variables, images):
  """Returns unit-length features of a batch, [B, D], in training mode."""
  x, _ = backbone.apply(variables, images, train=True,
                        mutable=['batch_stats'])
  return layers.unit_norm(x)


@functools.partial(jax.jit, static_argnums=0)
def pull(backbone, variables, images, cotangents):
  """Takes cotangents [n, B, D] of the features to the parameters, [n, P]."""
  of_params = lambda params: features(
      backbone, {**variables, 'params': params}, images)
  _, pull_back = jax.vjp(of_params, variables['params'])
  return jax.lax.map(lambda c: ravel_pytree(pull_back(c)[0])[0], cotangents)
