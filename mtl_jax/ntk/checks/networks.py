"""Networks of finite width, trained by the library's own MTL and ANIL.

Both start from the same values and from output zero, take the same number of
steps of plain gradient descent, and predict the same unseen task.

The theory's loss is half a sum of squared errors. A method's loss is the mean
over T tasks of the mean over a task's n points of half the squared error:
1 / (T n) times the theory's. So the theory's rate r is T n r on a method's
loss. In an inner step on a support set of s points it is s r.

The theory's network has no intercept, and ANIL's head has one. It starts at 0
and its inner rate is 0: ANIL takes one rate for each part of the head.
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
  """Steps of training, of its inner loop, and of adaptation at test time.

  Their rates are the theory's.
  """

  train: Steps
  inner: Steps
  test: Steps


class Pair(nn.Module):
  """Two networks side by side: features [B, 2 m].

  With equal parameters and a head (v, -v) the output is zero, and the tangent
  kernel is that of one network with the head v.
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

  All numbers are standard normal. Each output has a head of its own, so that
  outputs do not interact.
  """
  body_key, head_key = jax.random.split(key)
  body = mlp.Mlp(width, depth).init(body_key, jnp.zeros((1, dim)), train=False)
  half = jax.random.normal(head_key, (width, ways))
  return {'backbone': {'left': body['params'], 'right': body['params']},
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
  rate = num_tasks * n * descent.train.rate
  backbone = Pair(width, depth)
  method = _anil(backbone, ways, s, descent)

  params = _train_mtl(backbone, tasks, initial, ways, rate,
                      descent.train.count)
  of_mtl = _adapted(method, params['backbone'], initial['head'], tasks, s,
                    descent, ways)
  params = _train_anil(method, tasks, initial, ways, rate, s, descent)
  of_anil = _adapted(method, params['backbone'], params['head'], tasks, s,
                     descent, ways)
  return Trained(of_anil, of_mtl)


def _train_mtl(backbone, tasks, initial, ways, rate, count):
  """Returns {'backbone', 'rows'} after joint training on the queries."""
  num_tasks = len(tasks.query_y)
  method = mtl.build(
      backbone, num_tasks * ways, ways,
      **{**fields.defaults(mtl.OPTIONS), 'loss': 'squared',
         'head_init': 'shared',
         'normalise_train_features': False})
  # 'shared' starts all rows of a head from one vector. Here the k rows of
  # every task start from the k columns of the initial head.
  rows = jnp.tile(initial['head'].T, (num_tasks, 1))
  episodes = Episode(
      support_x=tasks.query_x[:, :0], support_y=tasks.query_y[:, :0],
      query_x=tasks.query_x, query_y=tasks.query_y,
      class_ids=_own_classes(num_tasks, ways))
  return _descend(
      lambda params: _mean_loss(method, params, episodes),
      {'backbone': initial['backbone'], 'rows': rows}, rate, count)


def _train_anil(method, tasks, initial, ways, rate, s, descent):
  """Returns {'backbone', 'head'} after training by ANIL."""
  episodes = Episode(
      support_x=tasks.support_x, support_y=tasks.support_y,
      query_x=tasks.query_x, query_y=tasks.query_y,
      class_ids=_own_classes(len(tasks.query_y), ways))
  return _descend(
      lambda params: _mean_loss(method, _anil_params(
          params['backbone'], params['head'], s * descent.inner.rate),
          episodes),
      initial, rate, descent.train.count)


def _own_classes(num_tasks, ways):
  """Returns class ids [T, N]: no two tasks share a class."""
  return jnp.arange(num_tasks * ways).reshape(num_tasks, ways)


def _anil(backbone, ways, s, descent):
  return anil.build(
      backbone, 0, ways,
      **{**fields.defaults(anil.OPTIONS), 'loss': 'squared',
         'batch_norm': 'running',
         'inner_steps': descent.inner.count, 'test_steps': descent.test.count,
         'inner_rate': s * descent.inner.rate})


def _anil_params(body, head, rate):
  """Returns ANIL's parameters, with a rate of 0 for the intercept."""
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
  params = _anil_params(body, head, s * descent.test.rate)
  variables = {'params': params, 'batch_stats': {}}
  adapted = algorithm.adapt(variables, jax.random.key(0),
                            tasks.test_support_x, tasks.test_support_y, ways)
  return algorithm.predict(adapted, tasks.test_query_x)
