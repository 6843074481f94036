"""Regularised multinomial logistic regression in the span of its examples.

Minimise over weights W [N, D] and intercepts b [N], for examples X [S, D]
with one-hot labels Y [N, S],

  J(W, b) = 1/2 |W|^2 + C sum_i cross_entropy(Y[:, i], softmax(W x_i + b)).

Span. At the optimum W = A X with A = C (Y - P), where P [N, S] are the
probabilities, and the free intercepts give A 1 = 0. So the unknowns are A
[N, S] and b, the logits of the examples are F = A K + b 1^T with the Gram
matrix K = X X^T [S, S], and the features are not needed again. Because A 1 = 0,
X may be centred (only the meaning of b changes), which keeps float32 accurate
when features share a large mean; from here on K 1 = 0.

Direction. R = C (Y - P) - A is the negative gradient, stated in the span: a
step (Z, beta) moves A by Z, moves the logits by E = Z K + beta 1^T and
changes J by -<R, E> to first order. The Hessian of the loss couples the N
classes of each example i through C (diag p_i - p_i p_i^T). We replace it by
its average eigenvalue over the N - 1 directions that matter,

  h_i = C (1 - |p_i|^2) / (N - 1)     (exact for two classes and for uniform p)

so that the classes decouple and one Cholesky factorisation of size S serves
all of them, where Newton's method (Rasmussen & Williams 2006, section 3.5)
takes N + 1. With H = diag h, the step solves Z + (Z K + beta 1^T) H = R and
Z 1 = 0, hence, with G = (I + K H)^-1,

  Z = (R - beta h^T) G,   beta = R G 1 / (h^T G 1).

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
with |E| <= r * tolerance has converged too, and saves a factorisation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_STEPS_PER_ROUND = 10
_MARGIN = 0.5  # of the tolerance, at which a round with stale H ends
_SMALLEST_CURVATURE = 1e-12  # relative to C; keeps 1 / h finite


class _Search(NamedTuple):
  """A point, and what conjugate gradients keep of the last step."""

  dual: jax.Array
  logits: jax.Array
  residual: jax.Array
  old_residual: jax.Array
  old_decrement: jax.Array
  dual_step: jax.Array
  logits_step: jax.Array
  num_steps: jax.Array
  size: jax.Array


def fit(gram, onehot, C, *, tolerance=1e-4, max_steps=200):
  """Minimises the objective above; returns (dual, intercepts).

  Args:
    gram: [S, S], inner products of features whose mean over S is zero.
    onehot: [N, S], N >= 2; a class without an example has no optimum.
    C: weight of the summed cross-entropy against |W|^2 / 2.
    tolerance: largest last change of a logit; about 1e-5 is the floor in
      float32, and about a quarter of it reaches the probabilities.
    max_steps: bound on the number of steps, up to whole rounds; 6 to 10 are
      usual for unit features, 50 for norms in the thousands. With such norms
      and more examples than features the problem is almost unregularised, and
      the bound may come first.

  Returns:
    dual [N, S], rows and columns of which sum to zero, and intercepts [N],
    which sum to zero: the logits of a centred feature vector x are
    dual @ (features @ x) + intercepts.
  """

  def not_converged(state):
    _, _, num_steps, converged = state
    return ~converged & (num_steps < max_steps)

  def one_round(state):
    dual, intercepts, num_steps, _ = state
    # Logits from scratch: rounding errors of the last round end here.
    logits = dual @ gram + intercepts[:, None]
    end, h = _round(dual, logits, gram, onehot, C, tolerance)
    shrunk = jnp.min(_curvatures(end.logits, onehot, C) / h)
    fresh = jnp.where(end.num_steps == 1, 1.0, jnp.minimum(shrunk, 1.0))
    converged = end.size <= fresh * tolerance
    intercepts = end.logits.mean(1)
    # Steps keep A 1 = 0 up to rounding, so they never undo rounding errors.
    dual = end.dual - end.dual.mean(1, keepdims=True)
    return dual, intercepts, num_steps + end.num_steps, converged

  start = jnp.zeros_like(onehot)
  dual, intercepts, _, _ = jax.lax.while_loop(
    not_converged, one_round, (start, start[:, 0], 0, False)
  )
  return dual, intercepts - intercepts.mean()


def _round(dual, logits, gram, onehot, C, tolerance):
  """Returns the end of up to _STEPS_PER_ROUND steps with one H, and its h."""
  h = _curvatures(logits, onehot, C)
  weights, shift = _preconditioner(h, gram)
  tiny = jnp.finfo(gram.dtype).tiny

  def step(s):
    z = s.residual @ weights
    z_logits = z @ gram + (s.residual @ shift)[:, None]
    decrement = jnp.sum(s.residual * z_logits)
    beta = decrement - jnp.sum(s.old_residual * z_logits)
    beta = jnp.maximum(beta / s.old_decrement, 0.0)
    dual_step = z + beta * s.dual_step
    logits_step = z_logits + beta * s.logits_step
    slope = jnp.sum(s.residual * logits_step)
    restart = slope <= 0.0
    dual_step = jnp.where(restart, z, dual_step)
    logits_step = jnp.where(restart, z_logits, logits_step)
    slope = jnp.where(restart, decrement, slope)

    p = jax.nn.softmax(s.logits, 0)
    length = _length(p, dual_step, logits_step, slope, C, tiny)
    dual = s.dual + length * dual_step
    logits = s.logits + length * logits_step
    return _Search(
      dual,
      logits,
      C * _probabilities(logits, onehot)[1] - dual,
      s.residual,
      decrement + tiny,
      dual_step,
      logits_step,
      s.num_steps + 1,
      jnp.max(jnp.abs(z_logits)),
    )

  def unfinished(s):
    enough = jnp.where(s.num_steps == 1, tolerance, _MARGIN * tolerance)
    return (s.num_steps < _STEPS_PER_ROUND) & (s.size > enough)

  residual = C * _probabilities(logits, onehot)[1] - dual
  zero = jnp.zeros_like(dual)
  one = jnp.ones((), gram.dtype)
  start = _Search(
    dual, logits, residual, zero, one, zero, zero, 0, jnp.inf * one
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


def _curvatures(logits, onehot, C):
  """Returns h [S] of the module's docstring."""
  others = jax.nn.softmax(logits, 0) * (1 - onehot)
  missing = others.sum(0)
  spread = missing * (2 - missing) - jnp.sum(others**2, 0)  # 1 - |p|^2
  return C * jnp.maximum(spread / (len(onehot) - 1), _SMALLEST_CURVATURE)


def _preconditioner(h, gram):
  """Returns M [S, S] and m [S]: Z = R M and beta = R m (see the module)."""
  root = jnp.sqrt(h)
  eye = jnp.eye(len(h), dtype=gram.dtype)
  # G = H^-1/2 (I + H^1/2 K H^1/2)^-1 H^1/2, with a little more of I where the
  # rounding of K would outweigh it: the step only has to be nearly right.
  scaled = root[:, None] * gram * root
  jitter = jnp.finfo(gram.dtype).eps * jnp.trace(scaled)
  factor = jnp.linalg.cholesky((1 + jitter) * eye + scaled)
  inverse = jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
  g = (inverse.T @ inverse) * (root / root[:, None])
  g_one = g.sum(1)
  h_g = h @ g
  shift = g_one / jnp.sum(h_g)
  return g - shift[:, None] * h_g, shift


def _length(p, dual_step, logits_step, slope, C, tiny):
  """Returns the step length t of the module's docstring."""
  moved = p * logits_step
  variance = jnp.sum(moved * logits_step) - jnp.sum(moved.sum(0) ** 2)
  curvature = jnp.sum(dual_step * logits_step) + C * jnp.maximum(variance, 0)
  newton = slope / (curvature + tiny)
  rho = jnp.max(logits_step.max(0) - logits_step.min(0))
  x = rho * newton
  return newton * jnp.where(x < 1e-6, 1.0, jnp.log1p(x) / (x + tiny))
