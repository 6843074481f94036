"""Draws how iMAML's implicit gradient goes to the unrolled one.

    python benchmarks/imaml.py --out=docs/imaml.png

One 5-way 5-shot task of glyphs, CNN-4 with 8 channels, initial values: the
gradient of iMAML (paper's form, up to 100 steps of conjugate gradients) against
the gradient through all steps of the same inner problem, L + lambda / 2
|phi - theta|^2, by the number of inner steps. Max pooling and ReLU have kinks:
the inner optimum can lie on one, where the implicit function theorem does not
hold, and the distance ends at a floor. Where I + H / lambda is not positive the
iteration stops: such points are hollow.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from mtl_jax import models
from mtl_jax.algorithms import METHODS
from mtl_jax.config import base_config
from mtl_jax.data import store as stores
from mtl_jax.train import step as steps

STEPS = (1, 4, 16, 64)


def gradients(episode, l2, num_steps, rate):
  """Returns (relative distance, residual, negative curvature)."""
  backbone = models.create('conv4', width=8)
  build = lambda name, **changes: METHODS[name].build(
      backbone, 0, 5, **(dict(METHODS[name].options()) | {
          'inner_steps': num_steps, 'inner_rate': rate, 'unroll': False}
          | changes))
  implicit = build('imaml', l2=l2, cg_steps=100)
  unrolled = build('maml', inner_l2=l2)
  variables = jax.jit(implicit.init)(jax.random.key(0), episode.support_x)

  @jax.jit
  def both(params):
    loss = lambda algorithm: lambda params: algorithm.loss(
        {**variables, 'params': params}, jax.random.key(0), episode, 0)
    ours, aux = jax.grad(loss(implicit), has_aux=True)(params)
    theirs, _ = jax.grad(loss(unrolled), has_aux=True)(params)
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]
    gap = jnp.linalg.norm(flat(ours) - flat(theirs))
    return (gap / jnp.linalg.norm(flat(theirs)), aux.metrics['residual'][0],
            aux.metrics['negative_curvature'][0])

  return tuple(float(x) for x in both(variables['params']))


def main():
  """Prints the table and draws the figure."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', default='')
  parser.add_argument('--l2', default='8,32')
  args = parser.parse_args()
  c = base_config()
  c.train.ways, c.train.shots, c.train.queries = 5, 5, 5
  episode = steps.draw_episode(
      stores.arrays(stores.load('glyphs', 'train'), 'device'), None,
      jax.random.key(1), c)
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt
  _, axes = plt.subplots(figsize=(6, 4), layout='constrained')
  print('| lambda | inner steps | distance | residual | stopped |')
  print('|---|---|---|---|---|')
  for l2 in map(float, args.l2.split(',')):
    # The pull has curvature lambda: a rate that both terms allow.
    rate = min(0.1, 0.5 / l2)
    found = np.array([gradients(episode, l2, n, rate) for n in STEPS])
    for n, (gap, residual, negative) in zip(STEPS, found, strict=True):
      print(f'| {l2:g} | {n} | {gap:.1e} | {residual:.1e} | '
            f'{"yes" if negative else "no"} |', flush=True)
    line, = axes.loglog(STEPS, found[:, 0], '-', label=f'lambda {l2:g}')
    for negative in (0, 1):
      rows = found[:, 2] == negative
      axes.loglog(np.array(STEPS)[rows], found[rows, 0], 'o',
                  color=line.get_color(),
                  mfc='white' if negative else line.get_color())
  axes.set(xlabel='inner steps', ylabel='|implicit - unrolled| / |unrolled|',
           title='iMAML: the implicit gradient, by inner steps')
  axes.legend()
  axes.grid(alpha=0.3)
  if args.out:
    plt.savefig(args.out, dpi=120)


if __name__ == '__main__':
  main()
