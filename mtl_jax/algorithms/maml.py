"""MAML (Finn, Abbeel & Levine, ICML 2017).

    min over theta of  mean_t  L(theta_t; query_t),
    theta_t = theta after a few steps of descent on L(.; support_t)

Body and head adapt, few steps keep them near theta, and the gradient goes
through the steps. Options move it along the table's axes: `adapts` (the last
layer makes it ANIL), `inner_l2`, `first_order`, and learned rates.
"""

import jax
import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import base, network
from mtl_jax.errors import UserError, check_choice
from mtl_jax.solvers import inner_loop

ADAPTS = {'all': ('backbone', 'head'), 'last': ('head',)}
LEARNED = ('none', 'shared', 'per_parameter')
BATCH_NORM = ('transductive', 'support', 'each_query', 'running')


def options():
  """Returns MAML's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  c.adapts = 'all'  # or 'last': the head alone
  c.inner_steps = 5  # in training
  c.test_steps = 10
  # Of the mean cross-entropy. The public code takes the sum over the examples
  # over K, so that its 0.01 is N times that: 0.05.
  c.inner_rate = 0.05
  # Whether the rate is trained: 'none', 'shared' (one number), or
  # 'per_parameter' (Meta-SGD).
  c.learned_rate = 'none'
  c.inner_l2 = 0.  # times 1/2 |theta_t - theta|^2, in the inner loss
  c.first_order = False
  c.loss = 'cross_entropy'  # or 'squared'
  # Query images are a batch of their own in training and test, as published.
  c.batch_norm = 'transductive'
  c.remat = False  # compute steps again in place of keeping them
  c.unroll = True  # compile inner steps one behind the other
  return c


_RUNS = {  # (N times the rate, meta-batch, inner steps, queries)
    ('mini_imagenet', 5): (0.05, 4, 5, 15),
    ('mini_imagenet', 1): (0.05, 4, 5, 15),
    ('cifar_fs', 5): (0.05, 4, 5, 15), ('cifar_fs', 1): (0.05, 4, 5, 15),
    ('omniglot', 1): (2., 32, 1, 1),
}


# Ours, for the small benchmarks: few steps at a high rate.
SMALL = base.SMALL_ALL_LAYERS | {
    'method.inner_steps': 3, 'method.test_steps': 5,
    'method.inner_rate': 0.4, 'optimizer.clip': 0.,
}


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  ours = (benchmark, shots) not in _RUNS
  rate, meta_batch, steps, queries = _RUNS[
      ('mini_imagenet', 5) if ours else (benchmark, shots)]
  overrides = {
      'train.ways': 5, 'train.shots': shots, 'train.queries': queries,
      'train.meta_batch': meta_batch, 'train.epoch_tasks': 2000,
      'train.max_epochs': 30 * meta_batch, 'train.stop_patience': 0,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.schedule': 'constant',
      'optimizer.clip': 10. if benchmark != 'omniglot' else 0.,
      'method.inner_rate': rate, 'method.inner_steps': steps,
      'method.test_steps': 10,
  } | base.OWN_TEST
  where = 'cbfinn/maml main.py (4 convolutions of 32 channels, no selection)'
  if benchmark == 'cifar_fs':
    where = 'ArnoutDevos/maml-cifar-fs, after ' + where
  return base.settings(benchmark, overrides, SMALL, where, ours)


def build(backbone, num_classes, ways, *, adapts, inner_steps, test_steps,
          inner_rate, learned_rate, inner_l2, first_order, loss, batch_norm,
          remat, unroll):
  """Returns MAML over a backbone; see `options` for the keywords."""
  del num_classes
  check_choice('config.method.adapts', adapts, ADAPTS)
  check_choice('config.method.learned_rate', learned_rate, LEARNED)
  check_choice('config.method.loss', loss, network.LOSSES)
  check_choice('config.method.batch_norm', batch_norm, BATCH_NORM)
  check_inner(inner_steps, test_steps, inner_rate, inner_l2)
  part = lambda params: {name: params[name] for name in ADAPTS[adapts]}

  def init(key, images):
    variables = network.init_with_head(backbone, ways)(key, images)
    params = variables['params']
    if learned_rate == 'shared':
      params['rate'] = jnp.float32(inner_rate)
    if learned_rate == 'per_parameter':
      params['rate'] = jax.tree.map(
          lambda p: jnp.full_like(p, inner_rate), part(params))
    return variables

  def inner(variables, support_x, support_y, steps, mode):
    """Returns (parameters after the inner loop, statistics before it)."""
    params = variables['params']
    end, statistics = network.descend(
        network.support_loss(backbone, variables, support_x, support_y,
                             batch_norm, mode, loss),
        part(params), inner_loop.rate(params.get('rate', inner_rate)),
        steps=steps, l2=inner_l2, first_order=first_order, remat=remat,
        unroll=unroll)
    return {**params, **end}, statistics

  def task_loss(variables, key, episode, tasks_seen):
    mode = network.Mode(True, key, tasks_seen)
    params, statistics = inner(variables, episode.support_x,
                               episode.support_y, inner_steps, mode)
    value, scored = network.query_loss(
        backbone, params, variables['batch_stats'], episode, batch_norm,
        mode.at(inner_steps), loss)
    return value, network.aux(statistics, *scored)

  def adapt(variables, key, support_x, support_y, num_ways):
    del key, num_ways  # nothing random; the head has as many as in training
    params, _ = inner(variables, support_x, support_y, test_steps,
                      network.TEST)
    return network.Adapted(params, variables['batch_stats'], support_x)

  return base.Algorithm(init, task_loss, network.features_function(backbone),
                        adapt, network.predict_adapted(backbone, batch_norm))


def check_inner(inner_steps, test_steps, inner_rate, inner_l2=0.):
  """Raises UserError for an inner loop that cannot be meant."""
  for name, value in (('inner_steps', inner_steps),
                      ('test_steps', test_steps)):
    if value < 1:
      raise UserError(f'config.method.{name} is {value}: must be at least 1')
  if not inner_rate > 0:
    raise UserError(f'config.method.inner_rate is {inner_rate}: must be above '
                    '0')
  if inner_l2 < 0:
    raise UserError(f'config.method.inner_l2 is {inner_l2}: must be at least '
                    '0')
