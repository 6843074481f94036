"""What methods share: passes through the backbone, and the loss of a task.

Parameters are {'backbone': .., ..}; variables are {'params', 'batch_stats'}.

BatchNorm. Which statistics normalise the query images decides what a method
may know, and so what its score means. It is a field of every method,
`batch_norm`, and is printed beside every score:

  'running'       batch statistics in training, running ones at test time
  'support'       those of the task's support images
  'each_query'    of the support and one query image, for each query image
  'transductive'  of the query images themselves, a batch without the support
  'episode'       of support and query images together, one batch

Under the last two the other query images influence a prediction. Under all
but 'running' the support is normalised by its own statistics (with the query
under 'episode').
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.algorithms.base import Aux
from mtl_jax.heads import gradient, logistic
from mtl_jax.models import layers
from mtl_jax.solvers import inner_loop

LOSSES = ('cross_entropy', 'squared')
BATCH_NORM = ('running', 'support', 'each_query', 'transductive', 'episode')


class Mode(NamedTuple):
  """Whether a pass trains, and what training needs."""

  train: bool = False
  key: Any = None  # of dropout
  tasks_seen: Any = 0

  def at(self, i):
    """Returns the mode of pass i, which drops other values."""
    if self.key is None:
      return self
    return self._replace(key=jax.random.fold_in(self.key, i))


TEST = Mode()


def init(backbone, key, images):
  """Returns (variables of the backbone alone, D, key for what is added).

  All methods start from the same backbone for the same key.
  """
  body_key, rest = jax.random.split(key)
  variables = backbone.init(body_key, images, train=False)
  dim = jax.eval_shape(
      lambda: backbone.apply(variables, images, train=False)).shape[-1]
  return {'params': {'backbone': variables['params']},
          'batch_stats': variables.get('batch_stats', {})}, dim, rest


def init_head(key, dim, ways):
  """Draws a linear head: weights [D, N] as Glorot & Bengio (2010), bias 0."""
  return {'weights': jax.nn.initializers.glorot_uniform()(key, (dim, ways)),
          'bias': jnp.zeros(ways)}


def forward(backbone, params, batch_stats, images, mode, *, own=True):
  """Returns (features [B, D], the statistics that normalised them).

  Args:
    params: with 'backbone'.
    batch_stats: statistics to normalise with, unless `own`.
    images: [B, h, w, c], one batch.
    mode: Mode.
    own: whether BatchNorm takes the statistics of these images.
  """
  features, mutated = backbone.apply(
      {'params': params['backbone'], 'batch_stats': batch_stats}, images,
      train=mode.train, own_statistics=own, tasks_seen=mode.tasks_seen,
      mutable=['batch_stats'],
      rngs={'dropout': mode.key} if mode.train else {})
  return features, mutated.get('batch_stats', batch_stats)


def support_pass(backbone, params, batch_stats, support_x, how, mode):
  """Returns (features of the support images, their statistics)."""
  return forward(backbone, params, batch_stats, support_x, mode,
                 own=mode.train or how != 'running')


def query_pass(backbone, params, batch_stats, support_x, query_x, how, mode):
  """Returns the features of the query images [Q, D] under `how`."""
  own = lambda images: forward(backbone, params, batch_stats, images, mode)[0]
  if how == 'transductive' or (how == 'running' and mode.train):
    return own(query_x)
  if how == 'episode':
    return own(jnp.concatenate([support_x, query_x]))[len(support_x):]
  if how == 'each_query':
    return jax.vmap(lambda image: own(
        jnp.concatenate([support_x, image[None]]))[-1])(query_x)
  if how == 'support':
    batch_stats = forward(backbone, params, batch_stats, support_x, mode)[1]
  return forward(backbone, params, batch_stats, query_x, mode, own=False)[0]


def task_pass(backbone, params, batch_stats, support_x, query_x, how, mode):
  """Returns (support features, query features, statistics), one network.

  For methods that adapt nothing below the head. In training 'running' and
  'episode' take support and query as one batch.
  """
  if how == 'episode' or (how == 'running' and mode.train):
    features, statistics = forward(
        backbone, params, batch_stats,
        jnp.concatenate([support_x, query_x]), mode)
    return features[:len(support_x)], features[len(support_x):], statistics
  support, statistics = support_pass(backbone, params, batch_stats, support_x,
                                     how, mode)
  return support, query_pass(backbone, params, batch_stats, support_x,
                             query_x, how, mode), statistics


def features_function(backbone):
  """Returns Algorithm.features: running statistics, nothing dropped."""
  def features(variables, images):
    return forward(backbone, variables['params'], variables['batch_stats'],
                   images, TEST, own=False)[0]
  return features


def example_losses(name, logits, targets, smoothing=0.):
  """Returns the loss of each example, [B].

  Args:
    name: 'cross_entropy', or 'squared': half the sum over outputs of
      (logit - one-hot)^2.
    logits: [B, N].
    targets: int [B].
    smoothing: e; a target is 1 - e, the others share e.
  """
  ways = logits.shape[-1]
  wanted = jax.nn.one_hot(targets, ways, dtype=logits.dtype)
  if smoothing:
    wanted = wanted * (1 - smoothing) + (1 - wanted) * smoothing / (ways - 1)
  if name == 'squared':
    return 0.5 * jnp.sum((logits - wanted) ** 2, axis=-1)
  return optax.softmax_cross_entropy(logits, wanted)


def aux(batch_stats, values, logits, targets, **means):
  """Returns Aux of a task; `means` are further numbers [] to average."""
  count = jnp.float32(targets.size)
  hits = jnp.sum(jnp.argmax(logits, axis=-1) == targets)
  return Aux(batch_stats, {
      'loss': (jnp.sum(values), count),
      'accuracy': (hits.astype(jnp.float32), count),
      **{name: (jnp.float32(value), jnp.float32(1))
         for name, value in means.items()}})


# --- Methods that adapt a backbone and its linear head. ---


class Adapted(NamedTuple):
  """What `predict` needs of a task whose network has adapted."""

  params: Any
  batch_stats: Any
  support_x: Any


def init_with_head(backbone, ways):
  """Returns Algorithm.init: {'backbone', 'head'}."""
  def init_fn(key, images):
    variables, dim, head_key = init(backbone, key, images)
    variables['params']['head'] = init_head(head_key, dim, ways)
    return variables
  return init_fn


def support_loss(backbone, variables, support_x, support_y, how, mode,
                 loss='cross_entropy'):
  """Returns (values, i) -> (mean loss [], statistics) for inner_loop.descend.

  `values` take the place of those of variables' parameters that adapt.
  """
  def function(values, i):
    params = {**variables['params'], **values}
    features, statistics = support_pass(
        backbone, params, variables['batch_stats'], support_x, how,
        mode.at(i))
    losses = example_losses(loss, gradient.logits(params['head'], features),
                            support_y)
    return jnp.mean(losses), statistics
  return function


def adapted_logits(backbone, params, batch_stats, support_x, query_x, how,
                   mode):
  """Returns the logits of the query images [Q, N]."""
  return gradient.logits(params['head'], query_pass(
      backbone, params, batch_stats, support_x, query_x, how, mode))


def descend(loss, start, optimizer, **options):
  """Returns (end of inner_loop.descend, BatchNorm statistics at its start)."""
  end, statistics = inner_loop.descend(loss, start, optimizer, **options)
  return end, jax.tree.map(lambda s: s[0], statistics)


def query_loss(backbone, params, batch_stats, episode, how, mode,
               loss='cross_entropy'):
  """Returns (mean loss on the query, (losses [Q], logits, labels))."""
  logits = adapted_logits(backbone, params, batch_stats, episode.support_x,
                          episode.query_x, how, mode)
  values = example_losses(loss, logits, episode.query_y)
  return jnp.mean(values), (values, logits, episode.query_y)


def predict_adapted(backbone, how):
  """Returns Algorithm.predict for Adapted."""
  return lambda adapted, query_x: adapted_logits(
      backbone, *adapted, query_x, how, TEST)


# --- Methods that adapt nothing below the head. ---


class LastLayer(NamedTuple):
  """What such a method is made of; see base.Algorithm."""

  loss: Any
  adapt: Any
  predict: Any


def last_layer(backbone, how, fit, logits, losses):
  """Returns the LastLayer of a head; see base.Algorithm for the functions.

  Args:
    backbone: Flax module.
    how: one of BATCH_NORM.
    fit: (params, features [S, D], labels [S], num_ways) -> head.
    logits: (params, head, features [Q, D]) -> [Q, N].
    losses: (logits [Q, N], labels [Q]) -> [Q].
  """
  def loss(variables, key, episode, tasks_seen):
    params = variables['params']
    support, query, statistics = task_pass(
        backbone, params, variables['batch_stats'], episode.support_x,
        episode.query_x, how, Mode(True, key, tasks_seen))
    ways = episode.class_ids.shape[0]
    out = logits(params, fit(params, support, episode.support_y, ways), query)
    values = losses(out, episode.query_y)
    return jnp.mean(values), aux(statistics, values, out, episode.query_y)

  def adapt(variables, key, support_x, support_y, num_ways):
    del key  # nothing random
    adapted = {'variables': variables, 'support_x': support_x}
    if how == 'episode':
      # The support's features depend on the query: fitted in `predict`.
      return adapted | {'support_y': support_y, 'ways': jnp.zeros(num_ways)}
    features = support_pass(backbone, variables['params'],
                            variables['batch_stats'], support_x, how, TEST)[0]
    return adapted | {
        'head': fit(variables['params'], features, support_y, num_ways)}

  def predict(adapted, query_x):
    params = adapted['variables']['params']
    args = (backbone, params, adapted['variables']['batch_stats'],
            adapted['support_x'], query_x, how, TEST)
    if how != 'episode':
      return logits(params, adapted['head'], query_pass(*args))
    support, query, _ = task_pass(*args)
    head = fit(params, support, adapted['support_y'], len(adapted['ways']))
    return logits(params, head, query)

  return LastLayer(loss, adapt, predict)


def new_head(features, C):
  """Returns (adapt, predict): logistic regression on unit-length features."""
  def adapt(variables, key, support_x, support_y, num_ways):
    del key  # convex: nothing random
    support = layers.unit_norm(features(variables, support_x))
    return variables, logistic.fit(support, support_y, num_ways, C=C)

  def predict(adapted, query_x):
    variables, head = adapted
    return logistic.logits(
        head, layers.unit_norm(features(variables, query_x)))

  return adapt, predict
