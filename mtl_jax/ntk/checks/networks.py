"""Networks of finite width, trained by the library's own MTL and ANIL.

Both start from the same values and from output zero, take the same number of
steps of plain gradient descent, and are asked for the same unseen task.

The methods' losses are means, the theory's half a sum: a method's loss is the
mean over T tasks of the mean over a task's n points of half the squared
error, 1 / (T n) times the theory's. So a step of the theory's rate r is one
of T n r on the method's loss, and in a support set of s points an inner step
of rate r is one of s r.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax import fields
from mtl_jax.algorithms import anil, mtl
from mtl_jax.data.episodes import Episode
from mtl_jax.models import mlp
from mtl_jax.ntk.flow import Steps


class Tasks(NamedTuple):
  """T training tasks and a test task; labels int, targets their one-hots."""

  query_x: jax.Array  # [T, n, d]
  query_y: jax.Array  # [T, n]
  support_x: jax.Array  # [T, s, d]
  support_y: jax.Array  # [T, s]
  test_query_x: jax.Array  # [m, d]
  test_support_x: jax.Array  # [s, d]
  test_support_y: jax.Array  # [s]


class Descent(NamedTuple):
  """Steps of training, of the inner loop in it, and of adaptation at test.

  In the theory's rates.
  """

  train: Steps
  inner: Steps
  test: Steps


class Pair(nn.Module):
  """Two networks side by side: features [B, 2 m] of unit length in all.

  With equal parameters and a head (v, -v) the output is zero, and the tangent
  kernel that of one of them with the head v.
  """

  width: int
  depth: int

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    """Returns features [B, 2 m]."""
    del own_statistics, tasks_seen
    both = [mlp.Mlp(self.width, self.depth, name=name)(images, train=train)
            for name in ('left', 'right')]
    return jnp.concatenate(both, -1) / math.sqrt(2)


class Trained(NamedTuple):
  """Predictions [m, k] on the test task after training by each method."""

  anil: jax.Array
  mtl: jax.Array


def start(key, width, depth, dim, ways):
  """Draws the initial values: {'backbone', 'head'} of a Pair.

  All numbers are standard normal, and the outputs have heads of their own,
  so that they do not interact.
  """
  body_key, head_key = jax.random.split(key)
  one = mlp.Mlp(width, depth).init(body_key, jnp.zeros((1, dim)), train=False)
  half = jax.random.normal(head_key, (width, ways))
  return {'backbone': {'left': one['params'], 'right': one['params']},
          'head': jnp.concatenate([half, -half])}


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def train(tasks, initial, width, depth, ways, descent):
  """Returns Trained: both methods from the same initial values.

  Args:
    tasks: Tasks.
    initial: of `start`.
    width: m.
    depth: hidden layers.
    ways: k, number of outputs.
    descent: Descent.
  """
  num_tasks, n = tasks.query_y.shape
  s = tasks.support_y.shape[1]
  backbone = Pair(width, depth)
  rate = num_tasks * n * descent.train.rate
  bilevel = _anil(backbone, ways, s, descent)
  joint = mtl.build(
      backbone, num_tasks * ways, ways,
      **{**fields.defaults(mtl.OPTIONS), 'loss': 'squared',
         'head_init': 'shared', 'normalise_train_features': False})

  # 'shared' gives one vector to all classes, those of one task too; here a
  # task's k classes start from the k columns of the head, in every task.
  rows = jnp.tile(initial['head'].T, (num_tasks, 1))
  own_classes = jnp.arange(num_tasks * ways).reshape(num_tasks, ways)
  query = Episode(
      support_x=tasks.query_x[:, :0], support_y=tasks.query_y[:, :0],
      query_x=tasks.query_x, query_y=tasks.query_y, class_ids=own_classes)
  params = _descend(
      lambda params: _mean_loss(joint, params, query),
      {'backbone': initial['backbone'], 'rows': rows}, rate,
      descent.train.count)
  of_mtl = _adapted(bilevel, params['backbone'], initial['head'], tasks,
                    s, descent, ways)

  both = Episode(
      support_x=tasks.support_x, support_y=tasks.support_y,
      query_x=tasks.query_x, query_y=tasks.query_y, class_ids=own_classes)
  params = _descend(
      lambda params: _mean_loss(bilevel, _with_rate(
          params['backbone'], params['head'], s * descent.inner.rate), both),
      initial, rate, descent.train.count)
  of_anil = _adapted(bilevel, params['backbone'], params['head'], tasks, s,
                     descent, ways)
  return Trained(of_anil, of_mtl)


def _anil(backbone, ways, s, descent):
  return anil.build(
      backbone, 0, ways,
      **{**fields.defaults(anil.OPTIONS), 'loss': 'squared',
         'batch_norm': 'running', 'inner_steps': descent.inner.count,
         'test_steps': descent.test.count,
         'inner_rate': s * descent.inner.rate})


def _with_rate(body, head, rate):
  """Returns ANIL's parameters; the theory's network has no intercept."""
  return {'backbone': body,
          'head': {'weights': head, 'bias': jnp.zeros(head.shape[1])},
          'rate': {'weights': rate, 'bias': 0.}}


def _mean_loss(algorithm, params, episodes):
  of_task = lambda episode: algorithm.loss(
      {'params': params, 'batch_stats': {}}, jax.random.key(0), episode, 0)[0]
  return jnp.mean(jax.vmap(of_task)(episodes))


def _descend(loss, params, rate, count):
  step = lambda _, params: jax.tree.map(
      lambda p, g: p - rate * g, params, jax.grad(loss)(params))
  return jax.lax.fori_loop(0, count, step, params)


def _adapted(algorithm, body, head, tasks, s, descent, ways):
  """Returns predictions [m, k] after steps of the head on the test support."""
  variables = {'params': _with_rate(body, head, s * descent.test.rate),
               'batch_stats': {}}
  adapted = algorithm.adapt(variables, jax.random.key(0),
                            tasks.test_support_x, tasks.test_support_y, ways)
  return algorithm.predict(adapted, tasks.test_query_x)
