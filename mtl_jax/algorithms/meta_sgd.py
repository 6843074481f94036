"""Meta-SGD (Li, Zhou, Chen & Li, 2017): MAML, a learned rate per parameter.

MAML's learned_rate='per_parameter' with one step is the same, but for other
names in checkpoints and another dropout key of the query.
"""

import jax
import jax.numpy as jnp

from mtl_jax.algorithms import base, maml, network
from mtl_jax.fields import POSITIVE, Field
from mtl_jax.solvers import inner_loop

ANY_WAYS = False  # the head has as many outputs as in training
check = base.need_queries
OPTIONS = {
    'inner_rate': Field(0.05, 'where all rates start', POSITIVE),
    'batch_norm': Field('transductive', 'BatchNorm statistics of a task',
                        network.BATCH_NORM_ALL_LAYERS),
}
# MAML's, and those of benchmarks/search.py.
RECIPES = {key: recipe._replace(ours=True, overrides={
    field: value for field, value in recipe.overrides.items()
    if field == 'method.inner_rate' or not field.startswith('method.')
}) for key, recipe in (maml.RECIPES | base.cpu_recipes(
    maml.MINI, maml.CPU,
    {'small': {5: 275, 1: 880}, 'mini': {5: 465, 1: 1200}},
    maml.CHOSEN | {'mini_imagenet': {
        'optimizer.learning_rate': 1e-3, 'method.inner_rate': 0.05}},
)).items()}


def build(backbone, num_classes, ways, *, inner_rate, batch_norm):
  """Returns Meta-SGD over a backbone: one inner step; see OPTIONS."""
  body = network.Body(backbone, batch_norm)

  def init(key, images):
    variables = network.init_with_head(backbone, ways)(key, images)
    params = variables['params']
    rates = jax.tree.map(lambda p: jnp.full_like(p, inner_rate), params)
    return {**variables, 'params': {**params, 'rates': rates}}

  def adapted(variables, support_x, support_y, mode, example_weights=None):
    start = {k: variables['params'][k] for k in ('backbone', 'head')}
    end, statistics = network.descend(
        network.support_loss(body, variables, support_x, support_y, mode,
                             example_weights=example_weights),
        start, inner_loop.rate(variables['params']['rates']), steps=1)
    return network.Adapted({**variables, 'params': end}, support_x), statistics

  def loss(variables, key, episode, tasks_seen):
    mode = network.Mode(True, key, tasks_seen)
    end, statistics = adapted(variables, episode.support_x,
                              episode.support_y, mode)
    value, scored = network.query_loss(body, end.variables, episode, mode)
    return value, network.aux(statistics, scored)

  def adapt(variables, key, support_x, support_y, num_ways,
            example_weights=None):
    return adapted(variables, support_x, support_y, network.TEST,
                   example_weights)[0]

  return base.Algorithm(init, loss, network.features_function(backbone), adapt,
                        network.predict_adapted(body))
