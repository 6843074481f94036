"""R2D2 (Bertinetto, Henriques, Torr & Vedaldi, ICLR 2019).

    min over theta, s, b of  mean_t  CE(s <w_t, [f_theta(x), 1]> + b, y),
    w_t = ridge regression on the support, in closed form

The last layer adapts, regularised by l2; the gradient goes through the solve.
"""

import jax
import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import base, network
from mtl_jax.errors import UserError, check_choice
from mtl_jax.heads import ridge

BATCH_NORM = ('running', 'episode')


def options():
  """Returns R2D2's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  # Of ridge regression on features and labels over sqrt(S), so that it counts
  # S times on the sum of squares; the intercept is penalised, as published.
  c.regulariser = 50.
  c.scale = 10.  # initial factor of the outputs, trained; mini-ImageNet 1e-4
  c.shift = 0.  # initial shift of the outputs, trained
  # Shots of a training task: 0, train.shots; n, drawn from 1..n, and what is
  # left of its train.shots + train.queries images a class is query.
  c.max_shots = 0
  # Support and query are one batch in training; running statistics at test.
  c.batch_norm = 'running'
  return c


_RUNS = {  # (ways, images a class, initial scale), experiments.sh
    'mini_imagenet': (16, 15, 1e-4), 'cifar_fs': (20, 12, 10.),
    'omniglot': (60, 10, 10.),
}
SMALL = base.SMALL_TRAINING | {'method.max_shots': 0, 'method.scale': 10.}


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  del shots  # one network for all
  ours = benchmark not in _RUNS
  ways, images, scale = _RUNS.get(benchmark, _RUNS['mini_imagenet'])
  overrides = {
      'train.ways': ways, 'train.shots': 1, 'train.queries': images - 1,
      'train.meta_batch': 1, 'train.epoch_tasks': 100,
      'train.max_epochs': 1200, 'train.stop_patience': 200,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 5e-3,
      'optimizer.schedule': 'step',
      'optimizer.step_epochs': tuple(range(20, 1200, 20)),
      'optimizer.step_scales': tuple(0.5 ** i for i in range(1, 60)),
      'method.scale': scale, 'method.max_shots': 9,
  } | base.OWN_TEST
  return base.settings(
      benchmark, overrides, SMALL,
      'bertinetto/r2d2 scripts/train (backbone: r2d2_net)', ours)


def build(backbone, num_classes, ways, *, regulariser, scale, shift,
          max_shots, batch_norm):
  """Returns R2D2 over a backbone; see `options` for the keywords."""
  del num_classes, ways
  check_choice('config.method.batch_norm', batch_norm, BATCH_NORM)
  if not regulariser > 0:
    raise UserError(f'config.method.regulariser is {regulariser}: must be '
                    'above 0')
  if max_shots < 0:
    raise UserError(f'config.method.max_shots is {max_shots}: must be at '
                    'least 0')

  def init(key, images):
    variables, _, _ = network.init(backbone, key, images)
    variables['params']['adjust'] = {'scale': jnp.float32(scale),
                                     'shift': jnp.float32(shift)}
    return variables

  def fit(params, features, labels, num_ways):
    del params
    return ridge.fit(features, labels, num_ways, regulariser=regulariser,
                     target=1., bias=True, average=True)

  def logits(params, head, features):
    adjust = params['adjust']
    return adjust['scale'] * ridge.logits(head, features) + adjust['shift']

  losses = lambda logits, labels: network.example_losses(
      'cross_entropy', logits, labels)
  parts = network.last_layer(backbone, batch_norm, fit, logits, losses)

  def loss_of_drawn_shots(variables, key, episode, tasks_seen):
    """As parts.loss, with the first drawn number of each class as support.

    Shapes are fixed: every image has a row, and those of the other side are
    zero, which changes no sum of the regression.
    """
    params = variables['params']
    num_ways = episode.class_ids.shape[0]
    images = jnp.concatenate([episode.support_x, episode.query_x])
    labels = jnp.concatenate([episode.support_y, episode.query_y])
    features, statistics = network.forward(
        backbone, params, variables['batch_stats'], images,
        network.Mode(True, key, tasks_seen))
    shots, queries = (len(y) // num_ways for y in (
        episode.support_y, episode.query_y))
    if max_shots >= shots + queries:
      raise UserError(
          f'config.method.max_shots is {max_shots}: must be below config.'
          f'train.shots + config.train.queries, {shots + queries}')
    number = jnp.concatenate([  # of an image within its class
        jnp.tile(jnp.arange(shots), num_ways),
        shots + jnp.tile(jnp.arange(queries), num_ways)])
    drawn = jax.random.randint(jax.random.fold_in(key, 1), (), 1,
                               max_shots + 1)
    support = (number < drawn).astype(features.dtype)
    rows = jnp.concatenate([features, jnp.ones_like(features[:, :1])], -1)
    head = ridge.fit(rows * support[:, None], labels, num_ways, target=1.,
                     regulariser=regulariser * drawn * num_ways)
    out = logits(params, head, rows)
    values = losses(out, labels) * (1 - support)
    count = jnp.sum(1 - support)
    hits = jnp.sum((jnp.argmax(out, -1) == labels) * (1 - support))
    return jnp.sum(values) / count, base.Aux(statistics, {
        'loss': (jnp.sum(values), count), 'accuracy': (hits, count)})

  return base.Algorithm(
      init, loss_of_drawn_shots if max_shots else parts.loss,
      network.features_function(backbone), parts.adapt, parts.predict)
