"""One layer of an infinitely wide network, as a map of kernels.

A pair of points (x, z) is described by the variances q_x = K(x, x) and q_z,
and by the versine of the angle between them,

  near = 1 - K(x, z) / sqrt(q_x q_z),     far = 2 - near,

not by K(x, z): where K is close to sqrt(q_x q_z) the arc cosine loses half
the digits, while `near` is exactly 0 where points coincide and stays 0 (`far`
is 0 where they are opposite). The square root of the versine is, up to a
factor, the chord between the two directions.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.chebyshev import Chebyshev, cheb2poly

_DEGREE = {'float32': 11, 'float64': 23}  # of the series in versine
_LAYERS_AT_ONCE = 4  # unrolled into one pass over memory


class Pair(NamedTuple):
  """Kernels of a tile of pairs; everything broadcasts to one shape."""

  q_x: jax.Array
  q_z: jax.Array
  near: jax.Array
  far: jax.Array
  ntk: jax.Array

  @property
  def nngp(self):
    """K(x, z)."""
    # Of the two forms, take the one that does not cancel.
    cosine = jnp.where(self.near < self.far, 1 - self.near, self.far - 1)
    return jnp.sqrt(self.q_x * self.q_z) * cosine


def propagate(pair, depth, activation, weight_variance, bias_variance, shifts):
  """Takes a Pair of inputs through `depth` layers of affine and activation.

  `shifts` has one function per weight of the filter: (array, points) -> what
  that weight sees of the array. `points` names the points that the array runs
  over, 'x', 'z' or 'xz'. A dense layer has the identity alone.
  """
  pair = pair._replace(ntk=pair.nngp)

  def layer(_, pair):
    pair = _affine(pair, weight_variance, bias_variance, shifts)
    after, derivative = ACTIVATIONS[activation][0](pair)
    return after._replace(ntk=after.nngp + derivative * pair.ntk)

  at_once = _LAYERS_AT_ONCE if len(shifts) == 1 else 1
  return jax.lax.fori_loop(0, depth, layer, pair, unroll=at_once)


def _affine(pair, weight_variance, bias_variance, shifts):
  """Returns the Pair of sum_s sqrt(w / |shifts|) W_s shift_s(x) + sqrt(b) B.

  With a_s = sqrt(w q_x(shift_s) / k_x), the share of a shift in the length of
  x after the layer, b_s likewise for z, and the bias as one more shift,
    1 - sum a_s b_s (1 - near_s) = sum (a_s - b_s)^2 / 2 + sum a_s b_s near_s
  since sum a_s^2 = sum b_s^2 = 1: nothing cancels.
  """
  w = weight_variance / len(shifts)
  k_x = sum(w * shift(pair.q_x, 'x') for shift in shifts) + bias_variance
  k_z = sum(w * shift(pair.q_z, 'z') for shift in shifts) + bias_variance
  ntk = sum(w * shift(pair.ntk, 'xz') for shift in shifts) + bias_variance
  if len(shifts) == 1 and bias_variance == 0:
    return Pair(k_x, k_z, pair.near, pair.far, ntk)
  near = 0
  for shift in shifts:
    a = jnp.sqrt(_ratio(w * shift(pair.q_x, 'x'), k_x))
    b = jnp.sqrt(_ratio(w * shift(pair.q_z, 'z'), k_z))
    near += (a - b) ** 2 / 2 + a * b * shift(pair.near, 'xz')
  if bias_variance > 0:
    a = jnp.sqrt(bias_variance / k_x)
    b = jnp.sqrt(bias_variance / k_z)
    near += (a - b) ** 2 / 2
  return Pair(k_x, k_z, near, 2 - near, ntk)


def _relu(pair):
  """Returns the Pair after max(., 0), and E[step(u) step(v)].

  With phi the angle and v its versine, the arc-cosine kernels of Cho and Saul
  (NeurIPS 2009) are
    kappa0 = (pi - phi) / pi
    1 - kappa1 = ((phi - sin phi) + (pi - phi) v) / pi.
  Up to a right angle phi = sqrt(v) P(v) and phi - sin phi = v^(3/2) R(v) with
  smooth P and R; beyond it, pi - phi in place of phi.
  """
  p, r = (functools.partial(_horner, c) for c in _series(pair.near.dtype))
  v = jnp.minimum(pair.near, pair.far)
  root = jnp.sqrt(v)
  phi = root * p(v)
  rest = root * r(v)
  acute = pair.near <= pair.far
  near = v / np.pi * jnp.where(acute, rest + np.pi - phi, phi - rest)
  near = jnp.where(acute, near, 1 - near)
  derivative = jnp.where(acute, np.pi - phi, phi) / (2 * np.pi)
  return Pair(pair.q_x / 2, pair.q_z / 2, near, 2 - near, None), derivative


@functools.cache
def _series(dtype):
  """Returns the coefficients of P and R in 2 v - 1, for 0 <= v <= 1."""
  def p(v):
    v = np.maximum(v, 1e-300)
    return 2 * np.arcsin(np.sqrt(v / 2)) / np.sqrt(v)

  def r(v):
    # phi - sin phi = sum_k>0 (-1)^(k+1) phi^(2k+1) / (2k+1)!
    phi = np.sqrt(v) * p(v)
    term, total = phi ** 3 / 6, 0.
    for k in range(2, 20):
      total, term = total + term, -term * phi ** 2 / (2 * k * (2 * k + 1))
    return total / np.maximum(v, 1e-300) ** 1.5

  degree = _DEGREE[np.dtype(dtype).name]
  series = (Chebyshev.interpolate(f, degree, domain=[0, 1]) for f in (p, r))
  return tuple(tuple(cheb2poly(each.coef)) for each in series)


def _horner(coefficients, v):
  t = 2 * v - 1
  total = jnp.full_like(t, coefficients[-1])
  for c in coefficients[-2::-1]:
    total = total * t + c
  return total


def _erf(pair):
  """Returns the Pair after erf, and E[erf'(u) erf'(v)].

  Williams, "Computing with infinite networks" (NeurIPS 1996).
  """
  k, k_x, k_z = pair.nngp, pair.q_x, pair.q_z
  both = (1 + 2 * k_x) * (1 + 2 * k_z)
  kernel = 2 / np.pi * jnp.arcsin(2 * k / jnp.sqrt(both))
  q_x = 2 / np.pi * jnp.arcsin(2 * k_x / (1 + 2 * k_x))
  q_z = 2 / np.pi * jnp.arcsin(2 * k_z / (1 + 2 * k_z))
  near = jnp.maximum(1 - _ratio(kernel, jnp.sqrt(q_x * q_z)), 0)
  # (1 + 2 k_x)(1 + 2 k_z) - 4 k^2
  determinant = (1 + 2 * k_x + 2 * k_z
                 + 4 * k_x * k_z * pair.near * pair.far)
  derivative = 4 / np.pi / jnp.sqrt(determinant)
  return Pair(q_x, q_z, near, 2 - near, None), derivative


def _ratio(a, b):
  """Returns a / b, and 0 where b is 0, as for a point without length."""
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


# name -> (layer, default weight variance). 2 keeps K(x, x) of relu.
ACTIVATIONS = {'relu': (_relu, 2.), 'erf': (_erf, 1.)}
