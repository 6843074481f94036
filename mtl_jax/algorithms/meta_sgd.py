"""Meta-SGD (Li, Zhou, Chen & Li, 2017): MAML with a learned rate a number."""

import jax
import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import base, maml, network
from mtl_jax.errors import check_choice
from mtl_jax.solvers import inner_loop


def options():
  """Returns Meta-SGD's own fields with their defaults."""
  return ml_collections.ConfigDict({
      'inner_rate': 0.05, 'batch_norm': 'transductive'})


def published(benchmark, shots):
  """Returns MAML's settings, from which the paper departs in the rates."""
  overrides, source, _ = maml.published(benchmark, shots)
  return base.Published({
      k: v for k, v in overrides.items()
      if k == 'method.inner_rate' or not k.startswith('method.')}, source, True)


def build(backbone, num_classes, ways, *, inner_rate, batch_norm):
  """Returns Meta-SGD over a backbone."""
  check_choice('config.method.batch_norm', batch_norm, maml.BATCH_NORM)

  def init(key, images):
    variables = network.init_with_head(backbone, ways)(key, images)
    params = variables['params']
    rates = jax.tree.map(lambda p: jnp.full_like(p, inner_rate), params)
    return {**variables, 'params': {**params, 'rates': rates}}

  def adapted(variables, support_x, support_y, mode):
    start = {k: variables['params'][k] for k in ('backbone', 'head')}
    end, statistics = network.descend(
        network.support_loss(backbone, variables, support_x, support_y,
                             batch_norm, mode),
        start, inner_loop.rate(variables['params']['rates']), steps=1)
    return (network.Adapted(end, variables['batch_stats'], support_x),
            statistics)

  def loss(variables, key, episode, tasks_seen):
    mode = network.Mode(True, key, tasks_seen)
    end, statistics = adapted(variables, episode.support_x,
                              episode.support_y, mode)
    value, scored = network.query_loss(
        backbone, end.params, end.batch_stats, episode, batch_norm, mode)
    return value, network.aux(statistics, *scored)

  def adapt(variables, key, support_x, support_y, num_ways):
    return adapted(variables, support_x, support_y, network.TEST)[0]

  return base.Algorithm(init, loss, network.features_function(backbone), adapt,
                        network.predict_adapted(backbone, batch_norm))
