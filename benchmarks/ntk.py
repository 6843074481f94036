"""Times the kernels of a deep fully connected network.

    python benchmarks/ntk.py [--points 2000] [--depth 8] [--repeats 5]

Each line interleaves a matrix product of 2,000 x 2,000 (float32) with the
kernels of `points` inputs, so that both meet the same load, and gives the
medians, the rate of the product, and the ratio of the kernels' time to
1.73 s * (143 GFLOP/s / rate): what the neural-tangents library took for 2,000
points at depth 8 on two cores whose products ran at 143 GFLOP/s. Peak memory
is that of the whole process so far.
"""

import argparse
import resource
import statistics
import time

import jax

from mtl_jax import ntk

PRODUCT = 2000
REFERENCE_S, REFERENCE_RATE = 1.73, 143e9


def seconds(thunk):
  """Returns the wall time and the processor time of a call."""
  wall, cpu = time.perf_counter(), time.process_time()
  jax.block_until_ready(thunk())
  return time.perf_counter() - wall, time.process_time() - cpu


def measure(points, dim, depth, repeats):
  """Prints one line."""
  square = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT))
  x = jax.random.normal(jax.random.key(1), (points, dim))
  product = jax.jit(lambda a: a @ a)
  thunks = {'product': lambda: product(square),
            'kernels': lambda: ntk.fully_connected(x, depth=depth),
            'two sets': lambda: ntk.fully_connected(x, x + 1, depth=depth)}
  if points > 5000:
    del thunks['two sets']
  times = {name: [] for name in thunks}
  for thunk in thunks.values():
    seconds(thunk)
  for _ in range(repeats):
    for name, thunk in thunks.items():
      times[name].append(seconds(thunk))
  wall, cpu = ({name: statistics.median(t[i] for t in all_times)
                for name, all_times in times.items()} for i in range(2))
  rate = 2 * PRODUCT ** 3 / wall['product']
  best = 2 * PRODUCT ** 3 / min(t[0] for t in times['product'])
  reference = REFERENCE_S * REFERENCE_RATE / rate
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(f'{points} points of {dim}, depth {depth}:'
        f' product {rate / 1e9:.0f} GFLOP/s (best {best / 1e9:.0f}) ',
        *(f' {name} {wall[name]:.3f} s (CPU {cpu[name]:.3f}),'
          f' ratio {wall[name] / reference:.3f} '
          for name in thunks if name != 'product'),
        f' memory {memory:.2f} GB', sep='', flush=True)


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--points', type=int, default=2000)
  parser.add_argument('--depth', type=int, default=8)
  parser.add_argument('--dims', type=int, nargs='+', default=[10, 784])
  parser.add_argument('--repeats', type=int, default=5)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table."""
  args = parse(argv)
  for dim in args.dims:
    measure(args.points, dim, args.depth, args.repeats)


if __name__ == '__main__':
  main()
