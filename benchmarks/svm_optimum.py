"""How far the SVM head is from its optimum on raw features of networks.

    python benchmarks/svm_optimum.py runs/width32 runs/width64
    python benchmarks/svm_optimum.py --resnet12=mini_imagenet

The first form takes the networks and data sets of trained runs, the second a
ResNet-12 at its start, pooled and flat. Tasks of test classes, 5-way, 5 and 15
shots, C = 0.1, ridge 1, as MetaOptNet trains. Features are not normalised. A
row is

  gap     largest relative duality gap of all tasks, computed here in float64
          from the features and `dual` alone (as one float), and of both floats
  logits  largest difference to those of an interior point method in float64,
          which is written here and shares no code with the package, relative
          to the largest logit
  grad    largest difference of the gradient of the query loss in support and
          query features to that method's, relative to its norm
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import models
from mtl_jax.data import augment, store
from mtl_jax.heads import svm
from mtl_jax.run import trained

WAYS, QUERIES, C, RIDGE = 5, 5, 0.1, 1.0
BATCH = 50  # images of a forward pass


def draw(split, tasks, images, seed):
  """Returns image numbers [T, N, images] of a split, none twice in a task."""
  rng = np.random.default_rng(seed)
  sizes = np.diff(split.offsets)
  return np.array([[
      split.offsets[c] + rng.permutation(sizes[c])[:images]
      for c in rng.choice(np.flatnonzero(sizes >= images), WAYS, False)]
      for _ in range(tasks)])


def networks(flags):
  """Yields (name, split, function of normalised images)."""
  for path in flags.runs:
    run = trained.load(path)
    split = store.load(run.data['name'], 'test')
    yield path, split, lambda x, run=run: run.algorithm.features(
        run.variables, x)
  if flags.resnet12:
    split = store.load(flags.resnet12, 'test')
    for pool in ('global', 'flat'):
      model = models.create('resnet12', pool=pool)
      shape = (2, *split.images.shape[1:])
      variables = model.init(jax.random.key(0), jnp.zeros(shape), train=False)
      yield f'ResNet-12, {pool}', split, (
          lambda x, model=model, variables=variables: model.apply(
              variables, x, train=False))


def features_of(split, network, numbers):
  """Returns features [T, N, images, D] of image numbers."""
  mean, std = (np.asarray(v, np.float32) for v in (split.mean, split.std))
  forward = jax.jit(lambda x: network(augment.normalise(x, mean, std)))
  ids, where = np.unique(numbers, return_inverse=True)
  found = np.concatenate([
      np.asarray(forward(split.images[ids[i:i + BATCH]]))
      for i in range(0, len(ids), BATCH)])
  return found, where.reshape(numbers.shape)


def gap(dual, x, y):
  """Returns (primal - dual) / primal in float64, from the definitions."""
  dual, x = np.asarray(dual, float), x.astype(float)
  outputs = x @ (x.T @ dual) + RIDGE * dual
  square = np.sum(dual * outputs)
  own = outputs[np.arange(len(y)), y]
  margins = 1 - np.eye(WAYS)[y] + outputs - own[:, None]
  primal = square / 2 + np.float32(C) * margins.max(1).sum()
  return (primal - dual[np.arange(len(y)), y].sum() + square / 2) / primal


def newton(gram, room, z, stationary, off, centre):
  """Returns the moves of (room, z, nu) that take `centre` off room z."""
  inverses = [np.linalg.inv(gram + np.diag(z[:, m] / room[:, m]))
              for m in range(WAYS)]
  right = -stationary - centre / room
  single = [inverses[m] @ right[:, m] for m in range(WAYS)]
  nu = np.linalg.solve(sum(inverses), sum(single) + off)
  d = np.stack([single[m] - inverses[m] @ nu for m in range(WAYS)], 1)
  return d, (-centre - z * d) / room, nu


def optimum(x, y, steps=100):
  """Returns (alpha, free), by a primal-dual interior point method.

  It moves room = C Y - alpha >= 0, whose rows sum to C, and its multipliers
  z >= 0 (Mehrotra, SIAM J. Optim. 2, 1992).
  """
  bound = np.float64(np.float32(C)) * np.eye(WAYS)[y]
  gram = x @ x.T + RIDGE * np.eye(len(x))
  room = bound.sum(1, keepdims=True) / WAYS + 0 * bound
  z, nu = np.ones_like(room), np.zeros(len(x))
  length = lambda v, d: min(1, np.min(v / np.maximum(-d, 1e-300)))
  for _ in range(steps):
    slope = gram @ (bound - room) - np.eye(WAYS)[y]
    stationary = nu[:, None] - slope - z
    off = room.sum(1) - bound.sum(1)
    if np.max(room * z) < 1e-19 * np.abs(slope).max():
      break
    system = gram, room, z, stationary, off
    d, dz, _ = newton(*system, room * z)
    after = np.mean((room + length(room, d) * d) * (z + length(z, dz) * dz))
    centre = (after / np.mean(room * z)) ** 3 * np.mean(room * z)
    d, dz, move = newton(*system, room * z + d * dz - centre)
    step = min(1, 0.99 * min(length(room, d), length(z, dz)))
    room, z, nu = room + step * d, z + step * dz, nu + step * move
  return bound - room, room > z


def reference(x, query, y, query_y):
  """Returns (logits, gradients in x and query) in float64.

  The optimum moves within its face; the gradient is by one dense system of
  its stationarity and its rows' sums.
  """
  x, query = x.astype(float), query.astype(float)
  alpha, free = optimum(x, y)
  logits = query @ (x.T @ alpha)
  shares = np.exp(logits - logits.max(1, keepdims=True))
  shares /= shares.sum(1, keepdims=True)
  down = (shares - np.eye(WAYS)[query_y]) / len(query)
  gram = x @ x.T + RIDGE * np.eye(len(x))
  rows, columns = np.nonzero(free)
  size = len(rows)
  system = np.zeros((size + len(x),) * 2)
  system[:size, :size] = gram[np.ix_(rows, rows)] * (
      columns[:, None] == columns)
  system[size + rows, np.arange(size)] = 1
  system[np.arange(size), size + rows] = 1
  lone = size + np.setdiff1d(np.arange(len(x)), rows)
  system[lone, lone] = 1
  right = np.zeros(len(system))
  right[:size] = (x @ (query.T @ down))[rows, columns]
  moved = np.zeros_like(alpha)
  moved[rows, columns] = np.linalg.lstsq(system, right)[0][:size]
  by_x = alpha @ (down.T @ query) - moved @ (alpha.T @ x) - alpha @ (
      moved.T @ x)
  return logits, by_x, down @ (x.T @ alpha).T


def compare(found, where, shots, tasks_of_reference):
  """Prints a row."""
  labels = np.repeat(np.arange(WAYS), shots)
  query_y = np.repeat(np.arange(WAYS), QUERIES)

  def loss(x, query):
    params = svm.fit(x, labels, WAYS, C=C, ridge=RIDGE)
    logits = svm.logits(params, query)
    shares = jax.nn.log_softmax(logits)[np.arange(len(query_y)), query_y]
    return -jnp.mean(shares), (logits, params)

  step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  gaps, others = [], []
  for task, numbers in enumerate(where):
    x = found[numbers[:, :shots]].reshape(-1, found.shape[-1])
    query = found[numbers[:, -QUERIES:]].reshape(-1, found.shape[-1])
    (_, (logits, params)), grads = jax.device_get(step(x, query))
    both = params['dual'].astype(float) + params['rest']
    gaps.append((gap(params['dual'], x, labels), gap(both, x, labels)))
    if task < tasks_of_reference:
      want, *wanted = reference(x, query, labels, query_y)
      others.append([
          np.abs(logits - want).max() / np.abs(want).max(),
          *(np.linalg.norm(g - w) / np.linalg.norm(w)
            for g, w in zip(grads, wanted, strict=True))])
  one, two = np.max(gaps, 0)
  logits, *grads = np.max(others, 0)
  above = np.sum(np.array(gaps)[:, 0] > 1e-5)
  norm = np.linalg.norm(found, axis=-1).mean()
  print(f'{found.shape[1]} | {norm:.1f} | {shots} | {one:.1e} | {above} | '
        f'{two:.1e} | {logits:.0e} | {max(grads):.0e} |', flush=True)


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('runs', nargs='*', help='workdirs of runs')
  parser.add_argument('--resnet12', metavar='DATA',
                      help='data set whose images a fresh ResNet-12 takes')
  parser.add_argument('--shots', nargs='+', type=int, default=[5, 15])
  parser.add_argument('--tasks', type=int, default=600)
  parser.add_argument('--reference', type=int, default=40,
                      help='tasks whose logits and gradients are compared')
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table."""
  flags = parse(argv)
  print('| network | features | norm | shots | gap, one float | tasks above '
        '1e-5 | gap, both | logits | grad |\n|' + '---|' * 9)
  for name, split, network in networks(flags):
    numbers = draw(split, flags.tasks, max(flags.shots) + QUERIES, seed=0)
    found, where = features_of(split, network, numbers)
    for shots in flags.shots:
      print(f'| {name} | ', end='')
      compare(found, where, shots, flags.reference)


if __name__ == '__main__':
  main()
