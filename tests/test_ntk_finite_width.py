"""Training of finite networks, its closed form in steps, and the fit."""

import jax
import jax.numpy as jnp
import ntk_linear
import numpy as np
import pytest
from etils import epath

from mtl_jax import ntk
from mtl_jax.errors import UserError
from mtl_jax.ntk.checks import CHECKS, finite_width, networks
from mtl_jax.ntk.flow import Steps

OPTIONS = {
    'widths': (256, 260), 'depths': (1,), 'draws': 2, 'tasks': 2,
    'queries': 3, 'support': 2, 'test_points': 3, 'dims': 4,
    'train_steps': 3, 'inner_steps': 2, 'test_steps': 2}
SMALL = finite_width.settle(OPTIONS)
CHECK = CHECKS['finite_width']


def by_hand(method, tasks, head, body, outputs, steps):
  """Trains a network of two layers by the theory's own losses."""
  def output(params, x):
    halves = []
    for side in ('left', 'right'):
      first, second = (params['body'][side][f'kernel_{i}'] for i in (0, 1))
      h = jnp.maximum(np.sqrt(2) * x @ first, 0)
      h = jnp.maximum(h @ second * np.sqrt(2 / len(second)), 0)
      halves.append(h / np.sqrt(2 * len(second)))
    return jnp.concatenate(halves, 1) @ params['head']

  def half_squares(params, x, y):
    return jnp.sum((output(params, x) - jnp.eye(outputs)[y]) ** 2) / 2

  def adapt(params, x, y, steps):
    for _ in range(steps.count):
      slope = jax.grad(half_squares)(params, x, y)['head']
      params = {**params, 'head': params['head'] - steps.rate * slope}
    return params

  def loss(params):
    total = 0
    for i in range(len(tasks.query_x)):
      mine = {'body': params['body'],
              'head': params['head'][i] if method == 'mtl' else params['head']}
      if method == 'anil':
        mine = adapt(mine, tasks.support_x[i], tasks.support_y[i], steps.inner)
      total += half_squares(mine, tasks.query_x[i], tasks.query_y[i])
    return total

  heads = [head] * len(tasks.query_x) if method == 'mtl' else head
  params, slope = {'body': body, 'head': heads}, jax.jit(jax.grad(loss))
  for _ in range(steps.train.count):
    params = jax.tree.map(lambda p, g: p - steps.train.rate * g, params,
                          slope(params))
  new = {'body': params['body'],
         'head': head if method == 'mtl' else params['head']}
  new = adapt(new, tasks.test_support_x, tasks.test_support_y, steps.test)
  return output(new, tasks.test_query_x)


def test_methods_train_what_the_theory_says():
  """Fails if a method trains another loss, an intercept or other heads."""
  o = SMALL._replace(train_time=0.6)
  tasks = jax.tree.map(
      lambda a: jnp.asarray(a, a.dtype if a.dtype == np.int32 else 'float32'),
      finite_width.draw_tasks(o))
  initial = networks.start(jax.random.key(0), 6, 2, o.dims, o.outputs)
  steps = finite_width.descent(o)
  got = networks.train(tasks, initial, 6, 2, o.outputs, steps)
  for method in ('anil', 'mtl'):
    expected = by_hand(method, tasks, initial['head'], initial['backbone'],
                       o.outputs, steps)
    np.testing.assert_allclose(getattr(got, method), expected, atol=2e-5)
  # Without any training the two would be equal.
  assert np.abs(got.anil - got.mtl).max() > 0.02


def test_output_is_zero_at_the_start():
  """Fails if networks have an offset that the closed form lacks."""
  initial = networks.start(jax.random.key(0), 16, 2, 4, 3)
  x = jax.random.normal(jax.random.key(1), (5, 4))
  out = networks.Pair(16, 2).apply(
      {'params': initial['backbone']}, x, train=False) @ initial['head']
  np.testing.assert_allclose(out, 0, atol=1e-6)
  assert np.abs(np.corrcoef(initial['head'][:16].T) - np.eye(3)).max() < 0.9


@pytest.mark.parametrize('method', ['anil', 'mtl'])
def test_steps_in_closed_form_are_steps_of_the_linear_model(method):
  """Fails if the factor (1 - rate s)^count is in the wrong place."""
  rng = np.random.default_rng(0)

  def sphere(*shape):
    x = rng.normal(size=(*shape, 5))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  data = {'query_x': sphere(2, 3), 'query_y': rng.normal(size=(2, 3, 2)),
          'support_x': sphere(2, 2), 'support_y': rng.normal(size=(2, 2, 2)),
          'test_query_x': sphere(4), 'test_support_x': sphere(2),
          'test_support_y': rng.normal(size=(2, 2))}
  train, inner, test = Steps(0.05, 7), Steps(0.2, 3), Steps(0.3, 2)
  with jax.enable_x64(True):
    expected = steps_by_hand(method, data, train, inner, test)
  got = ntk.predict(method, **data, depth=ntk_linear.DEPTH, train_time=train,
                    inner_time=inner, test_time=test, dtype='float64').values
  np.testing.assert_allclose(got, expected, atol=1e-9)


def steps_by_hand(method, data, train, inner, test):
  """Gradient steps of the linear model that has the kernels as products."""
  features = ntk_linear.linear_network(data)
  tasks, size = len(data['query_y']), features['query_x'][0].shape[1]
  of_task = lambda name, i: tuple(
      part.reshape(tasks, -1, size)[i] for part in features[name])

  def adapt(params, features, targets, steps):
    for _ in range(steps.count):
      residual = targets - ntk_linear.output(features, params)
      params = {**params, 'head': params['head']
                + steps.rate * features[1].T @ residual}
    return params

  def loss(params):
    total = 0
    for i in range(tasks):
      mine = {'body': params['body'], 'head': params['head'][i]}
      if method == 'anil':
        mine['head'] = params['head'][0]
        mine = adapt(mine, of_task('support_x', i), data['support_y'][i], inner)
      error = data['query_y'][i] - ntk_linear.output(
          of_task('query_x', i), mine)
      total += jnp.sum(error ** 2) / 2
    return total

  params = {'body': jnp.zeros((size, 2)), 'head': jnp.zeros((tasks, size, 2))}
  slope = jax.jit(jax.grad(loss))
  for _ in range(train.count):
    params = jax.tree.map(lambda p, g: p - train.rate * g, params,
                          slope(params))
  new = {'body': params['body'],
         'head': params['head'][0] * (method == 'anil')}
  new = adapt(new, features['test_support_x'], data['test_support_y'], test)
  return np.asarray(ntk_linear.output(features['test_query_x'], new))


def test_fit_finds_exponents_and_rejects_another():
  """Fails if the fit uses squares or narrow widths, or a wide interval."""
  rng = np.random.default_rng(0)
  widths = np.array([64, 256, 512, 1024])
  for exponent in (-0.5, -1.):
    covered = 0
    for _ in range(40):
      squares = (widths[:, None] ** (2. * exponent)
                 * rng.chisquare(8, size=(4, 24)) / 8)
      squares[0] *= 100  # too narrow to count
      fitted = finite_width.fit(widths, squares)
      low, high = fitted['interval']
      assert low < fitted['slope'] < high
      assert high - low < 0.5
      covered += low <= exponent <= high
    assert 33 <= covered


def test_run_resumes_where_it_was_stopped(tmp_path, monkeypatch):
  """Fails if a long run starts anew, or mixes draws of other options."""
  trained = []
  rng = np.random.default_rng(0)

  def fake(tasks, initial, width, *args):
    trained.append(width)
    return networks.Trained(*rng.normal(size=(2, 3, SMALL.outputs)))

  monkeypatch.setattr(networks, 'train', fake)
  folder = epath.Path(tmp_path / 'run')
  CHECK.run(OPTIONS, folder)
  assert trained == [256, 256, 260, 260]
  result = CHECK.run({**OPTIONS, 'draws': 3}, folder)
  assert trained[4:] == [256, 260]
  assert result['holds'] is False and result['told'] is False
  for name, _ in CHECK.figures(result, folder):
    assert (folder / name).read_bytes().startswith(b'\x89PNG')
  text = CHECK.summary(result)
  assert 'Verdict: undecided: a 95% interval of an exponent is wider' in text
  assert CHECK.verdict(result) in text
  with pytest.raises(UserError, match='holds --queries=3, not 4'):
    CHECK.run({**OPTIONS, 'queries': 4}, folder)


@pytest.mark.parametrize('change, message', [
    ({'widths': (64, 256)}, '--widths: two from 256'),
    ({'draws': 1}, '--draws is 1: must be at least 2'),
    ({'inner_time': 0.}, '--inner_time is 0.0: must be above 0')])
def test_wrong_options_are_named(change, message, tmp_path):
  """Fails if a slope is fitted through one point, or a traceback shown."""
  with pytest.raises(UserError, match=message):
    CHECK.run({**OPTIONS, **change}, epath.Path(tmp_path))
