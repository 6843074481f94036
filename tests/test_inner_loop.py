"""The inner loop and conjugate gradients, against closed forms and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from head_tasks import products

from mtl_jax.algorithms import imaml
from mtl_jax.solvers import conjugate_gradients, inner_loop


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def quadratic(size=6):
  """Returns (A positive definite, b) as arrays."""
  rng = np.random.default_rng(0)
  root = rng.normal(size=(size, size))
  return jnp.asarray(root @ root.T / size + np.eye(size)), jnp.asarray(
      rng.normal(size=size))


def end_of(start, **options):
  A, b = quadratic()
  loss = lambda x, i: (0.5 * x @ A @ x - b @ x, i)
  return inner_loop.descend(loss, start, inner_loop.rate(0.1), **options)


@pytest.mark.parametrize('unroll', [True, False])
@pytest.mark.parametrize('remat', [True, False])
def test_descent_on_a_quadratic_is_a_matrix_power(unroll, remat):
  """Fails if the steps or their derivative are wrong.

  x_t - x* is (I - r (A + l2 I))^t (x_0 - x*).
  """
  A, b = quadratic()
  start, l2, steps = jnp.arange(6.), 0.4, 5
  end, numbers = end_of(start, steps=steps, l2=l2, unroll=unroll, remat=remat)
  system = A + l2 * jnp.eye(6)
  optimum = jnp.linalg.solve(system, b + l2 * start)
  power = np.linalg.matrix_power(np.eye(6) - 0.1 * np.asarray(system), steps)
  np.testing.assert_allclose(end - optimum, power @ (start - optimum),
                             rtol=1e-10)
  np.testing.assert_array_equal(numbers, range(steps))
  jacobian = jax.jacrev(lambda s: end_of(
      s, steps=steps, l2=l2, unroll=unroll, remat=remat)[0])(start)
  by_optimum = l2 * np.linalg.inv(system)
  np.testing.assert_allclose(
      jacobian, power @ (np.eye(6) - by_optimum) + by_optimum, rtol=1e-9)


def test_first_order_derives_as_if_the_gradients_were_constants():
  start = jnp.arange(6.)
  jacobian = jax.jacrev(lambda s: end_of(s, steps=3, first_order=True)[0])(
      start)
  np.testing.assert_allclose(jacobian, np.eye(6), atol=1e-12)


@pytest.mark.parametrize('unroll', [True, False])
def test_no_step_leaves_the_start(unroll):
  end, _ = end_of(jnp.arange(6.), steps=0, unroll=unroll)
  np.testing.assert_array_equal(end, jnp.arange(6.))


def test_kinds_of_rates():
  grads = {'a': jnp.array([1., 2.]), 'b': jnp.array(3.)}
  update = lambda value, count=1: _updates(value, grads, count)
  assert update(0.5)['b'] == -1.5
  assert update(jnp.array(0.5))['b'] == -1.5
  own = {'a': jnp.array([0.1, 0.2]), 'b': jnp.array(1.)}
  np.testing.assert_allclose(update(own)['a'], [-0.1, -0.4])
  np.testing.assert_allclose(update(jnp.array([0.5, 0.25]), 2)['b'], -0.75)


def _updates(value, grads, count):
  transform = inner_loop.rate(value)
  state = transform.init(grads)
  for _ in range(count):
    updates, state = transform.update(grads, state, grads)
  return updates


def test_any_optimizer_starts_anew():
  """Fails if moments of another task change Adam's first step."""
  A, b = quadratic()
  loss = lambda x, _: (1e3 * (0.5 * x @ A @ x - b @ x), None)
  end, _ = inner_loop.descend(loss, jnp.zeros(6), optax.adam(1e-2, b1=0.),
                              steps=1)
  np.testing.assert_allclose(np.abs(end), 1e-2, rtol=1e-6)


@pytest.mark.parametrize('unroll', [True, False])
def test_conjugate_gradients_solve(unroll):
  A, b = quadratic()
  solution = jax.jit(lambda b: conjugate_gradients.solve(
      lambda v: A @ v, b, steps=12, tolerance=1e-20, unroll=unroll))(b)
  np.testing.assert_allclose(solution.x, np.linalg.solve(A, b), rtol=1e-8)
  assert solution.residual < 1e-9 and not solution.negative
  assert solution.steps <= 7  # six distinct eigenvalues, and rounding


def test_the_residual_is_that_of_the_returned_point():
  A, b = quadratic()
  solution = conjugate_gradients.solve(lambda v: A @ v, b, steps=2)
  np.testing.assert_allclose(
      solution.residual,
      np.linalg.norm(b - A @ solution.x) / np.linalg.norm(b), rtol=1e-8)


def test_negative_curvature_ends_with_what_the_positive_ones_gave():
  A = jnp.diag(jnp.array([4., 2., -1.]))
  b = jnp.array([1., 1., 0.2])
  solution = conjugate_gradients.solve(lambda v: A @ v, b, steps=10)
  assert solution.negative and 0 < solution.steps < 3
  assert b @ solution.x > 0  # still a direction of ascent of b


def test_without_positive_curvature_the_answer_is_the_first_order_one():
  b = jnp.array([1., 1., 0.2])
  only = conjugate_gradients.solve(lambda v: -v, b, steps=10)
  assert only.negative
  np.testing.assert_array_equal(only.x, b)


@pytest.mark.parametrize('unroll', [True, False])
def test_without_a_step_the_answer_is_the_first_order_one(unroll):
  """Fails if no steps give the solution zero, a gradient without a word."""
  A, _ = quadratic()
  b = jnp.arange(1., 7.)
  none = conjugate_gradients.solve(lambda v: A @ v, b, steps=0, unroll=unroll)
  np.testing.assert_array_equal(none.x, b)
  assert not none.negative and none.steps == 0 and none.residual == 1


def test_zero_has_the_solution_zero():
  A, _ = quadratic()
  solution = conjugate_gradients.solve(lambda v: A @ v, jnp.zeros(6), steps=4)
  assert not solution.negative
  assert not np.any(solution.x) and solution.residual == 0


@pytest.mark.parametrize('function', [
    lambda b: conjugate_gradients.solve(
        lambda v: 2 * v, b, steps=2, unroll=False),
    lambda b: imaml._solve(lambda w: jnp.sum(w**4), b, b, identity=1.,
                           curvature=1., steps=2, unroll=True)])
def test_products_of_vectors_have_the_highest_precision(function):
  """Fails if units with short products make the lengths of steps wrong."""
  found = list(products(jax.make_jaxpr(function)(jnp.ones(5)).jaxpr))
  assert len(found) > 2
  assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
