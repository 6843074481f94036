"""Optimizers and schedules, against the published formulas."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from etils import epath

from mtl_jax.config import base_config
from mtl_jax.run import loop, metrics
from mtl_jax.train import optimizer


def settings(**changes):
  c = base_config().optimizer
  c.update(changes)
  return c


def published_radam(gradients, rate, beta1=0.9, beta2=0.999, eps=1e-8):
  """Liu et al. 2020, algorithm 2, as MTL's optimizer library codes it."""
  w, m, v = 0., 0., 0.
  n_max = 2 / (1 - beta2) - 1
  path = []
  for t, g in enumerate(gradients, 1):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    n = n_max - 2 * t * beta2 ** t / (1 - beta2 ** t)
    if n >= 5:
      size = np.sqrt((1 - beta2 ** t) * (n - 4) / (n_max - 4) * (n - 2) / n
                     * n_max / (n_max - 2)) / (1 - beta1 ** t)
      w -= rate * size * m / (np.sqrt(v) + eps)
    else:
      w -= rate / (1 - beta1 ** t) * m
    path.append(w)
  return np.array(path)


def published_sgd(gradients, rate, momentum, decay, nesterov):
  """Sutskever et al. 2013 in torch's form, L2 decay through the momentum."""
  w, buffer, path = 0.5, 0., []
  for g in gradients:
    g = g + decay * w
    buffer = momentum * buffer + g
    w -= rate * (g + momentum * buffer if nesterov else buffer)
    path.append(w)
  return np.array(path)


def run(c, gradients, start):
  transform = optimizer.build(c)
  w = jnp.float32(start)
  state = transform.init(w)
  path = []
  for g in gradients:
    updates, state = transform.update(jnp.float32(g), state, w)
    w = optax.apply_updates(w, -c.learning_rate * updates)
    path.append(float(w))
  return np.array(path)


def test_radam_follows_the_published_steps_through_its_warm_up():
  gradients = np.random.default_rng(0).normal(size=40) + 0.3
  ours = run(settings(name='radam', learning_rate=1e-2), gradients, 0.)
  # In float32, 1 - beta2^t at small t has four digits.
  np.testing.assert_allclose(ours, published_radam(gradients, 1e-2),
                             rtol=1e-3)


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_decays_through_the_momentum(nesterov):
  gradients = np.random.default_rng(1).normal(size=20)
  c = settings(name='sgd', learning_rate=0.1, momentum=0.9,
               weight_decay=0.05, nesterov=nesterov)
  np.testing.assert_allclose(
      run(c, gradients, 0.5),
      published_sgd(gradients, 0.1, 0.9, 0.05, nesterov), rtol=1e-4)


def published_adam(gradients, rate, beta1, beta2, eps):
  """Kingma & Ba 2015, algorithm 1, from 0."""
  w, m, v, path = 0., 0., 0., []
  for t, g in enumerate(gradients, 1):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    w -= rate * m / (1 - beta1 ** t) / (np.sqrt(v / (1 - beta2 ** t)) + eps)
    path.append(w)
  return np.array(path)


def test_adam_takes_its_fields():
  gradients = np.random.default_rng(2).normal(size=20) + 0.3
  c = settings(name='adam', learning_rate=0.1, weight_decay=0., beta1=0.5,
               beta2=0.9, epsilon=0.1)
  np.testing.assert_allclose(run(c, gradients, 0.), published_adam(
      gradients, 0.1, 0.5, 0.9, 0.1), rtol=1e-4)


def test_each_number_is_clipped_before_decay_and_momentum():
  gradients = np.array([2., -0.3, -5.])
  c = settings(name='sgd', learning_rate=1., momentum=0.9, weight_decay=0.5,
               nesterov=False, clip=0.6)
  np.testing.assert_allclose(run(c, gradients, 0.5), published_sgd(
      np.clip(gradients, -0.6, 0.6), 1., 0.9, 0.5, False), rtol=1e-5)
  step = optimizer.build(c)
  two = jnp.array([3., -0.2])  # a norm would scale the second, too
  np.testing.assert_allclose(step.update(
      two, step.init(0 * two), 0 * two)[0], [0.6, -0.2], rtol=1e-6)


def test_adam_decay_is_decoupled():
  c = settings(name='adam', learning_rate=0.1, weight_decay=0.5)
  # No gradient: only the decay moves the weight.
  np.testing.assert_allclose(run(c, [0., 0.], 1.), [0.95, 0.95 ** 2],
                             rtol=1e-6)


@pytest.mark.parametrize('changes, expected', [
    ({'schedule': 'constant'}, {0: 1., 999: 1.}),
    # MetaOptNet: 20 epochs at 1, then .06, .012, .0024.
    ({'schedule': 'step', 'step_epochs': (20, 40, 50),
      'step_scales': (.06, .012, .0024)},
     {0: 1., 199: 1., 200: .06, 399: .06, 400: .012, 500: .0024, 600: .0024}),
    ({'schedule': 'cosine', 'decay_epochs': 10, 'warmup_epochs': 0},
     {0: 1., 50: .5, 100: 0., 150: 0.}),
    ({'schedule': 'cosine', 'decay_epochs': 12, 'warmup_epochs': 2},
     {0: 0., 10: .5, 20: 1., 70: .5, 120: 0.}),
    ({'schedule': 'linear', 'decay_epochs': 10}, {0: 1., 50: .5, 100: 0.}),
])
def test_schedules_count_in_epochs(changes, expected):
  rate = optimizer.schedule(settings(learning_rate=2., **changes),
                            steps_per_epoch=10)
  # However validation went: what counts its epochs is of `plateau` alone.
  fallen = optimizer.init_plateau().replace(scale=jnp.float32(.01))
  for step, scale in expected.items():
    np.testing.assert_allclose(float(rate(jnp.int32(step), fallen)), 2. * scale,
                               atol=1e-6, err_msg=f'step {step}')


def test_plateau_schedule_has_the_rate_that_validation_left():
  rate = optimizer.schedule(settings(learning_rate=2., schedule='plateau'), 10)
  state = optimizer.init_plateau()
  assert float(rate(jnp.int32(999), state)) == 2.
  fallen = state.replace(scale=jnp.float32(.125))
  assert float(rate(jnp.int32(0), fallen)) == .25


def test_plateau_falls_after_patience_and_only_real_gains_count():
  c = types.SimpleNamespace(plateau_threshold=1e-2, plateau_patience=2,
                            plateau_factor=0.1)
  scores = [.5, .504, .504, .504, .6, .59, .59, .59, .59, .59, .59]
  # .504 is no gain of 1%: the rate falls at the third such epoch; after a
  # fall the count starts anew, and .6 starts it anew as well.
  scales = [1, 1, 1, .1, .1, .1, .1, .01, .01, .01, .001]
  state = optimizer.init_plateau()
  update = jax.jit(lambda s, x: optimizer.update_plateau(s, x, c))
  for score, scale in zip(scores, scales, strict=True):
    state = update(state, score)
    np.testing.assert_allclose(float(state.scale), scale, rtol=1e-5)


def test_plateau_counts_a_negative_score_as_a_gain_only_upwards():
  c = types.SimpleNamespace(plateau_threshold=1e-2, plateau_patience=0,
                            plateau_factor=0.5)
  state = optimizer.update_plateau(optimizer.init_plateau(), -1., c)
  assert float(state.scale) == 1.
  assert float(optimizer.update_plateau(state, -.9, c).scale) == 1.
  assert float(optimizer.update_plateau(state, -1., c).scale) == .5


@pytest.mark.parametrize('schedule, rates', [
    ('constant', [1e-3, 1e-3, 1e-3]), ('plateau', [1e-3, 1e-3, 1e-4])])
def test_only_the_plateau_lowers_the_rate_of_a_run(schedule, rates, tmp_path):
  """Fails if a run that never gains falls though its schedule is constant."""
  loop.train_and_evaluate(tiny_run.config_of(
      optimizer__schedule=schedule, optimizer__learning_rate=1e-3,
      optimizer__plateau_patience=0, optimizer__plateau_threshold=100.,
      train__epoch_tasks=2, train__max_epochs=3), tmp_path / 'run')
  records = metrics.read(epath.Path(tmp_path / 'run'))
  np.testing.assert_allclose(
      [r['learning_rate'] for r in records if 'learning_rate' in r], rates,
      rtol=1e-6)
