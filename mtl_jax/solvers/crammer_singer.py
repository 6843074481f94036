"""The dual of the multi-class support vector machine of Crammer and Singer.

Minimise over alpha [S, N], for a Gram matrix K [S, S], labels Y [S, N] one-hot
and K~ = K + ridge I,

  q(alpha) = 1/2 sum_m alpha_m^T K~ alpha_m - sum_i alpha_{i y_i}
  subject to  alpha <= C Y  and  sum_m alpha_im = 0 for every example i.

C Y - alpha is non-negative and sums to C over the classes: every example has a
simplex of its own, and Euclidean projection on it is exact and cheap.

Mean. There is no intercept, so a mean mu that all features share is part of
the problem; but it costs the digits in which they differ. Hence K comes in two
parts, K_ij = k_ij + u_i + u_j, with k of the centred features z and u_i =
mu z_i + |mu|^2 / 2 (`parts`); K x is k x + u (1^T x) + 1 (u^T x).

Rounds. Gradient projection finds the face of the simplices on which the
optimum lies, conjugate gradients find the optimum of a face (More & Toraldo,
SIAM J. Optim. 1, 1991). One round is

  1. a step along the gradient g = K~ alpha - Y, of length 1 / max row sum of
     |K~|, projected: entries at their bound leave it if that descends;
  2. conjugate gradients in the face, the entries below their bound with
     examples' sums kept: a linear system, so few products with K~;
  3. the best of some lengths along that direction, each projected: entries
     reach their bound, many at once. The length at which the first one does so
     is among them, so every round descends.

A step D changes q by <g, D + K~ D / 2>, which is what lengths are compared by:
differences of q itself would be rounding. Rounds continue to a duality gap of
`tolerance`; where float32 does not reach it, the best point is kept.

Gap. For any weights w, P(w) = 1/2 |w|^2 + C sum_i max_m (1 - Y_im + w_m x_i -
w_{y_i} x_i) is at least -q(alpha), with x_i extended by sqrt(ridge) e_i. At
w = alpha^T x it needs alpha and K~ alpha alone. Where C is far above all alpha
(features of large norm: no example is on the wrong side), margins that rounding
left at 1 - 1e-7 cost C S 1e-7, more than all of P. So a point is kept as
t alpha, t the best of some numbers a few roundings above 1: q is flat there
and P is not.

Gradient. In the optimal face the optimum solves a linear system; a change of
K~ moves it by -H^-1 dK~ alpha with H the system's matrix. The pull-back is one
more run of conjugate gradients. (Where an entry is at its bound with a
multiplier of 0, two one-sided derivatives exist; this is one of them.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LENGTHS = 8  # 1, 1/2, 1/4, ...
_FACE_STEPS = 50  # of conjugate gradients in a round
_FACTORS = (0, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 16)  # of rounding, beyond 1
_PATIENCE = 3  # rounds without a smaller gap


class _State(NamedTuple):
  """The point of a round, and the best one so far."""

  alpha: jax.Array
  slope: jax.Array  # K~ alpha - Y
  best: jax.Array
  gap: jax.Array
  since: jax.Array  # rounds since the best one
  rounds: jax.Array


def parts(features):
  """Returns the two parts (k [S, S], u [S]) of features' [S, D] Gram matrix."""
  mean = features.mean(0)
  centred = features - mean
  return centred @ centred.T, centred @ mean + mean @ mean / 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def fit(gram, onehot, C, ridge, tolerance=1e-6, max_rounds=100):
  """Minimises q and returns alpha [S, N].

  Reverse-differentiable in gram, C and ridge, through the optimality
  conditions.

  Args:
    gram: `parts` of the examples.
    onehot: [S, N] labels.
    C: bound of alpha, positive.
    ridge: non-negative; at zero with a singular gram, alpha is one of many.
    tolerance: of `gap`; float32 reaches 1e-6 to 5e-6 at best. Rounds end
      early when three of them in a row do not lower the gap.
    max_rounds: bound; 3 to 15 are usual.
  """
  matrix, scale = _scaled(gram, ridge)
  bound = C * scale * onehot
  reach = _reach(matrix)

  def unfinished(s):
    left = (s.since < _PATIENCE) & (s.rounds < max_rounds)
    return left & (s.gap > tolerance)

  def one_round(s):
    alpha = project(s.alpha - s.slope / reach, bound)
    slope = _times(matrix, alpha) - onehot
    free = alpha < bound
    direction = _solve(matrix, free, -slope, 1e-3, _FACE_STEPS)
    alpha = _search(matrix, bound, alpha, slope, direction)
    slope = _times(matrix, alpha) - onehot
    factor, gap = _stretch(alpha, slope, matrix, onehot, C * scale)
    better = gap < s.gap
    return _State(
      alpha,
      slope,
      jnp.where(better, factor * alpha, s.best),
      jnp.where(better, gap, s.gap),
      jnp.where(better, 0, s.since + 1),
      s.rounds + 1,
    )

  near = _split(matrix, onehot, bound, C * scale)
  infinite = jnp.asarray(jnp.inf, onehot.dtype)
  slope = _times(matrix, near) - onehot
  start = _State(near, slope, near, infinite, 0, 0)
  best = jax.lax.while_loop(unfinished, one_round, start).best
  # The bound itself, not a rounding above it.
  whole = C * onehot
  return jnp.where(best < bound, jnp.minimum(best / scale, whole), whole)


_CHUNK = 20
_MAX_CHUNKS = 20
_NEAR = 1e-4


def _split(matrix, onehot, bound, C):
  """ADMM."""
  S, N = onehot.shape
  target = onehot - 1 / N
  centred, shift = matrix
  one = jnp.ones_like(shift)

  def inverse(rho):
    factor = jnp.linalg.cholesky(centred + rho * jnp.eye(S, dtype=shift.dtype))
    half = jax.scipy.linalg.solve_triangular(factor, jnp.eye(S, dtype=shift.dtype), lower=True)
    inv = half.T @ half
    # K = A + W J W^T
    both = jnp.stack([one, shift], 1)
    left = inv @ both
    swap = jnp.array([[0., 1.], [1., 0.]], shift.dtype)
    cap = swap + both.T @ left
    det = cap[0, 0] * cap[1, 1] - cap[0, 1] ** 2
    adj = jnp.array([[cap[1, 1], -cap[0, 1]], [-cap[0, 1], cap[0, 0]]]) / det
    return inv - left @ adj @ left.T

  def unfinished(s):
    return (s[4] < _MAX_CHUNKS) & (s[3] > _NEAR)

  def chunk(s):
    beta, dual, rho, _, count = s
    inv = inverse(rho)

    def step(_, t):
      beta, dual, _, _ = t
      alpha = inv @ (target + rho * (beta - dual))
      relaxed = 1.6 * alpha - 0.6 * beta + dual
      new = project(relaxed, bound)
      return new, relaxed - new, alpha, beta
    beta, dual, alpha, old = jax.lax.fori_loop(0, _CHUNK, step, (beta, dual, beta, beta))
    norm = lambda x: jnp.sqrt(jnp.sum(x**2)) + 1e-30
    primal = norm(alpha - beta) / norm(beta)
    second = norm(beta - old) / norm(dual)
    ratio = jnp.clip(jnp.sqrt(primal / second), 0.1, 10)
    ratio = jnp.where((ratio > 2) | (ratio < .5), ratio, 1)
    outputs = _times(matrix, beta)
    gap = _gaps(jnp.ones(1, beta.dtype), beta, outputs, onehot, C)[0]
    return beta, dual / ratio, rho * ratio, gap, count + 1

  zero = jnp.zeros_like(onehot)
  start = (zero, zero, jnp.asarray(.3, onehot.dtype), jnp.asarray(jnp.inf, onehot.dtype), 0)
  return jax.lax.while_loop(unfinished, chunk, start)[0]


def gap(alpha, gram, onehot, C, ridge):
  """Returns the relative duality gap (P + q) / P of alpha; see the module."""
  matrix, scale = _scaled(gram, ridge)
  alpha = scale * alpha
  one = jnp.ones(1, alpha.dtype)
  return _gaps(one, alpha, _times(matrix, alpha), onehot, C * scale)[0]


def project(v, bound):
  """Returns the point nearest to v [.., N] below bound [.., N], with sum 0.

  It is min(v - theta, bound), with theta from the entries that stay below
  their bound: those whose own breakpoint v_m - bound_m leaves a positive sum.
  All pairs of classes are compared; that needs no sort and, unlike sums of
  C - alpha, loses no digit of an alpha far below C.
  """
  breakpoints = v - bound
  sums = jnp.sum(
    jnp.minimum(v[..., None, :] - breakpoints[..., None], bound[..., None, :]),
    -1,
  )
  free = sums > 0
  theta = jnp.sum(jnp.where(free, v, bound), -1, keepdims=True)
  theta = theta / jnp.maximum(jnp.sum(free, -1, keepdims=True), 1)
  return jnp.where(free, jnp.minimum(v - theta, bound), bound)


def _scaled(gram, ridge):
  """Returns the parts of K~ / s, and s: alpha s is of order one."""
  centred, shift = gram
  matrix = centred + ridge * jnp.eye(len(shift), dtype=shift.dtype)
  scale = jnp.mean(jnp.diag(matrix))
  scale = jnp.where(scale > 0, scale, 1)
  return (matrix / scale, shift / scale), scale


def _times(matrix, x):
  """Returns K~ x of parts and x [.., S, N]."""
  centred, shift = matrix
  first = jnp.einsum('ij,...jm->...im', centred, x)
  second = shift[:, None] * jnp.sum(x, -2, keepdims=True)
  return first + second + jnp.einsum('j,...jm->...m', shift, x)[..., None, :]


def _reach(matrix):
  """Returns an upper bound of the largest eigenvalue: the largest row sum."""
  centred, shift = matrix
  whole = jnp.abs(centred + shift + shift[:, None])
  return jnp.maximum(jnp.max(whole.sum(-1)), jnp.finfo(shift.dtype).eps)


def _stretch(alpha, slope, matrix, onehot, C):
  """Returns the best factor for alpha, and the gap there.

  The gap counts what rounding can hide in a margin, so that another order of
  summation would not find it.
  """
  eps = jnp.finfo(alpha.dtype).eps
  centred, shift = matrix
  sizes = jnp.max(jnp.sum(centred**2, -1)) * jnp.max(jnp.sum(alpha**2, 0))
  means = jnp.max(jnp.abs(shift)) * jnp.max(jnp.abs(alpha.sum(0)))
  hidden = 4 * eps * (jnp.sqrt(sizes) + means)
  factors = 1 + hidden * jnp.array(_FACTORS, alpha.dtype)
  outputs = slope + onehot - hidden * onehot
  gaps = _gaps(factors, alpha, outputs, onehot, C)
  allowed = factors * jnp.max(alpha) <= C
  gaps = jnp.where(allowed | (factors == 1), gaps, jnp.inf)
  best = jnp.argmin(gaps)
  return factors[best], gaps[best]


def _gaps(factors, alpha, outputs, onehot, C):
  """Returns the relative gap at each multiple of alpha; K~ alpha = outputs."""
  over = outputs - jnp.sum(outputs * onehot, -1, keepdims=True)
  losses = 1 - onehot + factors[:, None, None] * over
  half = factors**2 * jnp.sum(alpha * outputs) / 2
  primal = half + C * jnp.sum(losses.max(-1), -1)
  return (primal + half - factors * jnp.sum(alpha * onehot)) / primal


def _search(matrix, bound, alpha, slope, direction):
  """Returns the best of some projected points along a direction."""
  moves = direction > 0
  room = jnp.where(moves, bound - alpha, jnp.inf)
  room = jnp.min(room / jnp.where(moves, direction, 1))
  lengths = [0.5**k for k in range(_LENGTHS)]
  lengths = jnp.stack([*jnp.array(lengths, alpha.dtype), jnp.minimum(room, 1)])
  points = project(alpha + lengths[:, None, None] * direction, bound)
  steps = points - alpha
  # Rows of steps sum to zero but for rounding; what an example's classes
  # share in their slopes would outweigh the change.
  slope = slope - _free_mean(slope, alpha < bound)
  products = _times(matrix, steps)
  change = jnp.sum(steps * (slope + products / 2), (1, 2))
  # Where the whole direction fits, its end is best, whatever rounding says.
  best = jnp.where(room >= 1, 0, jnp.argmin(change))
  return jnp.where((change[best] < 0) | (room >= 1), points[best], alpha)


def _in_face(x, free):
  """Projects on the directions of a face: free entries with row sums 0."""
  return jnp.where(free, x - _free_mean(x, free), 0)


def _free_mean(x, free):
  """Returns the mean of each row's free entries, [S, 1]."""
  count = jnp.maximum(jnp.sum(free, -1, keepdims=True), 1)
  return jnp.sum(jnp.where(free, x, 0), -1, keepdims=True) / count


def _solve(matrix, free, right, tolerance, max_steps):
  """Solves K~ x = right in a face, by conjugate gradients.

  Where there is no curvature left (a singular matrix), it goes far along the
  flat direction and ends.
  """
  eps = jnp.finfo(right.dtype).eps
  floor = jnp.sum(right**2) * (2 * eps) ** 2  # rounding of what is projected

  def step(s):
    x, residual, direction, old, steps = s
    product = _in_face(_times(matrix, direction), free)
    curvature = jnp.sum(direction * product)
    least = eps * jnp.sum(direction**2)
    flat = curvature <= least
    length = old / jnp.maximum(curvature, least)
    x = x + length * direction
    residual = residual - length * product
    new = jnp.where(flat, 0, jnp.sum(residual**2))
    return x, residual, residual + new / old * direction, new, steps + 1

  right = _in_face(right, free)
  square = jnp.sum(right**2)
  enough = jnp.maximum(tolerance**2 * square, floor)
  unfinished = lambda s: (s[3] > enough) & (s[4] < max_steps)
  start = (jnp.zeros_like(right), right, right, square, 0)
  return jax.lax.while_loop(unfinished, step, start)[0]


def _fit_forward(gram, onehot, C, ridge, tolerance, max_rounds):
  alpha = fit(gram, onehot, C, ridge, tolerance, max_rounds)
  return alpha, (alpha, gram, onehot, C, ridge)


def _fit_backward(tolerance, max_rounds, saved, cotangent):
  """Pulls back through the linear system of the optimal face."""
  del tolerance, max_rounds
  alpha, gram, onehot, C, ridge = saved
  matrix, scale = _scaled(gram, ridge)
  # Rounding may leave a bounded entry a little below its bound. So alpha and
  # slope together decide which entries are free: where a step along the slope
  # ends.
  bound = C * scale * onehot
  slope = _times(matrix, scale * alpha) - onehot
  free = project(scale * alpha - slope / _reach(matrix), bound) < bound
  eps = jnp.finfo(alpha.dtype).eps
  moved = _solve(matrix, free, cotangent / scale, 10 * eps, 300)
  by_matrix = -moved @ alpha.T
  by_matrix = (by_matrix + by_matrix.T) / 2
  # With C, bounded entries move and take their example's free ones along.
  along = jnp.where(free, 0, onehot)
  count = jnp.maximum(jnp.sum(free, -1, keepdims=True), 1)
  along = along - jnp.where(free, jnp.sum(along, -1, keepdims=True) / count, 0)
  by_c = jnp.sum(along * (cotangent - scale * _times(matrix, moved)))
  return (
    (by_matrix, 2 * by_matrix.sum(-1)),
    jnp.zeros_like(onehot),
    jnp.asarray(by_c, jnp.result_type(C)),
    jnp.asarray(jnp.trace(by_matrix), jnp.result_type(ridge)),
  )


fit.defvjp(_fit_forward, _fit_backward)
