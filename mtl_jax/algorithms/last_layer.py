"""The parts of methods that adapt nothing below the head."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mtl_jax import heads
from mtl_jax.algorithms import network
from mtl_jax.heads import logistic
from mtl_jax.models import layers


class LastLayer(NamedTuple):
  """Functions of such a method; see base.Algorithm."""

  loss: Any
  adapt: Any
  predict: Any
  convergence: Any = None
  from_features: Any = None


@struct.dataclass
class FittedTask:
  """What `predict` needs of a task whose head has been fitted.

  Under 'episode' the support's features depend on the query: `head` and
  `convergence` are None, and `predict` fits the head.
  """

  variables: Any
  support_x: Any
  support_y: Any
  head: Any
  convergence: Any
  num_ways: int = struct.field(pytree_node=False)  # static: sets shapes
  example_weights: Any = None


def make(body, fit, logits, score=network.score, diagnostics=None):
  """Returns the LastLayer of a head.

  Args:
    body: Body.
    fit: (params, features [S, D], labels [S], num_ways) -> head. If it takes a
      keyword example_weights [S], `adapt` takes it too.
    logits: (params, head, features [Q, D]) -> [Q, N].
    score: (logits [Q, N], labels [Q]) -> Scored.
    diagnostics: (head, features [S, D], labels [S]) -> residuals by name, as
      a head's, with example_weights if `fit` takes them; None: the head is not
      solved for.
  """
  converged = functools.partial(_converged, diagnostics)

  def loss(variables, key, episode, tasks_seen):
    params = variables['params']
    support, query, statistics = network.task_pass(
        body, variables, episode.support_x, episode.query_x,
        network.Mode(True, key, tasks_seen))
    ways = episode.class_ids.shape[0]
    head = fit(params, support, episode.support_y, ways)
    scored = score(logits(params, head, query), episode.query_y)
    return jnp.mean(scored.losses), network.aux(
        statistics, scored, **converged(head, support, episode.support_y))

  def from_features(variables, support, support_y, num_ways, query):
    params = variables['params']
    head = fit(params, support, support_y, num_ways)
    return logits(params, head, query), converged(head, support, support_y)

  adapt, predict, convergence = _test(body, fit, logits, converged)
  return LastLayer(
      loss, adapt, predict, diagnostics and convergence,
      from_features if body.batch_norm in network.RUNNING else None)


def _test(body, fit, logits, converged):
  """Returns adapt, predict and convergence of `make`."""
  def adapt(variables, key, support_x, support_y, num_ways,
            example_weights=None):
    del key  # nothing random
    head = convergence = None
    if body.batch_norm != 'episode':
      features, _ = network.support_pass(body, variables, support_x,
                                         network.TEST)
      weights = _keyword(example_weights)
      head = fit(variables['params'], features, support_y, num_ways, **weights)
      convergence = converged(head, features, support_y, **weights)
    return FittedTask(variables, support_x, support_y, head, convergence,
                      num_ways, example_weights)

  def adapt_unweighted(variables, key, support_x, support_y, num_ways):
    return adapt(variables, key, support_x, support_y, num_ways)

  def in_episode(adapted, query_x):
    support, query, _ = network.task_pass(
        body, adapted.variables, adapted.support_x, query_x, network.TEST)
    return support, query, fit(adapted.variables['params'], support,
                               adapted.support_y, adapted.num_ways,
                               **_keyword(adapted.example_weights))

  def predict(adapted, query_x):
    if body.batch_norm == 'episode':
      _, query, head = in_episode(adapted, query_x)
    else:
      head = adapted.head
      query = network.query_pass(body, adapted.variables, adapted.support_x,
                                 query_x, network.TEST)
    return logits(adapted.variables['params'], head, query)

  def convergence(adapted, query_x):
    if body.batch_norm != 'episode':
      return adapted.convergence
    support, _, head = in_episode(adapted, query_x)
    return converged(head, support, adapted.support_y,
                     **_keyword(adapted.example_weights))

  takes_weights = 'example_weights' in inspect.signature(fit).parameters
  return adapt if takes_weights else adapt_unweighted, predict, convergence


def _keyword(example_weights):
  """Returns the keyword for `fit`, {} where all examples count alike."""
  return {} if example_weights is None else {
      'example_weights': example_weights}


def _converged(diagnostics, head, features, labels, **weights):
  """Returns heads.convergence of a head, {} without diagnostics."""
  if diagnostics is None:
    return {}
  head, features = jax.lax.stop_gradient((head, features))
  return heads.convergence(diagnostics(head, features, labels, **weights))


def new_head(features, C):
  """Returns the end of an Algorithm: logistic regression, unit features.

  They are adapt, predict, convergence, remedy and from_features.
  """
  def fit(support, support_y, num_ways, example_weights=None):
    support = layers.unit_norm(support)
    keywords = {'C': C, 'example_weights': example_weights}
    head = logistic.fit(support, support_y, num_ways, **keywords)
    return head, heads.convergence(
        logistic.diagnostics(head, support, support_y, **keywords))

  def logits(head, query):
    return logistic.logits(head, layers.unit_norm(query))

  def adapt(variables, key, support_x, support_y, num_ways,
            example_weights=None):
    del key  # convex: nothing random
    return variables, *fit(features(variables, support_x), support_y, num_ways,
                           example_weights)

  def predict(adapted, query_x):
    variables, head, _ = adapted
    return logits(head, features(variables, query_x))

  def from_features(variables, support, support_y, num_ways, query):
    del variables  # the head has no trained parameters
    head, convergence = fit(support, support_y, num_ways)
    return logits(head, query), convergence

  return (adapt, predict, lambda adapted, query_x: adapted[2],
          'lower config.method.test_C', from_features)
