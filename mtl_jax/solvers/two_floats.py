"""Products of matrices to twice the digits of float32, on any device.

A number is the sum of two floats, of which the second is below a rounding of
the first. In float64 everything here is a plain product: its digits suffice.

Compilers compute a cheap expression again wherever it is used, and fuse a
product into a sum without rounding it between. So a number that is split here
must not be, up to a sum, a product that rounds (one by a power of two does
not): two places would have two numbers, and the rounding would be lost. The
outcome of a product of matrices is safe.

Slices. A matrix is cut into multiples of s and of s / 256 that are at most 128
of them each, and a rest: the first two hold 16 bits below the largest entry.
Products of slices are whole numbers below 2^14, of which float32 adds up 1,024
without rounding, in any order; units for bfloat16 or TF32 do so as well. Only
products with a rest round, and the rest is 2^-17 of the largest entry. (Ozaki,
Ogita, Oishi & Rump, Numerical Algorithms 59, 2012.)
"""

import jax
import jax.numpy as jnp

_TERMS = 1024  # 2^24 / 2^14


def add(a, b):
  """Returns a + b as two floats: the sum and its rounding."""
  total = a + b
  of_b = total - a
  return total, (a - (total - of_b)) + (b - of_b)


def power_of_two(x):
  """Returns the least power of two that is above x >= 0, 1 for 0."""
  kind = jnp.finfo(x.dtype)
  bits = jax.lax.bitcast_convert_type(x, f'int{kind.bits}')
  power = jax.lax.bitcast_convert_type(
    bits >> kind.nmant << kind.nmant, x.dtype)  # the mantissa is zero
  return jnp.where(x > 0, 2 * power, 1)


@jax.custom_jvp
def dot(a, b):
  """Returns a @ b of matrices [m, k] and [k, n] as two floats, [m, n] each.

  In float32 the error is about 2^-40 of k times the largest entries. The
  derivative is that of a plain product, in the first float.
  """
  if jnp.result_type(a, b) == jnp.float64:
    return _plain(a, b), jnp.zeros((len(a), b.shape[1]), jnp.float64)
  (a1, a2, rest_a), (b1, b2, rest_b) = _slices(a), _slices(b)
  crossed = jnp.concatenate([a1, a2], 1), jnp.concatenate([b2, b1])
  high, low = _whole(a1, b1)
  for factors in (crossed, (a2, b2)):
    more, rounding = _whole(*factors)
    high, rest = add(high, more)
    low = low + rounding + rest
  low = low + _plain(a, rest_b) + _plain(rest_a, b1 + b2)
  return add(high, low)


@dot.defjvp
def _dot_jvp(values, tangents):
  (a, b), (moved_a, moved_b) = values, tangents
  high, low = dot(a, b)
  moved = _plain(moved_a, b) + _plain(a, moved_b)
  return (high, low), (moved, jnp.zeros_like(low))


@jax.custom_jvp
def gram(x):
  """Returns `dot(x, x.T)` in two thirds of its time."""
  if x.dtype == jnp.float64:
    return _plain(x, x.T), jnp.zeros((len(x), len(x)), jnp.float64)
  first, second, rest = _slices(x)
  high, low = _whole(first, first.T)
  crossed, rounding = _whole(first, second.T)
  small = second + rest
  half = _plain(first, rest.T) + _plain(small / 2, small.T)
  for part in (crossed, crossed.T):
    high, left = add(high, part)
    low = low + left
  return add(high, low + (half + rounding) + (half + rounding).T)


@gram.defjvp
def _gram_jvp(values, tangents):
  high, low = gram(*values)
  moved = _plain(tangents[0], values[0].T)
  return (high, low), (moved + moved.T, jnp.zeros_like(low))


def _slices(x):
  """Returns two matrices of few bits and the rest, whose sum is x."""
  unit = power_of_two(jnp.max(jnp.abs(x))) / 128
  first = jnp.round(x / unit) * unit
  rest = x - first
  unit = unit / 256
  second = jnp.round(rest / unit) * unit
  return first, second, rest - second


def _whole(a, b):
  """Returns the product of slices as two floats, whatever its length."""
  pieces = -(-len(b) // _TERMS)
  if pieces == 1:
    return _plain(a, b), jnp.zeros((), a.dtype)
  missing = pieces * _TERMS - len(b)
  a = jnp.pad(a, ((0, 0), (0, missing))).reshape(len(a), pieces, _TERMS)
  b = jnp.pad(b, ((0, missing), (0, 0))).reshape(pieces, _TERMS, -1)

  def more(sums, piece):
    high, rest = add(sums[0], _plain(*piece))
    return (high, sums[1] + rest), None

  zero = jnp.zeros((len(a), b.shape[2]), a.dtype)
  return jax.lax.scan(more, (zero, zero), (a.swapaxes(0, 1), b))[0]


def _plain(a, b):
  return jnp.matmul(a, b, precision='highest')
