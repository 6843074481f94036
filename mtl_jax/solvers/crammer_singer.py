"""The dual of the multi-class support vector machine of Crammer and Singer.

Minimise over alpha [S, N], for a Gram matrix K [S, S], labels Y [S, N] one-hot
and K~ = K + ridge I,

  q(alpha) = 1/2 sum_m alpha_m^T K~ alpha_m - sum_i alpha_{i y_i}
  subject to  alpha <= C Y  and  sum_m alpha_im = 0 for every example i.

C Y - alpha is non-negative and sums to C over the classes: every example has a
simplex of its own, and Euclidean projection on it is exact and cheap. C may
differ from example to example.

Mean. There is no intercept, so a mean mu that all features share is part of
the problem; but it costs the digits in which they differ. Hence K comes in
parts, K_ij = k_ij + u_i + u_j, with k near the Gram matrix of the centred
features (`parts`); K x is k x + u (1^T x) + 1 (u^T x).

Three stages. No one of them is enough on the raw features of a network, whose
norm of 10 to 100 makes K~ a thousand times larger than its ridge:

  1. Operator splitting (`_split`) comes near to the optimum, from anywhere.
     Gradient projection alone needs 20 to 80 rounds to find its face, the set
     of entries at their bound.
  2. Rounds (`_round`) of gradient projection and conjugate gradients find the
     face and its optimum (More & Toraldo, SIAM J. Optim. 1, 1991).
  3. The optimum is rounded to the numbers of the caller (`_rounded`).

Digits. Where C is far above all alpha (features of large norm: no example is
on the wrong side), margins that rounding left at 1 - 1e-7 cost C S 1e-7, more
than 1e-5 of the whole. So k has two floats, a point is a base and a small
change of it, and the slope g = K~ alpha - Y at the base is a product to twice
the digits (`two_floats`). Everything else is plain: conjugate gradients and
searches move the change alone.

Gap. For any weights w, P(w) = 1/2 |w|^2 + C sum_i max_m (1 - Y_im + w_m x_i -
w_{y_i} x_i) is at least -q(alpha), with x_i extended by sqrt(ridge) e_i. At
w = alpha^T x, P + q is the sum over all entries of (C Y - alpha)_im times
(max_n g_in - g_im), which are not negative: nothing cancels.

Gradient. In the optimal face the optimum solves a linear system; a change of
K~ moves it by -H^-1 dK~ alpha with H the system's matrix. The pull-back is one
more run of conjugate gradients. (Where an entry is at its bound with a
multiplier of 0, two one-sided derivatives exist; this is one of them.)
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.solvers import positive, two_floats

_SPLITS = 20  # steps of splitting with one penalty
_MAX_SPLITS = 20  # penalties
_NEAR = 1e-4  # gap that ends the splitting
_RELAX = 1.6  # of splitting
_LENGTHS = 8  # 1, 1/2, 1/4, ...
_FACE_STEPS = 60  # of conjugate gradients in a round
_FACTORS = (0, 0.5, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32)  # of rounding, beyond 1
_PATIENCE = 10  # rounds without a smaller gap


class _Problem(NamedTuple):
  """K~ / s in parts, with s a power of two, so that alpha s is of order one."""

  matrix: jax.Array  # [S, S], k + ridge I
  low: jax.Array  # [S, S], what rounding left out of it
  shift: jax.Array  # [S], u
  onehot: jax.Array  # [S, N]
  bound: jax.Array  # [S, N], C s Y


class _Point(NamedTuple):
  """alpha = base + change, feasible; its slope and its relative gap."""

  base: jax.Array
  change: jax.Array
  slope: jax.Array  # less the largest of each row
  largest: jax.Array
  gap: jax.Array


class _State(NamedTuple):
  point: _Point
  best: _Point
  since: jax.Array  # rounds since the best one
  rounds: jax.Array


def parts(features):
  """Returns the parts of the Gram matrix of features [S, D].

  Returns:
    k [S, S] as two floats, and u [S].
  """
  high, low = two_floats.gram(features)
  # As products of matrices, which compilers compute once; see `two_floats`.
  weights = jnp.full((len(high), 1), 1 / len(high), high.dtype)
  means = high @ weights
  shift = (means - weights.T @ means / 2)[:, 0]
  for part in (shift[:, None], shift):
    high, rest = two_floats.add(high, -part)
    low = low + rest
  return *two_floats.add(high, low), shift


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
@jax.default_matmul_precision('highest')
def fit(gram, onehot, C, ridge, tolerance=None, max_rounds=100):
  """Minimises q and returns alpha [S, N] as two floats.

  The first float is good by itself where C or the norms are moderate: its
  `gap` is the least one of some roundings. The second, of 1e-7 of its size,
  has no derivative.

  Reverse-differentiable in gram, C and ridge, through the optimality
  conditions.

  Args:
    gram: `parts` of the examples.
    onehot: [S, N] labels.
    C: bound of alpha, positive; a number, or [S].
    ridge: non-negative; at zero with a singular gram, alpha is one of many.
    tolerance: of `gap`; None: 1e-6 in float32, 1e-10 in float64.
    max_rounds: bound of the rounds, 1 to 3 are usual, and of the penalties
      of the splitting. Rounds end early when ten of them in a row do not lower
      the gap.
  """
  if tolerance is None:
    tolerance = 1e-10 if onehot.dtype == jnp.float64 else 1e-6
  problem, scale = _scaled(gram, onehot, C, ridge)
  reach = _reach(problem)

  def unfinished(s):
    left = (s.since < _PATIENCE) & (s.rounds < max_rounds)
    return left & (s.best.gap > tolerance)

  def one_round(s):
    point = _round(problem, reach, s.point)
    better = point.gap < s.best.gap
    best = jax.tree.map(
      lambda new, old: jnp.where(better, new, old), point, s.best)
    return _State(point, best, jnp.where(better, 0, s.since + 1), s.rounds + 1)

  start = _split(problem, min(max_rounds, _MAX_SPLITS))
  start = _State(start, start, 0, 0)
  best = jax.lax.while_loop(unfinished, one_round, start).best
  first, second = _rounded(problem, best)
  return first / scale, second / scale


def gap(alpha, gram, onehot, C, ridge):
  """Returns the relative duality gap (P + q) / P of alpha; see the module.

  Args:
    alpha: two floats, as `fit` returns them.
  """
  problem, scale = _scaled(gram, onehot, C, ridge)
  base, change = (scale * part for part in alpha)
  ones = jnp.ones((base.shape[1], 1), base.dtype)
  sums = sum(two_floats.dot(base, ones))[:, 0] + change.sum(-1)
  return _gap(problem, base, change, sums, *_slope(problem, base, change))


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


def _scaled(gram, onehot, C, ridge):
  """Returns the scaled problem, and its scale."""
  high, low, shift = gram
  identity = jnp.eye(len(shift), dtype=shift.dtype)
  high, rest = two_floats.add(high, ridge * identity)
  scale = two_floats.power_of_two(jnp.mean(jnp.diag(high)))
  bound = jnp.reshape(C, (-1, 1)) * scale * onehot
  parts = (part / scale for part in (high, low + rest, shift))
  return _Problem(*parts, onehot, bound), scale


def _times(problem, x):
  """Returns K~ x of x [.., S, N]."""
  first = jnp.einsum('ij,...jm->...im', problem.matrix, x)
  second = problem.shift[:, None] * jnp.sum(x, -2, keepdims=True)
  third = jnp.einsum('j,...jm->...m', problem.shift, x)[..., None, :]
  return first + second + third


def _reach(problem):
  """Returns an upper bound of the largest eigenvalue: the largest row sum.

  It is larger where alpha is far below a slope (a tiny C or tiny features): a
  step of 1 / reach must not drown the digits of alpha.
  """
  shift = problem.shift
  whole = jnp.abs(problem.matrix + shift + shift[:, None])
  return jnp.maximum(jnp.max(whole.sum(-1)), 0.1 / jnp.max(problem.bound))


def _exactly(problem, x):
  """Returns K~ x of x [S, N] as two floats."""
  matrix, low, shift, *_ = problem
  high, rest = two_floats.dot(matrix, x)
  both = jnp.stack([jnp.ones_like(shift), shift])
  (sums, means), (sums_rest, means_rest) = two_floats.dot(both, x)
  second, second_rest = two_floats.dot(shift[:, None], sums[None])
  rest = rest + low @ x + second_rest + shift[:, None] * sums_rest + means_rest
  for part in (second, means[None]):
    high, rounding = two_floats.add(high, part)
    rest = rest + rounding
  return high, rest


def _slope(problem, base, change):
  """Returns K~ (base + change) - Y, less its rows' largest, which it returns.

  Entries below their bound have the largest slope of their row, at the
  optimum: there the difference has all its digits.
  """
  high, rest = _exactly(problem, base)
  high, rounding = two_floats.add(high, -problem.onehot)
  largest = jnp.max(high, -1, keepdims=True)
  rest = rest + rounding + _times(problem, change)
  return (high - largest) + rest, largest[:, 0]


def _gap(problem, base, change, sums, slope, largest):
  """Returns the relative gap of base + change; see the module.

  Args:
    sums: of rows of base + change, [S]: zero but for rounding, but slopes may
      be large.
    slope, largest: of `_slope`.
  """
  left = jnp.maximum(problem.bound - base - change, 0)
  most = slope.max(-1)
  gap = jnp.sum(left * (most[:, None] - slope)) + sums @ (most + largest)
  outputs = slope + largest[:, None] + problem.onehot
  dual = jnp.sum((base + change) * (problem.onehot - outputs / 2))
  return gap / (dual + gap)


def _point(problem, base, change):
  """Returns the point base + change, with a new base and its slope.

  Entries of the base are multiples of a power of two with a few bits less than
  their type, so that they sum to zero without rounding.
  """
  whole = base + change
  bits = jnp.finfo(whole.dtype).nmant - 3
  unit = two_floats.power_of_two(jnp.max(jnp.abs(whole))) * 0.5**bits
  new = jnp.round(whole / unit) * unit
  new = new - problem.onehot * new.sum(-1, keepdims=True)
  change = (base - new) + change
  slope, largest = _slope(problem, new, change)
  gap = _gap(problem, new, change, change.sum(-1), slope, largest)
  return _Point(new, change, slope, largest, gap)


def _round(problem, reach, point):
  """Returns the point after a round.

  A round is

    1. a step along the slope, of length 1 / `reach`, projected: entries at
       their bound leave it if that descends;
    2. conjugate gradients in the face, the entries below their bound with
       examples' sums kept: a linear system, so few products with K~;
    3. the best of some lengths along that direction, each projected: entries
       reach their bound, many at once. The length at which the first one does
       so is among them, so every round descends.
  """
  room = problem.bound - point.base
  change = project(point.change - point.slope / reach, room)
  slope = point.slope + _times(problem, change - point.change)
  direction = _solve(problem, change < room, -slope, 1e-3, _FACE_STEPS)
  change = _search(problem, room, change, slope, direction)
  return _point(problem, point.base, change)


def _rounded(problem, point):
  """Returns a point as two floats, of which the first has the least gap.

  Every entry hands its rounding on to the next smaller one of its class, so
  that their sum is a rounding of the smallest: where features share a mean, K
  has its largest eigenvalue for sums. And a factor a few roundings above 1
  lifts the margins that rounding lowered.
  """
  base, change, *_ = point
  free = change < problem.bound - base
  eps = jnp.finfo(base.dtype).eps
  order = jnp.argsort(-jnp.abs(base), 0)
  sort = lambda x: jnp.take_along_axis(x, order, 0)
  unsort = lambda x: jnp.take_along_axis(x, jnp.argsort(order, 0), 0)

  def hand_on(carry, row):
    base, change, bound, free = row
    change = change + carry
    first = jnp.minimum(base + change, bound)
    return jnp.where(free, (base - first) + change, carry), first

  def one(factor):
    rows = base, change + factor * eps * base, problem.bound, free
    start = jnp.zeros_like(base[0])
    first = unsort(jax.lax.scan(hand_on, start, tuple(map(sort, rows)))[1])
    first = jnp.where(free, first, problem.bound)
    second = (base - first) + change
    slope = point.slope - _times(problem, second)
    sums = (change - second).sum(-1)  # of the base they are zero
    gap = _gap(
      problem, first, jnp.zeros_like(first), sums, slope, point.largest)
    return first, second, gap

  firsts, seconds, gaps = jax.vmap(one)(jnp.array(_FACTORS, base.dtype))
  best = jnp.argmin(gaps)
  return firsts[best], seconds[best]


def _split(problem, most):
  """Returns a point near the optimum, by operator splitting.

  ADMM with one copy of alpha for the linear system and one for the simplices
  (Boyd et al., Foundations and Trends in Machine Learning 3, 2011), relaxed.
  The penalty follows the ratio of both residuals (section 3.4.1). With each
  penalty the steps start anew from the exact slope, so that they gain digits.
  """
  def unfinished(s):
    return (s[3] < most) & (s[0].gap > _NEAR)

  def splits(s):
    point, dual, penalty, count = s
    inverse = _inverse(problem, penalty)
    start, room = point.change, problem.bound - point.base

    def one(_, s):
      near, dual, *_ = s
      right = penalty * (near - start - dual) - point.slope
      right = right - right.mean(-1, keepdims=True)
      alpha = start + inverse @ right
      relaxed = _RELAX * alpha + (1 - _RELAX) * near + dual
      new = project(relaxed, room)
      return new, relaxed - new, alpha, near

    near, dual, alpha, before = jax.lax.fori_loop(
      0, _SPLITS, one, (start, dual, start, start))
    norm = lambda x: jnp.sqrt(jnp.sum(x**2)) + jnp.finfo(x.dtype).tiny
    first = norm(alpha - near) / norm(point.base + near)
    second = norm(near - before) / norm(dual)
    ratio = jnp.clip(jnp.sqrt(first / second), 0.1, 10)
    ratio = jnp.where((ratio > 2) | (ratio < 0.5), ratio, 1)
    point = _point(problem, point.base, near)
    return point, dual / ratio, penalty * ratio, count + 1

  zero = jnp.zeros_like(problem.onehot)
  start = _Point(zero, zero, -problem.onehot, zero[:, 0], jnp.max(zero) + 1)
  penalty = jnp.maximum(0.3, 0.01 / jnp.max(problem.bound))  # see `_reach`
  start = start, zero, penalty.astype(zero.dtype), 0
  return jax.lax.while_loop(unfinished, splits, start)[0]


def _inverse(problem, penalty):
  """Returns (K~ + penalty I)^-1.

  k is inverted, and u 1^T + 1 u^T added as the change of rank two that it is:
  of 1 and v = u - c, for u itself may be nearly constant.
  """
  shift = problem.shift
  identity = jnp.eye(len(shift), dtype=shift.dtype)
  inverse = positive.inverse(problem.matrix + penalty * identity)
  c = jnp.mean(shift)
  both = jnp.stack([jnp.ones_like(shift), shift - c], 1)
  left = inverse @ both
  (a, b), (_, d) = both.T @ left
  b, d = b + 1, d - 2 * c
  middle = jnp.array([[d, -b], [-b, a]]) / (a * d - b * b)
  return inverse - left @ middle @ left.T


def _search(problem, room, change, slope, direction):
  """Returns the best of some projected points along a direction."""
  moves = direction > 0
  first = jnp.where(moves, room - change, jnp.inf)
  first = jnp.min(first / jnp.where(moves, direction, 1))
  lengths = jnp.array([0.5**k for k in range(_LENGTHS)], change.dtype)
  lengths = jnp.append(lengths, jnp.minimum(first, 1))
  points = project(change + lengths[:, None, None] * direction, room)
  steps = points - change
  # Rows of steps sum to zero but for rounding; what an example's classes
  # share in their slopes would outweigh the change.
  slope = slope - _free_mean(slope, change < room)
  gain = jnp.sum(steps * (slope + _times(problem, steps) / 2), (1, 2))
  # Where the whole direction fits, its end is best, whatever rounding says.
  best = jnp.where(first >= 1, 0, jnp.argmin(gain))
  return jnp.where((gain[best] < 0) | (first >= 1), points[best], change)


def _in_face(x, free):
  """Projects on the directions of a face: free entries with row sums 0."""
  return jnp.where(free, x - _free_mean(x, free), 0)


def _free_mean(x, free):
  """Returns the mean of each row's free entries, [S, 1]."""
  count = jnp.maximum(jnp.sum(free, -1, keepdims=True), 1)
  return jnp.sum(jnp.where(free, x, 0), -1, keepdims=True) / count


def _solve(problem, free, right, tolerance, max_steps):
  """Solves K~ x = right in a face, by conjugate gradients.

  Where there is no curvature left (a singular matrix), it goes far along the
  flat direction and ends.
  """
  eps = jnp.finfo(right.dtype).eps
  whole = jnp.sum(jnp.where(free, right, 0) ** 2)
  floor = whole * (2 * eps) ** 2  # rounding of what is projected

  def step(s):
    x, residual, direction, old, steps = s
    product = _in_face(_times(problem, direction), free)
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


@jax.default_matmul_precision('highest')
def _fit_forward(gram, onehot, C, ridge, tolerance, max_rounds):
  alpha = fit(gram, onehot, C, ridge, tolerance, max_rounds)
  return alpha, (alpha, gram, onehot, C, ridge)


@jax.default_matmul_precision('highest')
def _fit_backward(tolerance, max_rounds, saved, cotangent):
  """Pulls back through the linear system of the optimal face."""
  del tolerance, max_rounds
  alpha, gram, onehot, C, ridge = saved
  problem, scale = _scaled(gram, onehot, C, ridge)
  first, second = (scale * part for part in alpha)
  # Rounding may leave a bounded entry a little below its bound. So alpha and
  # slope together decide which entries are free: where a step along the slope
  # ends.
  slope, _ = _slope(problem, first, second)
  room = problem.bound - first
  free = project(second - slope / _reach(problem), room) < room
  alpha, cotangent = alpha[0], cotangent[0]
  eps = jnp.finfo(alpha.dtype).eps
  right = _in_face(cotangent / scale, free)
  moved = _solve(problem, free, right, 10 * eps, 300)
  # Once more for what rounding left: the system is a thousand times stiffer in
  # some directions than in others.
  high, low = _exactly(problem, moved)
  left = (right - _in_face(high, free)) - _in_face(low, free)
  moved = moved + _solve(problem, free, left, 1e-3, 300)
  by_matrix = -moved @ alpha.T
  by_matrix = (by_matrix + by_matrix.T) / 2
  # With C, bounded entries move and take their example's free ones along.
  along = jnp.where(free, 0, onehot)
  count = jnp.maximum(jnp.sum(free, -1, keepdims=True), 1)
  along = along - jnp.where(free, jnp.sum(along, -1, keepdims=True) / count, 0)
  by_c = along * (cotangent - scale * _times(problem, moved))
  by_c = by_c.sum(-1) if jnp.ndim(C) else by_c.sum()
  return (
    (by_matrix, jnp.zeros_like(by_matrix), 2 * by_matrix.sum(-1)),
    jnp.zeros_like(onehot),
    jnp.asarray(by_c, jnp.result_type(C)),
    jnp.asarray(jnp.trace(by_matrix), jnp.result_type(ridge)),
  )


fit.defvjp(_fit_forward, _fit_backward)
