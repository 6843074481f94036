"""Heads: one contract for all in HEADS, then the numerics of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_tasks import diagnose, draw_task, fit
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mtl_jax.errors import UserError
from mtl_jax.heads import HEADS, balance, linear, logistic
from mtl_jax.solvers import multinomial

heads = pytest.mark.parametrize('head', HEADS.values(), ids=HEADS.keys())


def probabilities(params, query):
  return np.asarray(jax.nn.softmax(logistic.logits(params, query)))


@heads
def test_head_is_finite_on_degenerate_features(head):
  """Fails if a dead backbone or a repeated image gives NaN."""
  x, y, query = draw_task(5, 2, dim=32)
  constant = np.full_like(x, 3.7)
  one_point = np.where(y[:, None] == 0, constant, 0)  # one class stands apart
  repeated = [np.repeat(x[::2], 2, 0), np.repeat(x[:1], len(x), 0)]
  scaled = [0 * x, 1e-6 * x, 1e3 * x, 1e6 * x]
  cases = np.stack([constant, one_point, *repeated, *scaled])

  @jax.jit
  @jax.vmap
  def everything(x):
    params = head.fit(x, y, 5)
    return params, head.logits(params, query), head.diagnostics(params, x, y)

  for leaf in jax.tree.leaves(everything(cases)):
    assert np.isfinite(leaf).all()


@heads
def test_vmapped_tasks_equal_single_ones(head):
  """Fails if easy and hard tasks of one batch disturb each other."""
  tasks = [draw_task(5, 3, dim=64, scale=s) for s in (1.0, 30.0, 0.1)]
  x, y, query = (np.stack(part) for part in zip(*tasks, strict=True))
  single = jax.jit(lambda x, y, q: head.logits(head.fit(x, y, 5), q))
  together = jax.vmap(single)(x, y, query)
  for i in range(len(tasks)):
    alone = single(x[i], y[i], query[i])
    np.testing.assert_allclose(together[i], alone, rtol=1e-3, atol=1e-3)


@heads
def test_renaming_the_classes_renames_the_logits(head):
  """Fails if a head favours a class by its number."""
  x, y, query = draw_task(5, 3, dim=64)
  y[0] = 1  # unequal class sizes
  renamed = np.array([3, 0, 4, 1, 2], 'int32')
  before = head.logits(fit(head, x, y, 5), query)
  after = head.logits(fit(head, x, renamed[y], 5), query)
  np.testing.assert_allclose(after[:, renamed], before, atol=1e-3)


@heads
def test_separable_labels_are_fitted(head):
  """Fails if support points of separable classes get wrong labels."""
  x, y, _ = draw_task(5, 5, scale=10.0)
  params = fit(head, x, y, 5)
  assert (np.argmax(head.logits(params, x), 1) == y).all()
  for residual in diagnose(head, params, x, y).values():
    assert residual.shape == () and abs(residual) < 1e-3


def reference(x, y, query, C=3.0, **options):
  """Returns the query's probabilities by the published head, scikit-learn's."""
  # Only the span of the support matters: an exact problem of S dimensions.
  basis = np.linalg.svd(x.astype(float), full_matrices=False)[2].T
  x, query = x @ basis, query @ basis
  if y.max() == 1:
    return reference_two_ways(x, y, query, C)
  model = LogisticRegression(C=C, tol=1e-10, max_iter=10000, **options)
  with threadpool_limits(1):  # many threads on tiny products only wait
    return model.fit(x, y).predict_proba(query)


def reference_two_ways(x, y, query, C):
  onehot = np.eye(2)[y]

  def objective(v):
    w, b = v[:-2].reshape(2, -1), v[-2:]
    logp = log_softmax(x @ w.T + b, 1)
    wrong = C * (np.exp(logp) - onehot)
    gradient = np.concatenate([(w + wrong.T @ x).ravel(), wrong.sum(0)])
    return 0.5 * np.sum(w**2) - C * np.sum(logp * onehot), gradient

  v = minimize(
    objective, np.zeros(2 * x.shape[1] + 2), jac=True, method='L-BFGS-B',
    options={'ftol': 0, 'gtol': 1e-9, 'maxiter': 5000, 'maxcor': 30},
  ).x
  assert np.abs(objective(v)[1]).max() < 1e-6
  return softmax(query @ v[:-2].reshape(2, -1).T + v[-2:], 1)


@pytest.mark.parametrize('ways, shots', [
    (2, 1), (2, 15), (5, 5), (20, 1), (20, 15)])
def test_logistic_is_scikit_learns(ways, shots):
  """Fails if MTL's accuracies are not those of the published head."""
  x, y, query = draw_task(ways, shots, seed=ways + shots)
  got = probabilities(fit(logistic, x, y, ways), query)
  assert np.abs(got - reference(x, y, query)).max() < 1e-4


def test_logistic_penalty_and_intercept_on_unequal_classes():
  """Fails if C is wrong, the loss is a mean, or the intercept is penalised."""
  x, y, query = draw_task(3, 12)
  x, y = (part[np.r_[0:15, 24:26]] for part in (x, y))
  got = probabilities(fit(logistic, x, y, 3), query)
  assert np.abs(got - reference(x, y, query)).max() < 1e-4
  # The data can tell: each of these mistakes moves a probability by 0.02.
  assert np.abs(got - reference(x, y, query, C=2.0)).max() > 0.02
  assert np.abs(got - reference(x, y, query, C=3 / len(y))).max() > 0.02
  x, query = (np.c_[part, np.ones(len(part))] for part in (x, query))
  penalised = reference(x, y, query, fit_intercept=False)
  assert np.abs(got - penalised).max() > 0.02


@pytest.mark.parametrize('intercept', [True, None])
def test_logistic_of_classes_that_count_alike_is_scikit_learns(intercept):
  """Fails if a weight is forgotten, or intercepts tell of the class sizes."""
  x, y, query = draw_task(3, 12)
  x, y = (part[np.r_[0:15, 24:26]] for part in (x, y))
  options = {'example_weights': balance(y, 3), 'intercept': intercept}
  params = fit(logistic, x, y, 3, **options)
  mean = 0 if intercept else options['example_weights'] @ x / len(y)
  wanted = reference(x - mean, y, query - mean, class_weight='balanced',
                     fit_intercept=bool(intercept))
  assert np.abs(probabilities(params, query) - wanted).max() < 1e-4
  residuals = diagnose(logistic, params, x, y, **options)
  assert max(residuals.values()) < 1e-3


@pytest.mark.parametrize('ways,shots,scale', [(5, 5, 100.0), (20, 1, 1000.0)])
def test_logistic_on_raw_features_with_large_norm(ways, shots, scale):
  """Fails if MetaOptNet's 16,000 raw features are not fitted."""
  x, y, query = draw_task(ways, shots, dim=16000, scale=scale)
  got = probabilities(fit(logistic, x, y, ways), query)
  gap = got - reference(x, y, query, solver='newton-cg')
  assert np.abs(gap).max() < 1e-4


@pytest.mark.parametrize('value', [0.0, 3.7, 1000.0])
def test_logistic_on_constant_features_predicts_class_frequencies(value):
  """Fails if the intercept is penalised."""
  y = np.array([0, 0, 0, 1, 1, 2], 'int32')
  x = np.full((6, 16), value, 'float32')
  got = probabilities(fit(logistic, x, y, 3), x[:1])
  np.testing.assert_allclose(got[0], [3 / 6, 2 / 6, 1 / 6], atol=1e-4)


def test_logistic_on_duplicates_is_the_fit_with_twice_the_weight():
  """Fails if a singular Gram matrix changes the answer."""
  x, y, query = draw_task(5, 3, dim=64, scale=3.0)
  twice = fit(logistic, np.r_[x, x], np.r_[y, y], 5, C=1.5)
  once = fit(logistic, x, y, 5, C=3.0)
  gap = probabilities(twice, query) - probabilities(once, query)
  assert np.abs(gap).max() < 1e-4


@pytest.mark.parametrize('given,computed,residual', [
  ('float64', 'float64', 1e-10), ('bfloat16', 'float32', 1e-3)
])
def test_logistic_computes_in(given, computed, residual):
  """Fails if float64 is cast down, or a Gram matrix is in half precision."""
  x, y, _ = draw_task(3, 4, dim=32, scale=20.0)
  with jax.enable_x64(given == 'float64'):
    x = jnp.asarray(x, given)
    params = fit(logistic, x, y, 3)
    assert params['weights'].dtype == computed
    assert max(diagnose(logistic, params, x, y).values()) < residual


@pytest.mark.parametrize('factored,intercept', [(4000, True), (0, False)])
def test_logistic_of_many_examples_is_scikit_learns(
    factored, intercept, monkeypatch):
  """Fails if the solver of thousands of examples finds another optimum."""
  monkeypatch.setattr(logistic, '_FEW', 10)
  monkeypatch.setattr(multinomial, '_INVERTED', factored)
  x, y, query = draw_task(3, 20, dim=7, scale=5.0)
  x, y = x[10:] + 3, y[10:]  # unequal classes, and a mean that all share
  with jax.enable_x64(True):
    x64 = jnp.asarray(x, 'float64')
    options = {'example_weights': balance(y, 3, 'float64'),
               'intercept': intercept}
    params = fit(logistic, x64, y, 3, **options)
    got = np.asarray(jax.nn.softmax(logistic.logits(params, query + 3.0)))
    residuals = diagnose(logistic, params, x64, y, **options)
    assert max(residuals.values()) < 1e-8
  mean = 0 if intercept else np.asarray(balance(y, 3)) @ x / len(y)
  wanted = reference(x - mean, y, query + 3.0 - mean, class_weight='balanced',
                     fit_intercept=intercept)
  assert np.abs(got - wanted).max() < 1e-6


def test_solver_keeps_its_tolerance():
  """Fails if a stale preconditioner hides steps above the tolerance."""
  x, y, _ = draw_task(3, 1, scale=100.0)
  with jax.enable_x64(True):
    x = jnp.asarray(x.astype(float) - x.mean(0, float))
    gram, onehot = x @ x.T, jnp.eye(3, dtype='float64')[:, y]

    @jax.jit
    def support_logits(tolerance):
      dual, bias = multinomial.fit(gram, onehot, 3.0, tolerance=tolerance)
      return dual @ gram + bias[:, None]

    error = np.abs(support_logits(1e-2) - support_logits(1e-10)).max()
  assert error < 2e-2


def test_solver_steps_always_descend():
  """Fails if a step is as long as Newton's and overshoots."""
  rng = np.random.default_rng(0)
  onehot = np.eye(3)[:, [0, 0, 1, 1, 2, 2]]

  def objectives(point, step, gram):
    """J before, after a step of the solver's length, and of Newton's."""

    def objective(t):
      f = (point + t * step) @ gram
      loss = -jnp.sum(onehot * jax.nn.log_softmax(f, 0))
      return 0.5 * jnp.sum(f * (point + t * step)) + 3 * loss

    slope = -jax.grad(objective)(0.0)
    newton = slope / jax.grad(jax.grad(objective))(0.0)
    p = jax.nn.softmax(point @ gram, 0)
    problem = multinomial._Problem(onehot, None, 3.0)
    square = jnp.sum(step * (step @ gram))
    length = multinomial._length(p, square, step @ gram, slope, problem, 0.0)
    uphill = slope <= 0
    return objective(0.0), objective(length), objective(newton), uphill

  with jax.enable_x64(True):
    x = rng.normal(size=(200, 6, 4))
    point, step = rng.normal(size=(2, 200, 3, 6))
    gram = x @ x.swapaxes(1, 2)
    *values, uphill = jax.jit(jax.vmap(objectives))(point, step, gram)
  before, after, newton = (np.asarray(v)[~uphill] for v in values)
  assert len(before) > 50 and (after < before).all()
  assert (newton > before).any()


def test_logistic_gradient_is_that_of_the_optimum():
  """Fails if the gradient stops or follows the iterations."""
  x, y, query = draw_task(3, 3, dim=8, scale=3.0)
  y[0] = 1
  direction = np.random.default_rng(1).normal(size=x.shape)
  weigh = np.random.default_rng(2).normal(size=(len(query), 3))

  def score(x, C):
    params = logistic.fit(x, y, 3, C=C)
    return jnp.sum(weigh * jax.nn.softmax(logistic.logits(params, query)))

  with jax.enable_x64(True):
    x = jnp.asarray(x, 'float64')
    C = jnp.asarray(3.0, 'float64')
    value = jax.jit(score)
    batched = jax.vmap(jax.grad(score, (0, 1)), (0, None))
    by_x, by_c = jax.jit(batched)(jnp.stack([x, x + 1]), C)
    step = 1e-5
    up, down = value(x + step * direction, C), value(x - step * direction, C)
    by_difference = (up - down) / (2 * step)
    c_difference = (value(x, C + step) - value(x, C - step)) / (2 * step)
    assert abs(by_difference) > 1e-2 and abs(c_difference) > 1e-4
    along = jnp.sum(by_x[0] * direction)
    np.testing.assert_allclose(along, by_difference, rtol=1e-7)
    np.testing.assert_allclose(by_c[0], c_difference, rtol=1e-5)


def test_logistic_says_what_is_wrong():
  """Fails if a wrong option ends in a traceback of the solver."""
  x, y, _ = draw_task(2, 1, dim=16)
  with pytest.raises(UserError, match='logistic.C is 0: must be above 0'):
    logistic.fit(x, y, 2, C=0)
  with pytest.raises(UserError, match='num_ways: 1'):
    logistic.fit(x, 0 * y, 1)


def test_rows_are_drawn_as_published():
  """Fails if rows start with another size, which then stays."""
  for num_classes, bound in [(64, 0.1414), (351, 0.3312), (60, 0.1369)]:
    rows = linear.init(jax.random.key(0), num_classes, 640, 5)
    assert rows.shape == (num_classes, 640)
    np.testing.assert_allclose(np.abs(rows).max(), bound, rtol=1e-3)
    np.testing.assert_allclose(rows.std(), bound / 3**0.5, rtol=0.02)
    assert abs(rows.mean()) < 0.02 * bound


def test_shared_rows_are_one_vector():
  """Fails if tasks start from different heads, against the theory."""
  rows = np.asarray(linear.init(jax.random.key(0), 64, 640, 5, how='shared'))
  assert rows.shape == (64, 640) and (rows == rows[0]).all()
  np.testing.assert_allclose(np.abs(rows).max(), 0.1414, rtol=0.02)


def test_an_unknown_start_of_the_rows_is_named():
  with pytest.raises(UserError, match='head_init'):
    linear.init(jax.random.key(0), 64, 640, 5, how='row')


def test_rows_of_a_task_are_those_of_its_classes():
  """Fails if a task reads or trains rows of other classes."""
  rows, features = jax.random.normal(jax.random.key(0), (2, 6, 4))
  ids = np.array([5, 0, 2])
  got = linear.logits(rows, ids, features)
  want = [[f @ rows[c] for c in ids] for f in features]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  total = lambda rows: linear.logits(rows, ids, features).sum()
  used = np.abs(jax.grad(total)(rows)).sum(1) > 0
  assert list(np.flatnonzero(used)) == sorted(ids)


def test_a_whole_C_of_any_size_is_diagnosed():
  """Fails if C times the number of images is a whole number beyond int32."""
  x, y, _ = draw_task(3, 4, dim=16)
  params = fit(logistic, x, y, 3)
  said = logistic.diagnostics(params, x, y, C=2**31 - 1)
  assert np.isfinite(said['bias'])


def test_logistic_of_few_and_many_that_count_alike_converges():
  """Fails if classes of 5 and 495 clustered images leave it anywhere."""
  rng = np.random.default_rng(1)
  labels = np.repeat([0, 1], [5, 495]).astype(np.int32)
  rng.normal(size=64)
  clusters = 3 * rng.normal(size=(25, 32))
  features = np.maximum(0, clusters[np.where(
      labels == 0, 0, 1 + rng.integers(0, 24, 500))] + rng.normal(
          size=(500, 32)))
  features *= 23 / np.linalg.norm(features, axis=1).mean()
  features = features.astype(np.float32)
  weights = balance(labels, 2)
  params = logistic.fit(features, labels, 2, example_weights=weights)
  found = logistic.diagnostics(params, features, labels,
                               example_weights=weights)
  assert found['weights'] < 1e-3, found
