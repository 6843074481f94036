"""Regularised multinomial logistic regression in the span of its examples.

Minimise over weights W [N, D] and intercepts b [N], for examples X [S, D]
with one-hot labels Y [N, S],

  J(W, b) = 1/2 |W|^2 + C sum_i v_i cross_entropy(Y[:, i], softmax(W x_i + b)),

with positive weights v [S] of the examples, V = diag v.

Span. At the optimum W = A X with A = C (Y - P) V, where P [N, S] are the
probabilities, and the free intercepts give A 1 = 0. So the unknowns are A
[N, S] and b, the logits of the examples are F = A K + b 1^T with the Gram
matrix K = X X^T [S, S], and the features are not needed again. Because A 1 = 0,
X may be centred (only the meaning of b changes), which keeps float32 accurate
when features share a large mean; from here on K 1 = 0.

Direction. R = C (Y - P) V - A is the negative gradient, stated in the span: a
step (Z, beta) moves A by Z, moves the logits by E = Z K + beta 1^T and
changes J by -<R, E> to first order. The Hessian of the loss couples the N
classes of each example i through C v_i (diag p_i - p_i p_i^T). We replace it by
its average eigenvalue over the N - 1 directions that matter,

  h_i = C v_i (1 - |p_i|^2) / (N - 1)   (exact for two classes, for uniform p)

so that the classes decouple and one inverse of size S serves all of them, where
Newton's method (Rasmussen & Williams 2006, section 3.5) takes N + 1. With
H = diag h, the step solves Z + (Z K + beta 1^T) H = R and Z 1 = 0, hence, with
G = (I + K H)^-1,

  Z = (R - beta h^T) G,   beta = R G 1 / (h^T G 1).

Weights. Where there are many more examples than features (`fit_weights`), the
unknowns are W and b themselves. Nothing else changes. With the negative
gradient g = C (Y - P) V X - W and c = C (Y - P) v, the mean m = X^T h / 1^T h
and X' = X - 1 m^T, the same step is

  Z = (g - c m^T) (I + X'^T H X')^-1,   beta = c / 1^T h - Z m,

by one inverse of size D or, where D is large, by a few dozen products
with X' in linear conjugate gradients.

Without intercepts beta, c and m are zero, and Z = R G.

Conjugate gradients make up for what the average leaves out: this step is the
preconditioned gradient in the nonlinear method of Polak and Ribiere. H is
renewed every few steps, because confident examples have a curvature that is
smaller by orders of magnitude.

Length. Along a direction (D, E) with slope s = <R, E> and curvature q the
third derivative of J is at most rho q, where rho is the largest difference
between two logit changes in E of one example (|third central moment| <=
range * variance). Integrating twice, J falls all the way to

  t = log(1 + rho s / q) / rho,

which is the Newton length s / q once steps are small. So every step descends,
without a line search or a constant, however large the features are.

Stop. A round that starts with |E| <= tolerance has converged: the logits of
the examples are right to about that. (The gradient is no measure: with large
features tiny changes of A move the logits.) Later in a round H is stale and E
may be too small. Where no h_i has shrunk below r times what H holds, r <= 1,
(K^-1 + H)^-1 and with it <R, E> has grown at most by 1 / r: a round that ends
with |E| <= r * tolerance has converged too, and saves an inverse.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from mtl_jax.solvers import positive

_STEPS_PER_ROUND = 10
_MARGIN = 0.5  # of the tolerance, at which a round with stale H ends
_SMALLEST_CURVATURE = 1e-12  # relative to C; keeps 1 / h finite
_INVERTED = 4000  # features; an inverse of more takes too long
# Of the linear conjugate gradients: a direction only has to be nearly right.
_INNER = {'tol': 1e-2, 'maxiter': 50}


class _Problem(NamedTuple):
  """The loss, see the module."""

  onehot: jax.Array  # [N, S]
  weights: Any  # v [S]; None: all are one
  C: Any

  def weighted(self, values):
    """Returns values [.., S] times v."""
    return values if self.weights is None else self.weights * values


class _Form(NamedTuple):
  """What the unknowns are; the part that steps is the array `moves`.

  split: unknowns -> moves.
  logits: unknowns -> [N, S].
  join: (moves, logits) -> unknowns, without what rounding has added.
  gradient: (C (Y - P) V, moves) -> negative gradient, as an array like moves.
  direction: h [S] -> (gradient -> (step of moves, step of logits)).
  slope: (gradient, step of moves, step of logits) -> their product.
  square: (step of moves, step of logits) -> |step of W|^2.
  """

  split: Callable
  logits: Callable
  join: Callable
  gradient: Callable
  direction: Callable
  slope: Callable
  square: Callable


class _Search(NamedTuple):
  """A point, and what conjugate gradients keep of the last step."""

  moves: jax.Array
  logits: jax.Array
  residual: jax.Array
  old_residual: jax.Array
  old_decrement: jax.Array
  step: jax.Array
  logits_step: jax.Array
  num_steps: jax.Array
  size: jax.Array


def fit(
  gram, onehot, C, *, example_weights=None, intercept=True, tolerance=1e-4,
  max_steps=200,
):
  """Minimises the objective above in the span; returns (dual, intercepts).

  Args:
    gram: [S, S], inner products of features; with an intercept their mean over
      S is zero.
    onehot: [N, S], N >= 2; a class without an example has no optimum.
    C: weight of the summed cross-entropy against |W|^2 / 2.
    example_weights: v [S], positive; None: all are one.
    intercept: whether there are intercepts; else they are zero.
    tolerance: largest last change of a logit; about 1e-5 is the floor in
      float32, and about a quarter of it reaches the probabilities.
    max_steps: bound on the number of steps, up to whole rounds; 6 to 10 are
      usual for unit features, 50 for norms in the thousands. With such norms
      and more examples than features the problem is almost unregularised, and
      the bound may come first.

  Returns:
    dual [N, S], columns of which sum to zero, and with an intercept rows too,
    and intercepts [N], which sum to zero: the logits of a (centred) feature
    vector x are dual @ (features @ x) + intercepts.
  """
  start = jnp.zeros_like(onehot)
  dual, intercepts = _minimise(
    _in_span(gram, intercept), _Problem(onehot, example_weights, C),
    (start, start[:, 0]), tolerance, max_steps)
  return dual, intercepts - intercepts.mean()


def fit_weights(
  features, onehot, C, *, example_weights=None, intercept=True, tolerance=1e-4,
  max_steps=200,
):
  """Minimises the same objective over the weights; returns (W, intercepts).

  Needs memory for a few times S (D + N) numbers, where `fit` needs S^2.

  Args:
    features: [S, D]; with an intercept their mean over S is zero.
    onehot, C, example_weights, intercept, tolerance, max_steps: as in `fit`.

  Returns:
    weights [N, D], and intercepts [N], which sum to zero.
  """
  start = jnp.zeros((len(onehot), features.shape[1] + 1), features.dtype)
  both = _minimise(
    _in_weights(features, intercept), _Problem(onehot, example_weights, C),
    start, tolerance, max_steps)
  return both[:, :-1], both[:, -1] - both[:, -1].mean()


def _in_span(gram, intercept):
  """Returns the form whose unknowns are (dual [N, S], intercepts [N])."""
  def direction(h):
    matrix, shift = _preconditioner(h, gram, intercept)
    def of(residual):
      z = residual @ matrix
      return z, z @ gram + (residual @ shift)[:, None]
    return of

  return _Form(
    split=lambda unknowns: unknowns[0],
    # Logits from scratch: rounding errors of the last round end here.
    logits=lambda unknowns: unknowns[0] @ gram + unknowns[1][:, None],
    # Steps keep A 1 = 0 up to rounding, so they never undo rounding errors.
    join=lambda dual, logits: (
      (dual - dual.mean(1, keepdims=True), logits.mean(1)) if intercept
      else (dual, jnp.zeros_like(dual[:, 0]))),
    gradient=lambda wrong, dual: wrong - dual,
    direction=direction,
    slope=lambda residual, step, logits_step: jnp.sum(residual * logits_step),
    square=lambda step, logits_step: jnp.sum(step * logits_step))


def _in_weights(features, intercept):
  """Returns the form whose unknowns are the weights and intercepts [N, D+1]."""
  def logits(both):
    return both[:, :-1] @ features.T + both[:, -1:]

  def gradient(wrong, both):
    return jnp.concatenate(
      [wrong @ features - both[:, :-1],
       intercept * wrong.sum(1, keepdims=True)], 1)

  solver = (_inverted if features.shape[1] <= _INVERTED else _by_products)

  def direction(h):
    mean = intercept * (h @ features / h.sum())
    solve = solver(features, mean, h)
    def of(residual):
      g, c = residual[:, :-1], residual[:, -1:]
      z = solve(g - c * mean)
      step = jnp.concatenate([z, c / h.sum() - (z @ mean)[:, None]], 1)
      return step, logits(step)
    return of

  return _Form(
    split=lambda both: both, logits=logits, join=lambda both, logits: both,
    gradient=gradient, direction=direction,
    slope=lambda residual, step, logits_step: jnp.sum(residual * step),
    square=lambda step, logits_step: jnp.sum(step[:, :-1] ** 2))


def _inverted(features, mean, h):
  """Returns right [N, D] -> right (I + X'^T H X')^-1, by the inverse."""
  rows = jnp.sqrt(h)[:, None] * (features - mean)
  matrix = rows.T @ rows
  jitter = jnp.finfo(h.dtype).eps * jnp.trace(matrix)
  solution = positive.inverse(
    matrix + (1 + jitter) * jnp.eye(len(matrix), dtype=h.dtype))
  return lambda right: right @ solution


def _by_products(features, mean, h):
  """Returns nearly the same as `_inverted`, by products with X' alone."""
  def product(z):
    moved = h * (z @ features.T - (z @ mean)[:, None])
    return z + moved @ features - moved.sum(1, keepdims=True) * mean

  return lambda right: cg(product, right, **_INNER)[0]


def _minimise(form, problem, start, tolerance, max_steps):
  """Returns the unknowns of a form at the optimum."""
  def not_converged(state):
    _, num_steps, converged = state
    return ~converged & (num_steps < max_steps)

  def one_round(state):
    unknowns, num_steps, _ = state
    end, h = _round(form, problem, form.split(unknowns), form.logits(unknowns),
                    tolerance)
    shrunk = jnp.min(_curvatures(end.logits, problem) / h)
    fresh = jnp.where(end.num_steps == 1, 1.0, jnp.minimum(shrunk, 1.0))
    converged = end.size <= fresh * tolerance
    return (form.join(end.moves, end.logits), num_steps + end.num_steps,
            converged)

  return jax.lax.while_loop(not_converged, one_round, (start, 0, False))[0]


def _round(form, problem, moves, logits, tolerance):
  """Returns the end of up to _STEPS_PER_ROUND steps with one H, and its h."""
  h = _curvatures(logits, problem)
  direction = form.direction(h)
  tiny = jnp.finfo(logits.dtype).tiny

  def gradient(moves, logits):
    wrong = _probabilities(logits, problem.onehot)[1]
    return form.gradient(problem.C * problem.weighted(wrong), moves)

  def step(s):
    z, z_logits = direction(s.residual)
    decrement = form.slope(s.residual, z, z_logits)
    beta = decrement - form.slope(s.old_residual, z, z_logits)
    beta = jnp.maximum(beta / s.old_decrement, 0.0)
    step = z + beta * s.step
    logits_step = z_logits + beta * s.logits_step
    slope = form.slope(s.residual, step, logits_step)
    restart = slope <= 0.0
    step = jnp.where(restart, z, step)
    logits_step = jnp.where(restart, z_logits, logits_step)
    slope = jnp.where(restart, decrement, slope)

    p = jax.nn.softmax(s.logits, 0)
    square = form.square(step, logits_step)
    length = _length(p, square, logits_step, slope, problem, tiny)
    moves = s.moves + length * step
    logits = s.logits + length * logits_step
    return _Search(
      moves,
      logits,
      gradient(moves, logits),
      s.residual,
      decrement + tiny,
      step,
      logits_step,
      s.num_steps + 1,
      jnp.max(jnp.abs(z_logits)),
    )

  def unfinished(s):
    enough = jnp.where(s.num_steps == 1, tolerance, _MARGIN * tolerance)
    return (s.num_steps < _STEPS_PER_ROUND) & (s.size > enough)

  residual = gradient(moves, logits)
  zero = jnp.zeros_like(moves)
  one = jnp.ones((), logits.dtype)
  start = _Search(
    moves, logits, residual, zero, one, zero, jnp.zeros_like(logits), 0,
    jnp.inf * one
  )
  return jax.lax.while_loop(unfinished, step, start), h


def _probabilities(logits, onehot):
  """Returns P and Y - P, the latter to full relative accuracy.

  1 - p of a confident example would lose every digit in float32; the sum of
  the other probabilities keeps them.
  """
  probabilities = jax.nn.softmax(logits, 0)
  others = probabilities * (1 - onehot)
  return probabilities, onehot * others.sum(0) - others


def _curvatures(logits, problem):
  """Returns h [S] of the module's docstring."""
  others = jax.nn.softmax(logits, 0) * (1 - problem.onehot)
  missing = others.sum(0)
  spread = missing * (2 - missing) - jnp.sum(others**2, 0)  # 1 - |p|^2
  return problem.C * problem.weighted(jnp.maximum(
    spread / (len(logits) - 1), _SMALLEST_CURVATURE))


def _preconditioner(h, gram, intercept):
  """Returns M [S, S] and m [S]: Z = R M and beta = R m (see the module)."""
  root = jnp.sqrt(h)
  eye = jnp.eye(len(h), dtype=gram.dtype)
  # G = H^-1/2 (I + H^1/2 K H^1/2)^-1 H^1/2, with a little more of I where the
  # rounding of K would outweigh it: the step only has to be nearly right.
  scaled = root[:, None] * gram * root
  jitter = jnp.finfo(gram.dtype).eps * jnp.trace(scaled)
  g = positive.inverse((1 + jitter) * eye + scaled) * (root / root[:, None])
  if not intercept:
    return g, jnp.zeros_like(h)
  g_one = g.sum(1)
  h_g = h @ g
  shift = g_one / jnp.sum(h_g)
  return g - shift[:, None] * h_g, shift


def _length(p, square, logits_step, slope, problem, tiny):
  """Returns the step length t of the module's docstring."""
  moved = p * logits_step
  variance = (jnp.sum(problem.weighted(moved * logits_step))
              - jnp.sum(problem.weighted(moved.sum(0) ** 2)))
  curvature = square + problem.C * jnp.maximum(variance, 0)
  newton = slope / (curvature + tiny)
  rho = jnp.max(logits_step.max(0) - logits_step.min(0))
  x = rho * newton
  return newton * jnp.where(x < 1e-6, 1.0, jnp.log1p(x) / (x + tiny))
