"""Two gradients of one task: through an inner solver, and past it.

With w*(theta) the head that an inner solver fits, and an outer loss
L(theta, w), the *bi-level* gradient is dL(theta, w*(theta)) / dtheta and the
*plain* one is the partial derivative at a w* that is held. Joint training
(MTL) follows plain gradients. Both go through the features X of the task:
they are compared as cotangents of X, which `pull` takes to the parameters.
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
  """conv4 in the precision of its inputs; its own options end at float32."""

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


class Case(NamedTuple):
  """One pair of gradients: solve on one part of a task, judge on another."""

  solver: str
  outer: Callable  # (w, x, y) -> loss
  inner_part: str
  outer_part: str


def cross_entropy(w, x, y):
  """Returns the summed cross-entropy of features x [B, D] under a head."""
  logp = jax.nn.log_softmax(x @ w['weights'] + w.get('bias', 0.))
  return -jnp.sum(jnp.take_along_axis(logp, y[:, None], -1))


def inner_problems(ways, regulariser, C):
  """Returns the two inner problems whose optimum is known: {name: Inner}."""
  def squares(w, x, y):
    error = x @ w['weights'] - jax.nn.one_hot(y, ways, dtype=x.dtype)
    return jnp.sum(error ** 2)

  largest = lambda x: jnp.linalg.eigvalsh(x.T @ x)[-1]
  with_one = lambda x: jnp.concatenate([x, jnp.ones_like(x[:, :1])], 1)
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
          lambda x: (1., 1. + C * largest(with_one(x)) / 2)),
  }


def unrolled(inner, ways, num_steps):
  """Returns (x, y, n) -> w after n <= num_steps gradient steps from zero.

  Differentiable through the steps; the rate, 2 / (smallest + largest
  curvature), is held.
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
  """Returns what fits heads: {name: (x, y) -> w}."""
  return {
      **{name: inner.solve for name, inner in inners.items()},
      'svm': lambda x, y: {'weights': svm.fit(x, y, ways, C=svm_C)['weights']},
      'steps': lambda x, y: gradient.fit(x, y, ways)}


def cases(inners):
  """Returns the identities and the ways in which they fail: {name: Case}."""
  one, two = inners['ridge'], inners['logistic']
  same, apart = ('all', 'all'), ('support', 'query')
  return {
      'ridge, J': Case('ridge', one.objective, *same),
      'logistic, J': Case('logistic', two.objective, *same),
      '(a) ridge, no penalty': Case('ridge', one.data, *same),
      '(a) logistic, no penalty': Case('logistic', two.data, *same),
      '(b) ridge, cross-entropy': Case('ridge', cross_entropy, *same),
      '(b) SVM, cross-entropy': Case('svm', cross_entropy, *same),
      '(c) ridge, J on the query': Case('ridge', one.objective, *apart),
      '(c) logistic, J on the query': Case('logistic', two.objective, *apart),
      'as published: R2D2': Case('ridge', cross_entropy, *apart),
      'as published: MetaOptNet': Case('svm', cross_entropy, *apart),
      'as published: ANIL': Case('steps', cross_entropy, *apart),
  }


def both(cases, solvers, x, y, num_support):
  """Returns the bi-level and the plain cotangents [2, B, D] of features x.

  Args:
    cases: {name: Case}.
    solvers: {name: (x, y) -> w}.
    x: features [B, D] of a task, support first.
    y: labels [B].
    num_support: S.

  Returns:
    {name: [2, B, D]}.
  """
  parts = {'all': slice(None), 'support': slice(num_support),
           'query': slice(num_support, None)}
  fitted = {}  # once for all that judge it
  result = {}
  for name, case in cases.items():
    key = case.solver, case.inner_part
    if key not in fitted:
      rows = parts[case.inner_part]
      fitted[key] = jax.vjp(
          lambda x, solve=solvers[case.solver], rows=rows:
          solve(x[rows], y[rows]), x)
    w, through_solver = fitted[key]
    rows = parts[case.outer_part]
    by_w, plain = jax.grad(
        lambda w, x, case=case, rows=rows: case.outer(w, x[rows], y[rows]),
        (0, 1))(w, x)
    result[name] = jnp.stack([plain + through_solver(by_w)[0], plain])
  return result


def after_steps(inner, ways, x, y, counts):
  """Returns cotangents [n, B, D] of x for numbers of inner steps [n].

  Bi-level through the steps, and plain at the head they end in; then those
  plain at the optimum [B, D].
  """
  solve = unrolled(inner, ways, int(max(counts)))

  def one(n):
    at_end = solve(x, y, n)
    return (jax.grad(lambda x: inner.objective(solve(x, y, n), x, y))(x),
            jax.grad(inner.objective, 1)(at_end, x, y))

  optimum = inner.solve(x, y)
  return (*jax.vmap(one)(jnp.asarray(counts)),
          jax.grad(inner.objective, 1)(optimum, x, y))


def predicted_failure(inner, ways, x, y, num_steps):
  """Returns -penalty'(w*) . dw*/dx, by steps instead of the conditions.

  What leaving the penalty out of the outer loss adds to the gradient.
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
