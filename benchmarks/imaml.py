"""Draws how iMAML's implicit gradient goes to the unrolled one.

    python benchmarks/imaml.py [--out=docs/imaml.png] [--steps=1,4,16]

One 5-way 1-shot task of glyphs and a network of two convolutional blocks, in
float64: the gradient of iMAML (paper's form) against the gradient through all
steps of the same inner problem, L + lambda / 2 |phi - theta|^2, by the number
of inner steps. `smooth` has softplus and average pooling; `kinks` has ReLU and
max pooling, as CNN-4: an inner optimum can lie on a kink, where the implicit
function theorem does not hold.

The inner rate is 1 / (lambda + c), c the largest curvature of L at theta by
power iteration: descent diverges at rates above 2 / (lambda + c). An inner
optimum exists if lambda is above the most negative curvature. A point is hollow
if I + H / lambda was not positive, so that conjugate gradients stopped.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from mtl_jax import algorithms
from mtl_jax.algorithms import network
from mtl_jax.config import base_config
from mtl_jax.data import store as stores
from mtl_jax.models import layers
from mtl_jax.train import step as steps

CG_STEPS = 100
STYLES = {'smooth': 'o-', 'kinks': 's--'}


class Blocks(nn.Module):
  """Two blocks of CNN-4 with 4 channels, with or without kinks."""

  smooth: bool

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    """Returns features [B, 196]."""
    del tasks_seen
    own = train if own_statistics is None else own_statistics
    x = images
    for _ in range(2):
      x = layers.BatchNorm()(layers.Conv3x3(4, 'float64')(x), own)
      x = (nn.softplus(nn.avg_pool(x, (2, 2), (2, 2))) if self.smooth
           else nn.relu(layers.max_pool(x)))
    return x.reshape(len(x), -1)


def build(name, smooth, **changes):
  """Returns a method over `Blocks`, its inner loop compiled as a loop."""
  return algorithms.create(name, Blocks(smooth), 0, 5,
                           **({'unroll': False} | changes))


def largest_curvature(smooth, variables, episode, iterations=50):
  """Returns the largest |eigenvalue| of the support loss's Hessian."""
  loss = network.support_loss(
      network.Body(Blocks(smooth), 'transductive'), variables,
      episode.support_x, episode.support_y,
      network.Mode(True, jax.random.key(0), 0))
  flat, unravel = ravel_pytree(variables['params'])
  slope = jax.grad(lambda flat: loss(unravel(flat), 0)[0])

  def turn(v, _):
    product = jax.grad(lambda flat: jnp.vdot(slope(flat), v))(flat)
    size = jnp.linalg.norm(product)
    return product / size, size
  v = jax.random.normal(jax.random.key(1), flat.shape, flat.dtype)
  return float(jax.jit(lambda v: jax.lax.scan(
      turn, v / jnp.linalg.norm(v), length=iterations)[1][-1])(v))


def distance(smooth, variables, episode, l2, rate, num_steps):
  """Returns (relative distance, residual, negative curvature)."""
  inner = {'inner_steps': num_steps, 'inner_rate': rate}
  implicit = build('imaml', smooth, l2=l2, cg_steps=CG_STEPS, **inner)
  unrolled = build('maml', smooth, inner_l2=l2, **inner)

  @jax.jit
  def both(params):
    gradient = lambda algorithm: jax.grad(lambda params: algorithm.loss(
        {**variables, 'params': params}, jax.random.key(0), episode, 0),
        has_aux=True)(params)
    (ours, aux), (theirs, _) = gradient(implicit), gradient(unrolled)
    ours, theirs = ravel_pytree(ours)[0], ravel_pytree(theirs)[0]
    return (jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs),
            aux.metrics['residual'][0], aux.metrics['negative_curvature'][0])
  return tuple(float(x) for x in both(variables['params']))


def start(smooth, episode):
  """Returns the initial variables in float64."""
  variables = jax.jit(build('imaml', smooth).init)(
      jax.random.key(0), episode.support_x)
  return jax.tree.map(lambda x: x.astype(jnp.float64), variables)


def draw_episode(data):
  """Returns a 5-way 1-shot task with 3 queries per class."""
  c = base_config()
  c.train.ways, c.train.shots, c.train.queries = 5, 1, 3
  store = stores.load(data, 'train')
  return steps.draw_episode(
      stores.arrays(store), None, jax.random.key(1), train=c.train,
      augmentation=c.augment, image_shape=store.images.shape[1:])


def measure(name, episode, l2s, num_steps, axes):
  """Prints the rows of one network of STYLES and draws its lines."""
  smooth, style = name == 'smooth', STYLES[name]
  variables = start(smooth, episode)
  curvature = largest_curvature(smooth, variables, episode)
  for i, l2 in enumerate(l2s):
    rate, results = 1 / (l2 + curvature), []
    for n in num_steps:
      results.append(distance(smooth, variables, episode, l2, rate, n))
      gap, residual, negative = results[-1]
      print(f'| {name} | {l2:g} | {n} | {gap:.1e} | {residual:.1e} '
            f'| {"yes" if negative else "no"} |', flush=True)
    gaps, _, negative = np.array(results).T
    axes.loglog(num_steps, gaps, style, color=f'C{i}', mfc='none',
                label=f'{name}, lambda {l2:g}')
    axes.loglog(np.array(num_steps)[negative == 0], gaps[negative == 0],
                style[0], color=f'C{i}')
  print(f'largest curvature at the start ({name}): {curvature:.3g}',
        flush=True)


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', default='', help='the figure')
  parser.add_argument('--l2', default='3,10,30', help='values of lambda')
  parser.add_argument('--steps', default='1,4,16,64,256,1024',
                      help='numbers of inner steps')
  parser.add_argument('--data', default='glyphs', help='of the task')
  parser.add_argument('--networks', nargs='+', default=tuple(STYLES),
                      choices=STYLES)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table and draws the figure."""
  args = parse(argv)
  l2s = [float(l2) for l2 in args.l2.split(',')]
  num_steps = [int(n) for n in args.steps.split(',')]
  episode = draw_episode(args.data)
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt
  _, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
  print('| network | lambda | inner steps | distance | residual | stopped |')
  print('|---|---|---|---|---|---|')
  with jax.enable_x64(True):
    for name in args.networks:
      measure(name, episode, l2s, num_steps, axes)
  axes.set(xlabel='inner steps', ylabel='|implicit - unrolled| / |unrolled|',
           title='iMAML: the implicit gradient by inner steps')
  axes.legend(fontsize='small')
  axes.grid(alpha=0.3)
  if args.out:
    plt.savefig(args.out, dpi=100)


if __name__ == '__main__':
  main()
