"""Asks whether more support images of some classes make any head worse.

    python benchmarks/unequal_support.py --checkpoint=runs/omniglot

The run's network gives the features of the test split of its data set, or
`--pixels` takes raw pixels of unit length. Every task is 5-way with one support
image of each class. Then some classes (`--grown`) grow to more images, and the
others keep theirs. Each head is fitted with classes that count alike
(`balanced`) and with images that count alike (`unweighted`). Query images are
the same ones in all columns.

Printed: the accuracy with one image of each class, and by how much the growth
changes it, in points over the same tasks with the 95% interval. `fell` marks a
growth that lowers the accuracy by more than its interval.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import heads
from mtl_jax.data import store
from mtl_jax.evaluate import interval
from mtl_jax.run import trained

WAYS = 5
BATCH = 250  # images of a forward pass


def draw(split, tasks, images, seed):
  """Returns image numbers [T, N, images] of a split, none twice in a task."""
  rng = np.random.default_rng(seed)
  sizes = np.diff(split.offsets)
  classes = np.flatnonzero(sizes >= images)
  return np.array([[
      split.offsets[c] + rng.permutation(sizes[c])[:images]
      for c in rng.choice(classes, WAYS, replace=False)]
      for _ in range(tasks)])


@functools.partial(jax.jit, static_argnums=(0, 3))
def accuracies(head, features, drawn, sizes, weights):
  """Returns the accuracy [T] of a head.

  Args:
    head: name of the head.
    features: [I, D] of a split.
    drawn: (support [T, N, most], queries [T, N, Q]) image numbers.
    sizes: support images of each class.
    weights: of the examples, or None.
  """
  module = heads.HEADS[head]
  labels = np.repeat(np.arange(WAYS, dtype=np.int32), sizes)

  def one(drawn):
    support, queries = drawn
    rows = jnp.concatenate([support[i, :size] for i, size in enumerate(sizes)])
    params = module.fit(features[rows], labels, WAYS, example_weights=weights)
    logits = module.logits(params, features[queries.ravel()])
    right = np.repeat(np.arange(WAYS), queries.shape[1])
    return jnp.mean(logits.argmax(-1) == right)

  return jax.lax.map(one, drawn, batch_size=25)


def rows(head, features, drawn, growths, grown):
  """Yields (growth, base [T], changed [T]), balanced before unweighted."""
  ones = (1,) * WAYS
  base = np.asarray(accuracies(head, features, drawn, ones, None))
  for growth in growths:
    sizes = (growth,) * grown + ones[grown:]
    labels = np.repeat(np.arange(WAYS, dtype=np.int32), sizes)
    for weights in (heads.balance(labels, WAYS), None):
      yield growth, base, np.asarray(
          accuracies(head, features, drawn, sizes, weights))


def features_of(flags):
  """Returns (split, features [I, D]) of the test classes."""
  model = trained.load(flags.checkpoint)
  split = store.load(model.data['name'], 'test')
  if flags.pixels:
    x = np.asarray(split.images, np.float32).reshape(len(split.images), -1)
    return split, x / np.linalg.norm(x, axis=-1, keepdims=True)
  return split, np.concatenate([
      model.features(split.images[i:i + BATCH])
      for i in range(0, len(split.images), BATCH)])


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', required=True, help='workdir of a run')
  parser.add_argument('--pixels', action='store_true')
  parser.add_argument('--heads', nargs='+', default=list(heads.HEADS))
  parser.add_argument('--growths', nargs='+', type=int, default=[5, 10, 15])
  parser.add_argument('--grown', type=int, default=2, help='classes that grow')
  parser.add_argument('--queries', type=int, default=5, help='of a class')
  parser.add_argument('--tasks', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table."""
  flags = parse(argv)
  split, features = features_of(flags)
  most = max(flags.growths)
  numbers = draw(split, flags.tasks, most + flags.queries, flags.seed)
  drawn = numbers[..., :most], numbers[..., most:]
  print(f'{flags.tasks} tasks of {split.name}: {flags.grown} of {WAYS} classes '
        f'grow, {features.shape[1]} features')
  print('| head | one of each | images of each grown | balanced | unweighted '
        '|\n|---|---|---|---|---|')
  for head in flags.heads:
    found = {}
    for growth, base, changed in rows(
        head, jnp.asarray(features), drawn, flags.growths, flags.grown):
      mean, half = interval.difference(100 * changed, 100 * base).values()
      fell = ' fell' if mean + half < 0 else ''
      found.setdefault(growth, []).append(f'{mean:+.1f} +- {half:.1f}{fell}')
    for growth, cells in found.items():
      print(f'| {head} | {100 * base.mean():.1f} | {growth} | '
            f'{" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
  main()
