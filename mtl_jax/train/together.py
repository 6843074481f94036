"""Several seeds side by side: one step that moves the states of all.

A state of S seeds has the leading axis S everywhere. One seed alone has no such
axis, and its step is not mapped: a mapped convolution has a kernel for each
seed, which is another program.
"""

import jax
import jax.numpy as jnp


def step(one_step, count):
  """Maps a step of train/step.py over seeds.

  Args:
    one_step: (state, arrays, key, pixels) -> (state, metrics).
    count: S.

  Returns:
    The same of states, keys and metrics with the leading axis S, and pixels
    [T, S, ..]; `one_step` itself for one seed.
  """
  if count == 1:
    return one_step
  return jax.vmap(one_step, in_axes=(0, None, 0, 1))


def stack(trees):
  """Returns trees of S seeds as one, which `split` takes apart."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def split(tree, count):
  """Returns the trees of each of `count` seeds."""
  if count == 1:
    return [tree]
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]
