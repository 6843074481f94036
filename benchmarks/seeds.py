"""Compares seeds side by side with the same seeds one after another.

    python benchmarks/seeds.py [--config=quickstart] [--seeds=0,1,2]
                               [--steps=20] [--float64]
                               [--config.FIELD=VALUE ..]

Both start from the same states and draw the same tasks. The difference is the
largest one of any loss, and of any parameter or statistic, after a number of
steps. The time is the median of a step of all seeds, and the memory what the
compiled steps need in addition to their arguments.

In float32 the two differ by round-off, which Adam makes as large as its rate
where a gradient is nearly zero, and a max or a ReLU may turn at it. With
--float64, which no config offers, parameters and computation are float64: what
then differs is no round-off of float32.
"""

import argparse
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config import flags, load_config
from mtl_jax.config.check import validate
from mtl_jax.data import episodes
from mtl_jax.data import store as stores
from mtl_jax.models import layers
from mtl_jax.run import build, parts
from mtl_jax.run import seeds as seeds_of
from mtl_jax.train import together


def train(run, config, states, seeds, steps):
  """Moves these seeds side by side.

  Returns:
    (each step's states and losses, of each seed; seconds of each step; seconds
    of compilation; bytes).
  """
  compiled = parts.compile_step(config, run, len(seeds))
  # A copy, as the step takes its first state away.
  arrays, key, state = compiled.put((
      stores.arrays(run.splits['train']),
      together.stack([episodes.stream_key(seed, episodes.Stream.TRAIN)
                      for seed in seeds]),
      jax.tree.map(jnp.copy, together.stack(states))))
  start = time.monotonic()
  step = compiled.lower(state, arrays, key, None).compile()
  compilation = time.monotonic() - start
  history, times = [], []
  for _ in range(steps):
    start = time.monotonic()
    state, metrics = jax.block_until_ready(step(state, arrays, key, None))
    times.append(time.monotonic() - start)
    loss = jax.tree.map(np.asarray, metrics['loss'])
    found = jax.device_get(compiled.get(state.variables))
    history.append(together.split((found, loss[0] / loss[1]), len(seeds)))
  return (history, times, compilation,
          step.memory_analysis().temp_size_in_bytes)


def as_float64(tree):
  """Returns a tree with float64 in place of float32."""
  return jax.tree.map(lambda x: x.astype(jnp.float64)
                      if x.dtype == jnp.float32 else x, tree)


def largest(first, second):
  """Returns the largest differences of (variables, loss) of all seeds."""
  gap = lambda a, b: max(
      float(np.max(np.abs(np.asarray(x) - np.asarray(y))))
      for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
  return [max(gap(a[i], b[i]) for a, b in zip(first, second, strict=True))
          for i in range(2)]


def parse(argv=None):
  """Returns (flags, changes of the config)."""
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--config', default='quickstart')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', default=20, type=int)
  parser.add_argument('--float64', action='store_true')
  args, rest = parser.parse_known_args(argv)
  changes = [text.lstrip('-').partition('=') for text in rest]
  for name, assigned, _ in changes:
    if not (name.startswith('config.') and assigned):
      parser.error(f'unknown argument --{name}')
  return args, [(name, value) for name, _, value in changes]


def main(argv=None):
  """Prints the differences, then a row for each way."""
  args, changes = parse(argv)
  config = load_config(args.config)
  if args.float64:
    jax.config.update('jax_enable_x64', True)
    layers.DTYPES = (*layers.DTYPES, 'float64')
    config.model.dtype = 'float64'
  for name, value in changes:
    flags.override(config, name, value)
  validate(config)
  seeds = [int(seed) for seed in args.seeds.split(',')]
  run = parts.make_run(config)
  shape = run.splits['train'].images.shape[1:]
  states = [build.initial_state(seeds_of.of_seed(config, seed), run.algorithm,
                                shape) for seed in seeds]
  if args.float64:
    states = [as_float64(state) for state in states]
  alone = [train(run, config, [state], [seed], args.steps)
           for state, seed in zip(states, seeds, strict=True)]
  both = train(run, config, states, seeds, args.steps)
  for step in sorted({1, 5, 10, args.steps}):
    if step <= args.steps:
      variables, loss = largest(
          [history[step - 1][0] for history, *_ in alone], both[0][step - 1])
      print(f'after {step} steps: loss {loss:.1e}, parameters and statistics '
            f'{variables:.1e}')
  print('| seeds | way | ms per step of all | compilation, s | MiB |')
  print('|---|---|---|---|---|')
  median = lambda times: 1e3 * statistics.median(times[1:] or times)
  row = lambda way, times, compilation, size: print(
      f'| {len(seeds)} | {way} | {median(times):.0f} | {compilation:.0f} '
      f'| {size / 2 ** 20:.0f} |')
  row('one after another',
      [sum(times) for times in zip(*(a[1] for a in alone), strict=True)],
      sum(a[2] for a in alone[:1]), alone[0][3])
  row('side by side', *both[1:])


if __name__ == '__main__':
  sys.exit(main())
