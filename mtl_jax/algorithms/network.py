"""What methods share: passes through the backbone, and the loss of a task.

Parameters are {'backbone': .., ..}; variables are {'params', 'batch_stats'}.

BatchNorm. Which statistics normalise the query images decides what a method
may know, and so what its score means. It is a field of every method,
`batch_norm`, and is printed beside every score:

  'running'       batch statistics in training, running ones at test time
  'running_apart' the same; in training support and query are two batches
  'support'       those of the task's support images
  'each_query'    of the support and one query image, for each query image
  'transductive'  of the query images themselves, a batch without the support
  'episode'       of support and query images together, one batch

Under the last two, other query images influence a prediction. Under all
but the first two, the support is normalised by its own statistics (with the
query under 'episode').
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtl_jax.algorithms.base import Aux
from mtl_jax.heads import gradient
from mtl_jax.heads.options import weighted
from mtl_jax.solvers import inner_loop

LOSSES = ('cross_entropy', 'squared')
RUNNING = ('running', 'running_apart')
BATCH_NORM = (*RUNNING, 'support', 'each_query', 'transductive', 'episode')
# Where all layers adapt, the support passes through the network before any
# query is known.
BATCH_NORM_ALL_LAYERS = ('transductive', 'support', 'each_query', 'running')
# A method that draws random numbers in its loss folds the task's key with one
# of these. Dropout takes the key itself, or folds it with the number of the
# inner step (Mode.at), so that inner step 1 has the same number. It stays so,
# because runs of earlier versions must be repeatable to the bit. (Those with
# dropout are not under 'support', 'each_query' and 'transductive' if nothing
# below the head adapts: support and query dropped the same there.)
DRAWN_SHOTS = 1  # r2d2
INNER_BATCHES = 1  # minibatch_prox


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
  """Returns (variables of the backbone alone, D, key for other parameters).

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


class Body(NamedTuple):
  """A backbone, and which statistics normalise the images of a task."""

  backbone: Any  # Flax module
  batch_norm: str  # one of BATCH_NORM


def forward(backbone, variables, images, mode, *, own=True):
  """Returns (features [B, D], the statistics that normalised them).

  Args:
    backbone: Flax module.
    variables: 'params' with 'backbone'; 'batch_stats', the statistics to
      normalise with unless `own`.
    images: [B, h, w, c], one batch.
    mode: Mode.
    own: whether BatchNorm takes the statistics of these images.
  """
  batch_stats = variables['batch_stats']
  features, mutated = backbone.apply(
      {'params': variables['params']['backbone'], 'batch_stats': batch_stats},
      images, train=mode.train, own_statistics=own,
      tasks_seen=mode.tasks_seen, mutable=['batch_stats'],
      rngs={'dropout': mode.key} if mode.train else {})
  return features, mutated.get('batch_stats', batch_stats)


def support_pass(body, variables, support_x, mode):
  """Returns (features of the support images [S, D], their statistics)."""
  return forward(body.backbone, variables, support_x, mode,
                 own=mode.train or body.batch_norm not in RUNNING)


def query_pass(body, variables, support_x, query_x, mode, statistics=None):
  """Returns the features of the query images [Q, D].

  `statistics` are those of the support, where they are known.
  """
  how = body.batch_norm
  own = lambda images, mode=mode: forward(
      body.backbone, variables, images, mode)[0]
  if how == 'transductive' or (how == 'running' and mode.train):
    return own(query_x)
  if how == 'episode':
    return own(jnp.concatenate([support_x, query_x]))[len(support_x):]
  if how == 'each_query':
    return jax.vmap(lambda image, i: own(
        jnp.concatenate([support_x, image[None]]), mode.at(i))[-1])(
            query_x, jnp.arange(len(query_x)))
  if how == 'support':
    if statistics is None:
      statistics = forward(body.backbone, variables, support_x, mode)[1]
    variables = {**variables, 'batch_stats': statistics}
  return forward(body.backbone, variables, query_x, mode, own=False)[0]


def task_pass(body, variables, support_x, query_x, mode):
  """Returns (support features, query features, statistics), one network.

  For methods that adapt nothing below the head. In training 'running' and
  'episode' take support and query as one batch.
  """
  how = body.batch_norm
  if how == 'running_apart' and mode.train:
    support, first = forward(body.backbone, variables, support_x, mode)
    query, second = forward(body.backbone, variables, query_x, mode.at(1))
    return support, query, jax.tree.map(lambda a, b: (a + b) / 2, first,
                                        second)
  if how == 'episode' or (how == 'running' and mode.train):
    features, statistics = forward(
        body.backbone, variables, jnp.concatenate([support_x, query_x]), mode)
    return features[:len(support_x)], features[len(support_x):], statistics
  support, statistics = support_pass(body, variables, support_x, mode)
  query = query_pass(body, variables, support_x, query_x, mode.at(1),
                     statistics)
  return support, query, statistics


def features_function(backbone):
  """Returns Algorithm.features: running statistics, nothing dropped."""
  return lambda variables, images: forward(
      backbone, variables, images, TEST, own=False)[0]


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


class Scored(NamedTuple):
  """Examples and how well they are classified."""

  losses: Any  # [B]
  logits: Any  # [B, N]
  targets: Any  # int [B]


def score(logits, targets, loss='cross_entropy', smoothing=0.):
  """Returns Scored; the arguments are those of `example_losses`."""
  return Scored(example_losses(loss, logits, targets, smoothing), logits,
                targets)


def aux(batch_stats, scored, **means):
  """Returns Aux of a task.

  Args:
    batch_stats: the task's own statistics.
    scored: Scored, the examples that are reported.
    **means: further numbers [] to average over tasks.
  """
  count = jnp.float32(scored.targets.size)
  hits = jnp.sum(jnp.argmax(scored.logits, axis=-1) == scored.targets)
  return Aux(batch_stats, {
      'loss': (jnp.sum(scored.losses), count),
      'accuracy': (hits.astype(jnp.float32), count),
      **of_task(**means)})


def of_task(**values):
  """Returns metrics of numbers [] that are averaged over tasks."""
  return {name: (jnp.float32(value), jnp.float32(1))
          for name, value in values.items()}


def stationarity(slope, pull):
  """Returns |slope + pull| / (|slope| + |pull|), of 0..1.

  It is zero at a minimum of a loss and a penalty, and 1 where nothing holds
  against the loss yet.

  Args:
    slope: tree of arrays, the gradient of the loss.
    pull: that of the penalty.
  """
  norm = optax.tree.norm
  both = norm(slope) + norm(pull)
  return norm(jax.tree.map(jnp.add, slope, pull)) / jnp.where(
      both > 0, both, 1)


def penalty_slope(l2, params, start):
  """Returns the gradient of l2 / 2 |params - start|^2."""
  return jax.tree.map(lambda p, s: l2 * (p - s), params, start)


# --- For methods that adapt a backbone and its linear head. ---


class Adapted(NamedTuple):
  """What `predict` needs of a task whose network has adapted."""

  variables: Any  # 'params' are the adapted ones
  support_x: Any
  convergence: Any = None  # of heads.convergence, where a problem is solved


def init_with_head(backbone, ways):
  """Returns Algorithm.init: parameters {'backbone', 'head'}."""
  def init_fn(key, images):
    variables, dim, head_key = init(backbone, key, images)
    variables['params']['head'] = init_head(head_key, dim, ways)
    return variables
  return init_fn


def support_loss(body, variables, support_x, support_y, mode,
                 loss='cross_entropy', example_weights=None):
  """Returns (values, i) -> (mean loss [], statistics) for inner_loop.descend.

  `values` take the place of the parameters that adapt; example_weights [S] are
  factors of the examples' losses.
  """
  def function(values, i):
    params = {**variables['params'], **values}
    features, statistics = support_pass(
        body, {**variables, 'params': params}, support_x, mode.at(i))
    losses = example_losses(loss, gradient.logits(params['head'], features),
                            support_y)
    return jnp.mean(weighted(example_weights, losses)), statistics
  return function


def descend(loss, start, optimizer, **options):
  """Returns (end of inner_loop.descend, BatchNorm statistics at its start)."""
  end, statistics = inner_loop.descend(loss, start, optimizer, **options)
  return end, jax.tree.map(lambda s: s[0], statistics)


def query_logits(body, variables, support_x, query_x, mode):
  """Returns the logits of the query images [Q, N]."""
  return gradient.logits(
      variables['params']['head'],
      query_pass(body, variables, support_x, query_x, mode))


def query_loss(body, variables, episode, mode, loss='cross_entropy'):
  """Returns (mean loss on the query [], Scored of the query)."""
  logits = query_logits(body, variables, episode.support_x, episode.query_x,
                        mode)
  scored = score(logits, episode.query_y, loss)
  return jnp.mean(scored.losses), scored


def adapted_convergence(adapted, query_x):
  """Does what Algorithm.convergence does, for Adapted."""
  del query_x
  return adapted.convergence


def predict_adapted(body):
  """Returns Algorithm.predict for Adapted."""
  return lambda adapted, query_x: query_logits(
      body, adapted.variables, adapted.support_x, query_x, TEST)
