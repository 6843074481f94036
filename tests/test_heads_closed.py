"""Heads without a search: centroid, ridge, steps of gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_tasks import draw_task, fit
from scipy.special import log_softmax, softmax
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid

from mtl_jax.errors import UserError
from mtl_jax.heads import (
  balance,
  centroid,
  convergence,
  gradient,
  logistic,
  ridge,
)


def difference(score, at, change, step=1e-6):
  """The derivative of score along a change, by central differences."""
  up, down = (
    [a + sign * step * c for a, c in zip(at, change, strict=True)]
    for sign in (1, -1)
  )
  return (score(*up) - score(*down)) / (2 * step)


def check_gradient(head, at, options):
  """Holds the gradient in features and named options to differences."""
  x, y, query = draw_task(3, 4, dim=7, scale=2.0)
  rng = np.random.default_rng(0)
  weigh = rng.normal(size=(len(query), 3))

  def score(x, *values):
    given = {**options, **dict(zip(at, values, strict=True))}
    out = head.logits(head.fit(x, y, 3, **given), query)
    return jnp.sum(weigh * jnp.tanh(0.1 * out))

  with jax.enable_x64(True):
    point = [jnp.asarray(x, 'float64')]
    point += [jax.tree.map(jnp.float64, value) for value in at.values()]
    score = jax.jit(score)
    got = jax.jit(jax.grad(score, tuple(range(len(point)))))(*point)
    for i, leaf in enumerate(point):
      change = [jnp.zeros_like(p) for p in point]
      change[i] = jnp.asarray(rng.normal(size=leaf.shape))
      want = difference(score, point, change)
      assert abs(want) > 1e-7
      np.testing.assert_allclose(jnp.sum(got[i] * change[i]), want, rtol=1e-5)


@pytest.mark.parametrize('distance', ['squared', 'mean_squared'])
def test_centroid_is_scikit_learns(distance):
  """Fails if large norms cost the digits of centroids or distances."""
  x, y, query = draw_task(5, 4, dim=64)
  x, y, query = x[:17] + 30, y[:17], query + 30
  model = NearestCentroid().fit(x.astype(float), y)
  params = fit(centroid, x, y, 5, distance=distance, scale=2.0)
  np.testing.assert_allclose(params['centroids'], model.centroids_, rtol=1e-6)
  out = centroid.logits(params, query)
  assert (np.argmax(out, 1) == model.predict(query.astype(float))).all()
  gaps = query[:, None].astype(float) - model.centroids_
  want = -2 * np.sum(gaps**2, -1) / {'squared': 1, 'mean_squared': 64}[distance]
  np.testing.assert_allclose(out, want, rtol=2e-3)


def test_centroid_of_unequal_classes_loses_the_scatter_of_few_images():
  """Fails if a class seems farther away because it has fewer images."""
  x, y, query = draw_task(3, 8, dim=16)
  x, y = x[5:22], y[5:22]  # 3, 8 and 6 images
  params = centroid.fit(x, y, 3, example_weights=balance(y, 3))
  groups = [x[y == i].astype(float) for i in range(3)]
  scatter = sum(len(g) * g.var(0).sum() for g in groups) / (len(y) - 3)
  wanted = np.stack([scatter / len(g) - ((query - g.mean(0))**2).sum(1)
                     for g in groups], 1)
  np.testing.assert_allclose(centroid.logits(params, query), wanted, atol=1e-5)


def test_centroid_by_cosine():
  """Fails if the angle depends on a norm."""
  x, y, query = draw_task(5, 4, dim=64)
  params = fit(centroid, x, y, 5, distance='cosine', scale=10.0)
  means = x.reshape(5, 4, -1).mean(1)
  want = 10 * cosine_similarity(query, means)
  np.testing.assert_allclose(centroid.logits(params, query), want, rtol=1e-5)
  longer = centroid.logits(params, 7 * query)
  np.testing.assert_allclose(longer, want, rtol=1e-5)


def test_the_cosine_of_points_without_length_has_a_finite_gradient():
  x, y, query = draw_task(5, 4, dim=64)
  slope = jax.grad(lambda x: centroid.logits(
    centroid.fit(x, y, 5, distance='cosine'), 0 * query).sum())(0 * x)
  assert np.isfinite(slope).all()


CONVENTIONS = {
  'metaoptnet': {},
  'metaoptnet_r2d2': {'target': 1.0},
  'r2d2': {'target': 1.0, 'bias': True, 'average': True},
}


def published(x, y, query, name, regulariser=50.0):
  """Returns the logits of the published code, in float64."""
  x, query = x.astype(float), query.astype(float)
  onehot = np.eye(y.max() + 1)[y]
  if name != 'r2d2':
    alpha = np.linalg.solve(x @ x.T + regulariser * np.eye(len(x)), onehot)
    return {'metaoptnet': 2, 'metaoptnet_r2d2': 1}[name] * query @ x.T @ alpha
  root = np.sqrt(len(x))
  z = np.c_[x, np.ones(len(x))] / root
  inverse = np.linalg.inv(z.T @ z + regulariser * np.eye(z.shape[1]))
  return np.c_[query, np.ones(len(query))] @ inverse @ z.T @ onehot / root


@pytest.mark.parametrize('name', CONVENTIONS)
@pytest.mark.parametrize('dim', [8, 96])
def test_ridge_is_as_published(name, dim):
  """Fails if dual and primal disagree, or follow another convention."""
  x, y, query = draw_task(5, 3, dim=dim, scale=20.0)
  params = fit(ridge, x, y, 5, **CONVENTIONS[name])
  want = published(x, y, query, name)
  got = ridge.logits(params, query)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize('name', CONVENTIONS)
def test_ridge_of_many_examples_is_the_same(name, monkeypatch):
  """Fails if a support too large for a factor gets another answer."""
  x, y, query = draw_task(5, 3, dim=9, scale=20.0)
  options = CONVENTIONS[name] | {'example_weights': balance(y[2:], 5)}
  once = fit(ridge, x[2:], y[2:], 5, **options)
  monkeypatch.setattr(ridge, '_INVERTED', 5)
  again = fit(ridge, x[2:], y[2:], 5, **options)
  for key, value in once.items():
    np.testing.assert_allclose(again[key], value, atol=1e-5)
  assert ridge.diagnostics(again, x[2:], y[2:], **options)['normal'] < 1e-4


@pytest.mark.parametrize('dim', [6, 30])
def test_ridge_by_weights_is_scikit_learns(dim):
  """Fails if a weight is squared, or forgotten in one of the two problems."""
  x, y, query = draw_task(3, 4, dim=dim, scale=20.0)
  x, y = x[3:], y[3:]
  weights = np.asarray(balance(y, 3))
  params = fit(ridge, x, y, 3, regulariser=7.0, example_weights=weights)
  wanted = Ridge(alpha=7.0, fit_intercept=False).fit(
    x, 2 * np.eye(3)[y], sample_weight=weights).predict(query)
  np.testing.assert_allclose(ridge.logits(params, query), wanted, atol=1e-4)
  residual = ridge.diagnostics(
    params, x, y, regulariser=7.0, example_weights=weights)['normal']
  assert residual < 1e-5


def test_ridge_where_rounding_outweighs_the_penalty():
  """Fails if duplicates of norm 3,000 give NaN, without a Cholesky factor."""
  x, y, query = draw_task(5, 3, dim=64, scale=3e3)
  x, y = np.r_[x, x], np.r_[y, y]
  for dim in (64, 16):
    params = fit(ridge, x[:, :dim], y, 5)
    want = published(x[:, :dim], y, query[:, :dim], 'metaoptnet')
    got = ridge.logits(params, query[:, :dim])
    np.testing.assert_allclose(got, want, atol=5e-3 * np.abs(want).max())
  wrong = jax.tree.map(lambda leaf: 1.1 * leaf, params)
  assert ridge.diagnostics(wrong, x[:, :dim], y)['normal'] > 0.05


@pytest.mark.parametrize('dim, norm, regulariser', [
  (64, 30., 1e-3), (640, 100., .1), (640, 300., 1.), (640, 5000., 50.)])
def test_ridge_says_where_repeated_images_cost_the_gradient(
    dim, norm, regulariser):
  """Fails if a gradient that is off by per cents passes as solved."""
  x = np.random.default_rng(0).normal(size=(25, dim))
  x *= norm / np.linalg.norm(x, axis=1, keepdims=True)
  y = np.repeat(np.arange(5), 5)
  for repeated in (False, True):
    if repeated:  # some with two labels
      x[1::2] = x[:-1:2]
    params = fit(ridge, x, y, 5, regulariser=regulariser)
    found = convergence(ridge.diagnostics(
      params, x.astype(np.float32), y, regulariser=regulariser))
    assert bool(found['not_converged']) == repeated


@pytest.mark.parametrize('C', [1e-3, 1., 3.])
def test_logistic_of_equal_features_is_solved(C):
  """Fails if weights of nothing but rounding are measured by themselves."""
  x = np.tile(np.random.default_rng(0).normal(size=64).astype('f4'), (25, 1))
  y = np.repeat(np.arange(5), 5)
  params = logistic.fit(x, y, 5, C=C)
  assert not convergence(logistic.diagnostics(params, x, y, C=C))[
    'not_converged']


@pytest.mark.parametrize('dim_is', ['primal', 'dual'])
@pytest.mark.parametrize('name', CONVENTIONS)
def test_ridge_gradient(name, dim_is):
  """Fails if features, regulariser or target get a wrong gradient."""
  at = {'regulariser': 0.3, 'target': 1.5}
  options = {k: v for k, v in CONVENTIONS[name].items() if k != 'target'}
  # `draw_task(3, 4, dim=7)` is primal; wide features make it dual.
  wide = ridge if dim_is == 'primal' else Wide
  check_gradient(wide, at, options)


class Wide:
  """Ridge on [x, x^2, x^3], more features than examples."""

  @staticmethod
  def fit(x, *args, **options):
    return ridge.fit(jnp.concatenate([x, x**2, x**3], -1), *args, **options)

  @staticmethod
  def logits(params, x):
    return ridge.logits(params, jnp.concatenate([x, x**2, x**3], -1))


@pytest.mark.parametrize('distance', centroid.DISTANCES)
def test_centroid_gradient(distance):
  """Fails if ProtoNet trains on a wrong gradient."""
  check_gradient(centroid, {'scale': 1.3}, {'distance': distance})


def descent(x, y, query, rates, bias, weights, intercepts, each=1.0):
  """Steps by the textbook gradient, in float64 numpy."""
  onehot = np.eye(weights.shape[1])[y]
  for rate in rates:
    wrong = softmax(x @ weights + intercepts, 1) - onehot
    wrong = wrong * np.reshape(each, (-1, 1)) / len(x)
    weights = weights - rate * x.T @ wrong
    intercepts = intercepts - bias * rate * wrong.sum(0)
  return query @ weights + intercepts, weights, intercepts


@pytest.mark.parametrize('bias', [True, False])
def test_gradient_head_takes_the_textbook_steps(bias):
  """Fails if a step uses another rate, mean, start or bias."""
  x, y, query = draw_task(3, 4, dim=8, scale=3.0)
  y[0] = 1
  rng = np.random.default_rng(0)
  start = {'weights': rng.normal(size=(8, 3)), 'bias': rng.normal(size=3)}
  zero = jax.tree.map(np.zeros_like, start)
  rates = np.array([0.5, 0.2, 0.4])
  for initial, begin in [(None, zero), (start, start)]:
    intercepts = begin['bias'] if bias else 0 * begin['bias']
    want, weights, _ = descent(
      x, y, query, rates, bias, begin['weights'], intercepts)
    params = gradient.fit(
      x, y, 3, steps=3, rate=rates, bias=bias, initial=initial)
    np.testing.assert_allclose(gradient.logits(params, query), want, rtol=1e-4)
    np.testing.assert_allclose(params['weights'], weights, rtol=1e-3, atol=1e-5)
    assert bias or not params['bias'].any()
  every = {'example_weights': np.asarray(balance(y, 3))}
  want, *_ = descent(x, y, query, rates, bias, zero['weights'], zero['bias'],
                     *every.values())
  params = gradient.fit(x, y, 3, steps=3, rate=rates, bias=bias, **every)
  np.testing.assert_allclose(gradient.logits(params, query), want, rtol=1e-4)
  once = gradient.fit(x, y, 3, steps=3, rate=0.5)
  each = gradient.fit(x, y, 3, steps=3, rate=np.full(3, 0.5))
  np.testing.assert_allclose(once['weights'], each['weights'], rtol=1e-6)


def test_gradient_head_tells_of_a_rate_too_large():
  """Fails if a head with a rising loss is not reported."""
  x, y, _ = draw_task(3, 4, dim=8, scale=30.0)
  y = y[::-1].copy() % 2  # not separable: classes of mixed features
  said = [
    gradient.diagnostics(gradient.fit(x, y, 3, rate=rate), x, y)['rise']
    for rate in (1e-4, 100.0)
  ]
  assert said[0] == 0 and said[1] > 1
  params = gradient.fit(x, y, 3, rate=100.0)
  loss = -log_softmax(gradient.logits(params, x), 1)[np.arange(12), y].mean()
  np.testing.assert_allclose(said[1], loss - np.log(3), rtol=1e-4)


@pytest.mark.parametrize('bias', [True, False])
def test_gradient_through_the_steps(bias):
  """Fails if ANIL learns features, rates or start from a wrong gradient."""
  rng = np.random.default_rng(1)
  at = {'rate': np.array([0.5, 1.0, 0.7])}
  check_gradient(gradient, at, {
    'steps': 3, 'bias': bias,
    'initial': {'weights': rng.normal(size=(7, 3)), 'bias': rng.normal(size=3)},
  })
  start = {'weights': jnp.asarray(rng.normal(size=(7, 3)), 'float32'),
           'bias': jnp.zeros(3)}
  x, y, _ = draw_task(3, 4, dim=7)
  total = lambda start: gradient.fit(x, y, 3, initial=start)['weights'].sum()
  slope = jax.jit(jax.grad(total))(start)
  # One number added to a feature's weights of all classes passes through.
  np.testing.assert_allclose(slope['weights'].sum(1), 3, rtol=1e-5)


@pytest.mark.parametrize('head,option,value', [
  (centroid, 'distance', 'manhattan'), (centroid, 'scale', 0),
  (ridge, 'regulariser', 0.0), (ridge, 'regulariser', -1.0),
  (gradient, 'steps', 0), (gradient, 'rate', -0.1),
])
def test_a_bad_option_is_named(head, option, value):
  """Fails if the message does not name the field of the config."""
  name = head.__name__.split('.')[-1]
  x, y, _ = draw_task(2, 1, dim=16)
  with pytest.raises(UserError, match=rf'config\.heads\.{name}\.{option}'):
    head.fit(x, y, 2, **{option: value})
