"""Convolutional backbones in float64, for the tests of the methods."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from mtl_jax.data import episodes
from mtl_jax.models import conv4, layers


class Small(nn.Module):
  """A block as conv4's, and a dense layer: images [B, 8, 8, 1] -> [B, 8].

  Smooth activations, so that differences over finite steps see fewer kinks.
  `smooth` averages in place of max pooling: an inner problem with kinks can
  have its optimum on one, where no gradient vanishes and no Hessian exists.
  """

  width: int = 3
  smooth: bool = False

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    del tasks_seen
    own = train if own_statistics is None else own_statistics
    x = layers.Conv3x3(self.width, 'float64', name='conv')(images)
    x = layers.BatchNorm(name='norm')(x, own)
    if self.smooth:
      x = nn.softplus(nn.avg_pool(x, (2, 2), (2, 2)))
    else:
      x = nn.softplus(layers.max_pool(x))
    return nn.softplus(nn.Dense(8)(x.reshape(len(x), -1)))


class Conv4(conv4.Conv4):
  """CNN-4 in float64, which no config offers."""

  dtype: str = 'float64'

  def __post_init__(self):
    super(conv4.Conv4, self).__post_init__()  # without the check of dtype


def widen(tree):
  """Returns a tree with its float32 leaves in float64."""
  return jax.tree.map(
      lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def task(ways=3, shots=2, queries=2, seed=0):
  """Returns an episode of noise around class images, float64."""
  keys = jax.random.split(jax.random.key(seed), 2)
  centres = jax.random.normal(keys[0], (ways, 1, 8, 8, 1), jnp.float64)
  noise = jax.random.normal(keys[1], (ways, shots + queries, 8, 8, 1),
                            jnp.float64)
  return episodes.split(centres + 0.7 * noise, jnp.arange(ways), shots)


def start(algorithm, episode, seed=3):
  """Returns variables in float64, away from special values."""
  variables = jax.jit(algorithm.init)(jax.random.key(seed), episode.support_x)
  flat, unravel = ravel_pytree(widen(variables))
  return unravel(flat + 0.05 * jax.random.normal(
      jax.random.key(7), flat.shape, jnp.float64))


def directional(loss, params, step=1e-6):
  """Returns (central difference of loss along a random direction v, v)."""
  flat, unravel = ravel_pytree(params)
  v = jax.random.normal(jax.random.key(11), flat.shape, flat.dtype)
  plus, minus = (loss(unravel(flat + s * v)) for s in (step, -step))
  return (plus - minus) / (2 * step), unravel(v)


def dot(a, b):
  """Returns the inner product of two trees."""
  return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)))


def distance(a, b):
  """Returns |a - b| / |b| of two trees."""
  gap = jax.tree.map(lambda x, y: x - y, a, b)
  return float(jnp.sqrt(dot(gap, gap) / dot(b, b)))
