"""Asks whether the calibration of `mtl_jax.adapt` makes probabilities better.

    python benchmarks/calibration.py --checkpoint=runs/quickstart

Tasks are 5-way, of the test classes of the run's data set. In each the
temperature is found on the support alone, as `mtl_jax.adapt` does it.

Printed, for images that neither the head nor the temperature has seen: the mean
log loss over tasks in nats, before and after, the share of tasks in which it
fell, and the expected calibration error in 15 bins of all images together (Guo
et al., 2017). `best` is the log loss with the temperature that these images
themselves would choose: no temperature gives less.
"""

import argparse

import numpy as np

from mtl_jax import heads
from mtl_jax.adapt import calibrate
from mtl_jax.adapt import learner as learners
from mtl_jax.data import store
from mtl_jax.evaluate import interval
from mtl_jax.run import trained

WAYS, BINS = 5, 15


def draw(split, shots, queries, tasks):
  """Yields (support [N K], query [N Q]) image numbers."""
  rng = np.random.default_rng(0)
  sizes = np.diff(split.offsets)
  fitting = np.flatnonzero(sizes >= shots + queries)
  for _ in range(tasks):
    ids = np.array([
        split.offsets[c] + rng.permutation(sizes[c])[:shots + queries]
        for c in rng.choice(fitting, WAYS, replace=False)])
    yield ids[:, :shots].ravel(), ids[:, shots:].ravel()


def error(logits, truth):
  """Returns the expected calibration error of logits [I, N]."""
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  sure, right = p.max(1), p.argmax(1) == truth
  bins = np.minimum((sure * BINS).astype(int), BINS - 1)
  return sum(abs(right[bins == b].mean() - sure[bins == b].mean())
             * (bins == b).mean() for b in np.unique(bins))


def measure(learner, inputs, split, shots, flags):
  """Returns (log losses [T, 3], logits before and after [T I, N], truth)."""
  labels = np.repeat(np.arange(WAYS, dtype=np.int32), shots)
  truth = np.repeat(np.arange(WAYS), flags.queries)
  ones = np.ones(len(truth))
  losses, before, after = [], [], []
  for support, query in draw(split, shots, flags.queries, flags.tasks):
    found, _ = calibrate.temperature(
        learner, inputs[support], labels, WAYS, True)
    state, _ = learner.fit(inputs[support], labels, WAYS, None)
    logits = learners.logits_of(learner, state, inputs[query]).astype(float)
    cooled = logits / (found['temperature'] if found else 1.)
    best = logits / calibrate.least_loss(logits, truth, ones)
    losses.append([calibrate.log_loss(x, truth, ones)
                   for x in (logits, cooled, best)])
    before.append(logits)
    after.append(cooled)
  return (np.array(losses), np.concatenate(before), np.concatenate(after),
          np.tile(truth, flags.tasks))


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', required=True, help='workdir of a run')
  parser.add_argument('--heads', nargs='+', default=list(heads.HEADS),
                      help='names of heads, or own')
  parser.add_argument('--shots', nargs='+', type=int, default=[3, 5, 10])
  parser.add_argument('--queries', type=int, default=10, help='of a class')
  parser.add_argument('--tasks', type=int, default=200)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table."""
  flags = parse(argv)
  model = trained.load(flags.checkpoint)
  split = store.load(model.data['name'], 'test')
  print(f'{flags.tasks} tasks of {WAYS} test classes of {split.name}')
  print('| head | shots | log loss | calibrated | fell in | best | calibration '
        'error | calibrated |\n|---|---|---|---|---|---|---|---|')
  for name in flags.heads:
    learner = learners.make(model, *learners.choose(model.config, name))
    inputs = learners.inputs_of(learner, np.asarray(split.images))
    for shots in flags.shots:
      losses, before, after, truth = measure(learner, inputs, split, shots,
                                             flags)
      first, cooled, best = losses.mean(0)
      half = interval.difference(losses[:, 1], losses[:, 0])['ci95']
      fell = (losses[:, 1] < losses[:, 0]).mean()
      print(f'| {name} | {shots} | {first:.3f} | {cooled:.3f} '
            f'({cooled - first:+.3f} {interval.text(half, "{:.3f}")}) | '
            f'{fell:.0%} | {best:.3f} | {error(before, truth):.3f} | '
            f'{error(after, truth):.3f} |', flush=True)


if __name__ == '__main__':
  main()
