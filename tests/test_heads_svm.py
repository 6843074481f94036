"""The support vector machine: optimum, gap in float32, gradient, honesty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_tasks import diagnose, draw_task, fit
from scipy.optimize import minimize
from sklearn.svm import LinearSVC

from mtl_jax.errors import UserError
from mtl_jax.heads import svm
from mtl_jax.solvers import crammer_singer


def reference(x, y, ways, C, ridge):
  """The dual by a generic float64 solver, which knows no structure."""
  x = x.astype(float)
  gram, onehot = x @ x.T + ridge * np.eye(len(x)), np.eye(ways)[y]
  scale = np.mean(np.diag(gram))  # SLSQP's steps want variables of order one
  gram /= scale

  def objective(alpha):
    alpha = alpha.reshape(onehot.shape)
    product = gram @ alpha
    value = np.sum(alpha * (product / 2 - onehot))
    return value, (product - onehot).ravel()

  rows = np.kron(np.eye(len(x)), np.ones(ways))
  alpha = minimize(
    objective, np.zeros(onehot.size), jac=True, method='SLSQP',
    bounds=[(None, C * scale * upper) for upper in onehot.ravel()],
    constraints={
      'type': 'eq', 'fun': lambda alpha: rows @ alpha, 'jac': lambda _: rows},
    options={'ftol': 1e-15, 'maxiter': 500},
  ).x
  return alpha.reshape(onehot.shape) / scale


def gap64(dual, x, y, C, ridge):
  """(primal - dual) / primal in numpy's float64, from the definitions."""
  dual, x = dual.astype(float), x.astype(float)
  outputs = x @ (x.T @ dual) + ridge * dual
  square = np.sum(dual * outputs)
  own = outputs[np.arange(len(y)), y]
  margins = 1 - np.eye(dual.shape[1])[y] + outputs - own[:, None]
  primal = square / 2 + C * margins.max(1).sum()
  lower = dual[np.arange(len(y)), y].sum() - square / 2
  return (primal - lower) / primal


def raw_task(ways, shots, dim, norm, mean, seed):
  """A task as networks make it: `norm` of it, `mean` of that shared by all."""
  x, y, _ = draw_task(ways, shots, dim=dim, seed=seed)
  shared = np.abs(np.random.default_rng(seed).normal(size=dim))
  x = (1 - mean) * x + mean * shared / np.linalg.norm(shared)
  return (norm * x / np.linalg.norm(x, axis=-1, keepdims=True)).astype('f4'), y


RAW = [  # features, norm, shared mean, C
  (640, 1.0, 0.0, 0.1), (16000, 100.0, 0.0, 0.1), (64, 15.0, 0.3, 0.1),
  (64, 100.0, 0.3, 10.0), (64, 1.0, 0.3, 10.0), (64, 100.0, 0.3, 0.01),
  (640, 15.0, 0.9, 0.1), (640, 100.0, 0.9, 10.0), (1600, 7.0, 0.5, 0.01),
  (16000, 70.0, 0.9, 1.0),
]


@pytest.mark.parametrize('ways, shots', [(5, 1), (5, 15), (20, 5)])
def test_duality_gap_in_float32(ways, shots):
  """Fails if the solver stops far from the optimum on raw features.

  Judged in float64. Where features are long and C is far above the dual, one
  float32 of a dual is no optimum, whatever the solver: both floats are.
  """
  tasks = [raw_task(ways, shots, *case[:3], ways + shots) for case in RAW]
  y = tasks[0][1]
  onehot = np.eye(ways, dtype='f4')[y]
  grams = [jax.jit(crammer_singer.parts)(x) for x, _ in tasks]
  grams = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grams)
  Cs = np.array([case[3] for case in RAW], 'f4')

  def both(gram, C):
    dual = crammer_singer.fit(gram, onehot, C, 1.0)
    return dual, crammer_singer.gap(dual, gram, onehot, C, 1.0)

  duals, said = jax.device_get(jax.jit(jax.vmap(both))(grams, Cs))
  assert (duals[0] <= Cs[:, None, None] * onehot).all()
  for k, (case, (x, _)) in enumerate(zip(RAW, tasks, strict=True)):
    first, both = duals[0][k], duals[0][k].astype(float) + duals[1][k]
    assert np.abs(both.sum(-1)).max() < 1e-6 * np.abs(both).max()
    assert said[k] < svm.GAP and gap64(both, x, y, Cs[k], 1.0) < svm.GAP, case
    if case[3] <= 0.1:
      assert gap64(first, x, y, Cs[k], 1.0) < svm.GAP, case


@pytest.mark.parametrize('norm, mean, C', [
  (15.0, 0.3, 0.1), (100.0, 0.9, 1.0), (1.0, 0.0, 10.0)])
def test_float64_reaches_its_own_digits(norm, mean, C):
  x, y = raw_task(5, 5, 64, norm, mean, 0)
  with jax.enable_x64(True):
    params = fit(svm, jnp.asarray(x, 'float64'), y, 5, C=C)
  assert gap64(np.asarray(params['dual']), x, y, C, 1.0) < 1e-8


@pytest.mark.parametrize('scale,C,ridge', [
  (1.0, 0.1, 1.0), (10.0, 0.1, 1.0), (3.0, 0.1, 0.01), (1.0, 10.0, 0.5)
])
def test_dual_is_a_generic_solvers(scale, C, ridge):
  """Fails if bound, margin, ridge or face differ from the definition."""
  x, y, _ = draw_task(4, 5, dim=16, scale=scale, seed=3)
  x, y = x[:18], y[:18]  # unequal classes
  want = reference(x, y, 4, C, ridge)
  assert gap64(want, x, y, C, ridge) < 1e-5  # the reference itself is good
  got = fit(svm, x, y, 4, C=C, ridge=ridge)['dual']
  np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


@pytest.mark.parametrize('C', [0.01, 0.1, 1.0])
def test_without_ridge_it_is_scikit_learns(C):
  """Fails if a published C means something else here."""
  x, y, query = draw_task(5, 6, dim=24, scale=3.0)
  model = LinearSVC(
    multi_class='crammer_singer', fit_intercept=False, C=C, tol=1e-8,
    max_iter=1000000)
  want = model.fit(x.astype(float), y).decision_function(query.astype(float))
  got = svm.logits(fit(svm, x, y, 5, C=C, ridge=0.0), query)
  np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())
  if C < 1:  # above, nothing is at the bound
    other = svm.logits(fit(svm, x, y, 5, C=1.2 * C, ridge=0.0), query)
    assert np.abs(other - want).max() > 5e-3 * np.abs(want).max()


@pytest.mark.parametrize('scale,C', [(3.0, 0.01), (3.0, 0.1), (3.0, 1.0)])
def test_gradient_is_that_of_the_optimum(scale, C):
  """Fails if features, C or ridge get a wrong gradient."""
  x, y, query = draw_task(3, 4, dim=8, scale=scale)
  direction = np.random.default_rng(1).normal(size=x.shape)
  weigh = np.random.default_rng(2).normal(size=(len(query), 3))

  def score(x, C, ridge):
    params = svm.fit(x, y, 3, C=C, ridge=ridge, tolerance=1e-13)
    value = jnp.sum(weigh * jnp.tanh(svm.logits(params, query)))
    return value, params['dual']

  with jax.enable_x64(True):
    at = (jnp.asarray(x, 'float64'), jnp.float64(C), jnp.float64(1.0))
    value = jax.jit(score)
    batched = jax.vmap(jax.grad(score, (0, 1, 2), has_aux=True),
                       (0, None, None))
    got, (dual, _) = jax.jit(batched)(jnp.stack([at[0], at[0] + 1]), *at[1:])
    for i, change in enumerate([direction, 1.0, 1.0]):
      step = 1e-6
      up, down = ([*at] for _ in range(2))
      up[i], down[i] = at[i] + step * change, at[i] - step * change
      want = (value(*up)[0] - value(*down)[0]) / (2 * step)
      along = jnp.sum(got[i][0] * change)
      np.testing.assert_allclose(along, want, rtol=1e-4, atol=1e-7)
  # The cases cover every kind of face.
  bounded = np.sum(np.asarray(dual) >= C * (1 - 1e-12))
  assert {0.01: bounded == 12, 0.1: 0 < bounded < 12, 1.0: bounded == 0}[C]


def test_gradient_on_many_tasks_at_once_in_float32():
  """Fails if the gradient is noise in float32, which training uses."""
  tasks = [draw_task(5, 5, scale=s, seed=s) for s in (1, 2, 4)]
  x = np.stack([task[0] for task in tasks])
  y, query = tasks[0][1:]

  def score(x):
    out = svm.logits(svm.fit(x, y, 5, tolerance=1e-7), query)
    return jnp.sum(jax.nn.log_softmax(out)[::3, 1])

  single = jax.jit(jax.vmap(jax.grad(score)))(x)
  with jax.enable_x64(True):
    double = jax.jit(jax.vmap(jax.grad(score)))(jnp.asarray(x, 'float64'))
    double = np.asarray(double)
  for got, want in zip(single, double, strict=True):
    assert np.abs(got - want).max() < 5e-3 * np.abs(want).max()


@pytest.mark.parametrize('ridge', [0.0, 1.0])
def test_degenerate_support_stays_finite_with_its_gradient(ridge):
  """Fails if singular problems, such as duplicates at ridge 0, give NaN."""
  x, y, query = draw_task(3, 4, dim=32)
  twice = np.repeat(x[:1], len(x), 0)
  cases = np.stack([x, 0 * x, 0 * x + 3.7, twice, 1e3 * twice, 1e-6 * x])

  def score(x, ridge):
    params = svm.fit(x, y, 3, ridge=ridge)
    residuals = svm.diagnostics(params, x, y, ridge=ridge)
    return svm.logits(params, query).sum(), (params, residuals)

  slope, aux = jax.jit(jax.vmap(jax.grad(score, has_aux=True), (0, None)))(
    cases, ridge)
  for leaf in jax.tree.leaves((slope, aux)):
    assert np.isfinite(leaf).all()
  assert not aux[1]['not_converged'].any(), aux[1]['gap']
  assert (aux[1]['sum'] < 1e-5).all()


def test_many_examples_of_a_huge_norm_stay_finite_and_are_told():
  """Fails where rounding makes the matrix indefinite and its inverse NaN."""
  x, y = raw_task(5, 60, 32, 1e4, 0.5, 0)
  params = fit(svm, x, y, 5)
  assert np.isfinite(params['weights']).all()
  assert diagnose(svm, params, x, y)['not_converged']


def test_an_early_end_is_told():
  """Fails if an answer that is not the optimum looks like one."""
  x, y, _ = draw_task(5, 15)
  params = fit(svm, x, y, 5, max_rounds=0)
  said = diagnose(svm, params, x, y)
  assert said['not_converged'] and said['gap'] > 1e-3
  broken = jax.tree.map(lambda leaf: np.nan * leaf, params)
  assert diagnose(svm, broken, x, y)['not_converged']


@pytest.mark.parametrize('seed', range(3))
def test_projection_is_the_nearest_point(seed):
  """Fails if dual points leave their simplex or lose digits far below C."""
  rng = np.random.default_rng(seed)
  v = rng.normal(size=(50, 4)) * 10.0 ** rng.integers(-4, 2, size=(50, 1))
  bound = 0.1 * np.eye(4)[rng.integers(4, size=50)]
  with jax.enable_x64(True):
    got = np.asarray(crammer_singer.project(v, bound))
  low, high = -200 * np.ones((50, 1)), 200 * np.ones((50, 1))
  for _ in range(100):
    middle = (low + high) / 2
    over = np.minimum(v - middle, bound).sum(1, keepdims=True) > 0
    low, high = np.where(over, middle, low), np.where(over, high, middle)
  np.testing.assert_allclose(got, np.minimum(v - low, bound), atol=1e-12)


def test_svm_says_what_is_wrong():
  """Fails if a wrong option ends in a traceback of the solver."""
  x, y, _ = draw_task(2, 1, dim=16)
  with pytest.raises(UserError, match='config.heads.svm.C is 0: must be above'):
    svm.fit(x, y, 2, C=0)
  with pytest.raises(UserError, match='config.heads.svm.ridge is -1: must be'):
    svm.fit(x, y, 2, ridge=-1)
  with pytest.raises(UserError, match='num_ways: 1'):
    svm.fit(x, 0 * y, 1)
