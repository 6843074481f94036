"""A linear model with given kernels, trained by integrating in time."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

DEPTH = 2


def kernels(x, z=None):
  """Section 1 of docs/theory.md, by arc cosines of the inner products."""
  z = x if z is None else z
  chord = np.linalg.norm(x[:, None] - z, axis=-1)
  head = every = 1 - chord ** 2 / 2
  for _ in range(DEPTH):
    rho = np.clip(np.where(chord < 1e-12, 1, head), -1, 1)
    angle = np.arccos(rho)
    head = (np.sqrt(1 - rho ** 2) + rho * (np.pi - angle)) / np.pi
    every = every * (np.pi - angle) / np.pi + head
  return {'head': head, 'all': every, 'body': every - head}


def runge_kutta(flow, state, time, steps):
  """Integrates dstate/dt = flow(state) over a tree, classical order 4."""
  h = time / steps
  move = lambda state, c, slope: jax.tree.map(
      lambda a, b: a + c * b, state, slope)

  def step(state, _):
    k1 = flow(state)
    k2 = flow(move(state, h / 2, k1))
    k3 = flow(move(state, h / 2, k2))
    k4 = flow(move(state, h, k3))
    for c, slope in ((h / 6, k1), (h / 3, k2), (h / 3, k3), (h / 6, k4)):
      state = move(state, c, slope)
    return state, None

  return jax.lax.scan(step, state, None, steps)[0]


def linear_network(data):
  """Returns a linear model with these kernels: {name: features} of points.

  Rows of Cholesky factors are features whose inner products are the kernels;
  the read-out's and the body's are orthogonal directions.
  """
  parts = {name: data[name].reshape(-1, 5) for name in
           ('query_x', 'support_x', 'test_query_x', 'test_support_x')}
  every = kernels(np.concatenate(list(parts.values())))
  roots = [np.linalg.cholesky(every[share]) for share in ('body', 'head')]
  ends = np.cumsum([len(part) for part in parts.values()])[:-1]
  split = [np.split(root, ends) for root in roots]
  return {name: (jnp.asarray(body), jnp.asarray(head))
          for name, body, head in zip(parts, *split, strict=True)}


def output(features, params):
  return features[0] @ params['body'] + features[1] @ params['head']


def adapt(method, params, features, targets, time, l2):
  """Adapts on a support set: flow in time, or primal ridge regression."""
  if l2 is not None:
    root = features[1]
    gram = root.T @ root + l2 * jnp.eye(root.shape[1])
    step = jnp.linalg.solve(
        gram, root.T @ (targets - output(features, params)))
    return {**params, 'head': params['head'] + step}

  def flow(params):
    residual = targets - output(features, params)
    body = features[0].T @ residual
    return {'body': body if method == 'maml' else 0 * body,
            'head': features[1].T @ residual}

  return runge_kutta(flow, params, time, 32)


def make_loss(method, inner):
  """Returns the loss of parameters, summed over stacked tasks."""
  def of_task(params, features, heads, query_y, support_y):
    params = {**params, 'head': params['head'] + heads}
    if method != 'mtl':
      params = adapt(method, params, features['support_x'], support_y, *inner)
    error = query_y - output(features['query_x'], params)
    return jnp.sum(error ** 2) / 2

  def loss(params, features, query_y, support_y):
    heads = params['heads'] * (method == 'mtl')
    shared = {'body': params['body'],
              'head': params['head'] * (method != 'mtl')}
    return jnp.sum(jax.vmap(of_task, (None, 0, 0, 0, 0))(
        shared, features, heads, query_y, support_y))

  return loss


def integrated(method, data, train_time, inner, test):
  """Trains the linear model through time and returns its predictions."""
  features = linear_network(data)
  tasks, _, k = data['query_y'].shape
  size = features['query_x'][0].shape[1]
  stacked = {name: tuple(part.reshape(tasks, -1, size)
                         for part in features[name])
             for name in ('query_x', 'support_x')}
  zero = np.zeros((size, k))
  start = {'body': zero, 'head': zero, 'heads': np.zeros((tasks, size, k))}
  flat, unravel = ravel_pytree(start)
  loss = make_loss(method, inner)
  gradient = jax.jit(jax.grad(lambda flat: loss(
      unravel(flat), stacked, data['query_y'], data['support_y'])))
  # 'heads' move in MTL alone, 'head' in the others.
  end = solve_ivp(lambda _, flat: -np.asarray(gradient(flat)),
                  (0, train_time), flat, rtol=1e-9, atol=1e-10).y[:, -1]
  params = unravel(jnp.asarray(end))
  params = {'body': params['body'], 'head': params['head']}
  return jax.jit(lambda params: output(features['test_query_x'], adapt(
      method, params, features['test_support_x'], data['test_support_y'],
      *test)))(params)
