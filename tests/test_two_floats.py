"""Products to twice the digits of float32, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.solvers import two_floats


def whole(floats):
  return sum(np.asarray(part, float) for part in floats)


def product(a, b):
  return whole(jax.jit(two_floats.dot)(a, b))


@pytest.mark.parametrize('terms', [3, 75, 1024, 1025, 16000])
@pytest.mark.parametrize('spread', [0, 3])
def test_products_have_twice_the_digits(terms, spread):
  """Fails if a slice is too wide, or a sum of slices rounds."""
  rng = np.random.default_rng(terms)
  sizes = 10.0 ** rng.uniform(-spread, spread, (2, terms))
  a = (rng.normal(size=(7, terms)) * sizes[0]).astype('f4')
  b = (rng.normal(size=(terms, 5)) * sizes[1][:, None]).astype('f4')
  want = a.astype(float) @ b.astype(float)
  limit = 2.0**-36 * np.abs(a).max() * np.abs(b).max() * np.sqrt(terms)
  np.testing.assert_allclose(product(a, b), want, rtol=0, atol=limit)


@pytest.mark.parametrize('terms', [64, 16000])
@pytest.mark.parametrize('rows', [5, 75])
def test_gram_matrices_have_twice_the_digits(rows, terms):
  x = np.random.default_rng(0).normal(size=(rows, terms)).astype('f4') + 3
  got = whole(jax.jit(two_floats.gram)(x))
  want = x.astype(float) @ x.astype(float).T
  limit = 2.0**-35 * want.max()
  np.testing.assert_allclose(got, want, rtol=0, atol=limit)


def test_the_largest_whole_numbers_do_not_round():
  """Fails if 1,024 products of the largest slices overflow 24 bits."""
  a, b = np.full((1, 1023), 127.0, 'f4'), np.full((1023, 1), -128.0, 'f4')
  assert product(a, b) == -1023 * 127 * 128


def test_two_floats_hold_a_sum_and_its_rounding():
  got = whole(jax.jit(two_floats.add)(jnp.float32(1e8), jnp.float32(1.25)))
  assert got == 1e8 + 1.25


def test_the_derivative_is_that_of_a_product():
  a, b = np.random.default_rng(0).normal(size=(2, 4, 4)).astype('f4')
  score = lambda dot: lambda a, b: jnp.sum(jnp.sin(dot(a, b)))
  got = jax.grad(score(lambda a, b: sum(two_floats.dot(a, b))), (0, 1))(a, b)
  want = jax.grad(score(jnp.matmul), (0, 1))(a, b)
  square = jax.grad(lambda x: jnp.sum(jnp.sin(sum(two_floats.gram(x)))))(a)
  again = jax.grad(lambda x: jnp.sum(jnp.sin(x @ x.T)))(a)
  for one, other in zip((*got, square), (*want, again), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('x, power', [(0, 1), (1, 2), (0.9, 1), (3, 4)])
def test_powers_of_two(x, power):
  assert two_floats.power_of_two(jnp.float32(x)) == power
