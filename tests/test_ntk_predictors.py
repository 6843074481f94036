"""Closed forms of training, against training that is integrated in time."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ntk_linear import DEPTH, integrated, kernels
from scipy.linalg import block_diag, expm

from mtl_jax import ntk
from mtl_jax.errors import UserError

methods = pytest.mark.parametrize('method', ['anil', 'maml', 'mtl'])


def sphere(rng, *shape):
  x = rng.normal(size=(*shape, 5))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(tasks=3, n=4, s=3, m=5, test_s=3, k=2, seed=0):
  rng = np.random.default_rng(seed)
  return {
      'query_x': sphere(rng, tasks, n),
      'query_y': rng.normal(size=(tasks, n, k)),
      'support_x': sphere(rng, tasks, s),
      'support_y': rng.normal(size=(tasks, s, k)),
      'test_query_x': sphere(rng, m), 'test_support_x': sphere(rng, test_s),
      'test_support_y': rng.normal(size=(test_s, k))}


def predict(method, data, **options):
  options = {'depth': DEPTH, 'inner_time': 0.4, 'test_time': 1.,
             'dtype': 'float64', **options}
  return ntk.predict(method, **data, **options)


def values(method, data, **options):
  return np.asarray(predict(method, data, **options).values)


def test_predictions_without_adaptation_are_kernel_regression():
  """Fails if the head's or the body's share of the kernel is wrong."""
  data = draw(tasks=1, n=8)
  x, y, z = data['query_x'][0], data['query_y'][0], data['test_query_x']
  own, cross = kernels(x), kernels(z, x)
  regression = lambda part: cross[part] @ np.linalg.solve(own['all'], y)
  no_time = {'inner_time': 0., 'test_time': 0.}
  anil = values('anil', data, **no_time)
  mtl = values('mtl', data, **no_time)
  np.testing.assert_allclose(anil, regression('all'), atol=1e-10)
  np.testing.assert_allclose(mtl, regression('body'), atol=1e-10)
  np.testing.assert_allclose(anil - mtl, regression('head'), atol=1e-10)
  np.testing.assert_allclose(
      values('maml', data, **no_time), anil, atol=1e-10)


@pytest.mark.parametrize('method, train_time, l2', [
    *itertools.product(['anil', 'maml', 'mtl'], [0.7, np.inf], [None]),
    ('anil', 0.7, 0.3), ('mtl', np.inf, 0.3)])
def test_predictions_are_what_gradient_flow_of_the_model_gives(
    method, train_time, l2):
  """Fails if the closed form is not what training gives."""
  data = draw()
  inner, test = ((0.4, None), (1., None)) if l2 is None else ((None, l2),) * 2
  with jax.enable_x64(True):
    expected = integrated(method, data, min(train_time, 60.), inner, test)
  got = values(method, data, inner_time=inner[0], inner_l2=inner[1],
               test_time=test[0], test_l2=test[1], train_time=train_time)
  np.testing.assert_allclose(got, np.asarray(expected), atol=1e-6)


def by_tasks(method, queries, supports, data, inner_time, test_time):
  """Section 2 of docs/theory.md by loops over tasks of any size, and Phi."""
  adapting = 'all' if method == 'maml' else 'head'

  def transfer(x, support_x, time):
    own = kernels(support_x)[adapting]
    grown = np.eye(len(own)) - expm(-time * own)
    return kernels(x, support_x)[adapting] @ np.linalg.solve(own, grown)

  test_a = transfer(data['test_query_x'], data['test_support_x'], test_time)
  test_rows = np.concatenate([np.eye(len(test_a)), -test_a], 1)
  test_x = np.concatenate([data['test_query_x'], data['test_support_x']])
  x = np.concatenate([q[0] for q in queries])
  y = np.concatenate([q[1] for q in queries])
  if method == 'mtl':
    same = block_diag(*(np.ones((len(q[0]),) * 2) for q in queries))
    phi = kernels(x)['body'] + same * kernels(x)['head']
    rows = test_rows @ kernels(test_x, x)['body']
  else:
    a = [transfer(q[0], s[0], inner_time)
         for q, s in zip(queries, supports, strict=True)]
    reduce = np.concatenate([np.eye(len(x)), -block_diag(*a)], 1)
    x = np.concatenate([x, *(s[0] for s in supports)])
    phi = reduce @ kernels(x)['all'] @ reduce.T
    rows = test_rows @ kernels(test_x, x)['all'] @ reduce.T
    y = y - np.concatenate(
        [transfer_i @ s[1]
         for transfer_i, s in zip(a, supports, strict=True)])
  return test_a @ data['test_support_y'] + rows @ np.linalg.solve(phi, y), phi


@methods
def test_masked_points_leave_no_trace(method):
  """Fails if padding of tasks of unequal size changes the predictions."""
  data = draw()
  masks = {'query': np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]], bool),
           'support': np.array([[1, 1, 1], [1, 1, 0], [0, 0, 1]], bool)}
  tasks = {}
  for name, mask in masks.items():
    x, y = data[f'{name}_x'], data[f'{name}_y']
    x[~mask], y[~mask] = np.nan, np.nan
    tasks[name] = [(x[i][mask[i]], y[i][mask[i]]) for i in range(len(x))]
  got = predict(method, data, query_mask=masks['query'],
                support_mask=masks['support'])
  expected, phi = by_tasks(method, tasks['query'], tasks['support'], data,
                           0.4, 1.)
  np.testing.assert_allclose(got.values, expected, atol=1e-10)
  np.testing.assert_allclose(got.condition, np.linalg.cond(phi), rtol=1e-8)


def test_masked_points_leave_no_trace_where_blank_points_correlate():
  """Fails if padding counts where inputs of zeros have a kernel to others."""
  data = draw()
  kernel = functools.partial(ntk.fully_connected, depth=DEPTH,
                             bias_variance=0.5)
  support_mask = np.arange(3) < np.full((3, 1), 2)
  short = {name: a[:, :2] if name.startswith('support') else a
           for name, a in data.items()}
  for adaptation in ({}, {'inner_time': None, 'inner_l2': 0.3}):
    options = {'depth': None, 'kernel': kernel, **adaptation}
    np.testing.assert_allclose(
        values('anil', data, support_mask=support_mask, **options),
        values('anil', short, **options), atol=1e-10)


@methods
def test_order_and_axes_do_not_matter(method):
  """Fails if predictions depend on an order or on the axes of space."""
  rng = np.random.default_rng(1)
  data = draw()
  expected = values(method, data)
  turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
  points, tests, outputs = [2, 0, 1], [3, 1, 4, 0, 2], [1, 0]
  changed = {}
  for name, array in data.items():
    if name.startswith('test_query'):
      array = array[tests]
    elif name.startswith('test'):
      array = array[points]
    else:
      order = points if name.startswith('support') else [3, 1, 0, 2]
      array = array[points][:, order]
    changed[name] = -array[..., outputs] if name.endswith('y') else array @ turn
  np.testing.assert_allclose(
      values(method, changed), -expected[tests][:, outputs], atol=1e-10)


@methods
def test_influence_of_targets_is_symmetric(method):
  """Fails if the influence of two targets on each other differs.

  Training queries as test queries, test adaptation as in training and zero
  test targets: then predictions are M Y with a symmetric smoother M.
  """
  data = draw(tasks=1, k=4)
  same = {**data, 'query_y': np.eye(4)[None], 'support_y': np.zeros((1, 3, 4)),
          'test_query_x': data['query_x'][0],
          'test_support_x': data['support_x'][0],
          'test_support_y': np.zeros((3, 4))}
  smoother = values(method, same, test_time=0.4 * (method != 'mtl'),
                    train_time=0.7)
  if method == 'mtl':  # its new head has not seen the queries
    cross = kernels(data['query_x'][0])
    spectrum, v = np.linalg.eigh(cross['all'])
    growth = v * (-np.expm1(-0.7 * spectrum) / spectrum) @ v.T
    smoother = smoother + cross['head'] @ growth
  np.testing.assert_allclose(smoother, smoother.T, atol=1e-10)


def test_singular_phi_is_an_error_and_a_singular_support_is_not():
  """Fails if a singular Phi gives noise or NaN without a message."""
  data = draw()
  repeated = {**data, 'query_x': data['query_x'].copy()}
  repeated['query_x'][0, 1] = repeated['query_x'][0, 0]
  for method in ('anil', 'mtl'):
    for dtype in ('float32', 'float64'):
      with pytest.raises(UserError, match='Phi is singular'):
        predict(method, repeated, dtype=dtype)
    finite = predict(method, repeated, train_time=1e3)
    assert np.isfinite(finite.values).all()
  for name in ('support_x', 'test_support_x'):
    data[name][..., 1, :] = data[name][..., 0, :]
  for inner in ({'inner_time': 0.4}, {'inner_time': np.inf}):
    assert np.isfinite(values('anil', data, **inner)).all()


def test_float32_keeps_its_precision():
  data = draw()
  exact = values('anil', data)
  single = predict('anil', data, dtype=None)
  assert single.values.dtype == jnp.float32
  np.testing.assert_allclose(single.values, exact, atol=1e-4)


def test_other_kernels_are_taken():
  """Fails if a kernel, such as one of images, is refused."""
  data = draw()
  exact = values('anil', data)
  kernel = functools.partial(ntk.fully_connected, depth=DEPTH)
  np.testing.assert_allclose(
      values('anil', data, depth=None, kernel=kernel), exact, atol=1e-12)
  images = {name: a[..., None, None, :] if name.endswith('x') else a
            for name, a in data.items()}
  kernel = functools.partial(ntk.convolutional, depth=DEPTH, filter_size=1)
  np.testing.assert_allclose(
      values('anil', images, depth=None, kernel=kernel), exact, atol=1e-10)


@pytest.mark.parametrize('change, message', [
    ({'test_time': None}, 'test_time, test_l2: give one'),
    ({'inner_l2': 1.}, 'inner_time, inner_l2: give one'),
    ({'test_time': -1.}, 'test_time: -1.0 is negative'),
    ({'inner_time': None, 'inner_l2': 0.}, 'inner_l2: 0.0 is not positive'),
    ({'depth': None}, 'depth, kernel: give one'),
    ({'support_x': None}, 'support_x, support_y: needed'),
    ({'query_y': np.zeros((3, 4))}, 'query_y: shape'),
    ({'query_mask': np.ones(4)}, 'query_mask: shape'),
])
def test_wrong_arguments_are_named(change, message):
  """Fails if a wrong argument ends in a traceback."""
  data = draw()
  options = {k: v for k, v in change.items() if k not in data}
  data |= {k: v for k, v in change.items() if k in data}
  with pytest.raises(UserError, match=message):
    predict('anil', data, **options)
