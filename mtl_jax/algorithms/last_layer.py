"""The parts of methods that adapt nothing below the head."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct

from mtl_jax.algorithms import network
from mtl_jax.heads import logistic
from mtl_jax.models import layers


class LastLayer(NamedTuple):
  """Three functions of such a method; see base.Algorithm."""

  loss: Any
  adapt: Any
  predict: Any


@struct.dataclass
class FittedTask:
  """What `predict` needs of a task whose head has been fitted.

  Under 'episode' the support's features depend on the query: `head` is None,
  and `predict` fits it.
  """

  variables: Any
  support_x: Any
  support_y: Any
  head: Any
  num_ways: int = struct.field(pytree_node=False)  # static: sets shapes


def make(body, fit, logits, score=network.score):
  """Returns the LastLayer of a head.

  Args:
    body: Body.
    fit: (params, features [S, D], labels [S], num_ways) -> head.
    logits: (params, head, features [Q, D]) -> [Q, N].
    score: (logits [Q, N], labels [Q]) -> Scored.
  """
  def loss(variables, key, episode, tasks_seen):
    params = variables['params']
    support, query, statistics = network.task_pass(
        body, variables, episode.support_x, episode.query_x,
        network.Mode(True, key, tasks_seen))
    ways = episode.class_ids.shape[0]
    head = fit(params, support, episode.support_y, ways)
    scored = score(logits(params, head, query), episode.query_y)
    return jnp.mean(scored.losses), network.aux(statistics, scored)

  def adapt(variables, key, support_x, support_y, num_ways):
    del key  # nothing random
    head = None
    if body.batch_norm != 'episode':
      features, _ = network.support_pass(body, variables, support_x,
                                         network.TEST)
      head = fit(variables['params'], features, support_y, num_ways)
    return FittedTask(variables, support_x, support_y, head, num_ways)

  def predict(adapted, query_x):
    params, head = adapted.variables['params'], adapted.head
    args = (body, adapted.variables, adapted.support_x, query_x, network.TEST)
    if body.batch_norm == 'episode':
      support, query, _ = network.task_pass(*args)
      head = fit(params, support, adapted.support_y, adapted.num_ways)
    else:
      query = network.query_pass(*args)
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
