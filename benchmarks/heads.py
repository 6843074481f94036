"""Times heads against the peers, both in one run on one machine.

    python benchmarks/heads.py --peers=DIR --peer_python=ENV/bin/python

DIR holds svm_head.py and logistic_head.py; ENV is an environment with torch,
qpth and scikit-learn. Without --peers, our times alone.

`svm` is MetaOptNet's training step of its head: 8 tasks of 75 support (5-way
15-shot) and 30 query examples with 640 features; fit, logits, and the gradient
of both. The peer is qpth, 15 iterations of a batched interior point method.
`logistic` is a meta-test: heads of 25 support examples (5-way 5-shot) with 640
unit-norm features. The peer is scikit-learn, one task after another. --tasks
makes both smaller. As in training and in a test, our tasks are divided among
the devices of the CPU, --devices of them.

Rounds of the two sides alternate, and the times are medians over the rounds.
On a shared machine only the ratio is reliable.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import train_step
from jax.sharding import PartitionSpec as P

from mtl_jax import devices
from mtl_jax.heads import logistic, svm

TASKS_AT_ONCE = 200  # of logistic, as config.eval.tasks_at_once


def shared(function, tasks):
  """Returns a jitted function of tasks, which all devices share evenly."""
  divided = P(devices.AXIS)
  return jax.jit(jax.shard_map(
    function, mesh=devices.mesh(0, tasks), in_specs=divided, out_specs=divided,
    check_vma=False))


def svm_step(tasks, ways=5, shots=15, queries=6, dim=640):
  """Returns (thunk, tasks, residual) of the peer's step."""
  rng = np.random.default_rng(0)
  draw = lambda count: jnp.asarray(
    0.1 * rng.normal(size=(tasks, ways * count, dim)), jnp.float32)
  support, query = draw(shots), draw(queries)
  labels = jnp.tile(jnp.arange(ways), shots)

  def loss(support, query):
    logits = lambda s, q: svm.logits(svm.fit(s, labels, ways), q)
    return jnp.sum(jax.vmap(logits)(support, query) ** 2)

  step = shared(jax.grad(loss, (0, 1)), tasks)
  gap = jax.jit(jax.vmap(lambda s: svm.diagnostics(
    svm.fit(s, labels, ways), s, labels)['gap']))(support)
  return lambda: step(support, query), tasks, f'gap {jnp.max(gap):.0e}'


def logistic_step(tasks, ways=5, shots=5, dim=640):
  """Returns (thunk, tasks, residual); the peer fits fewer of these heads."""
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(ways), shots)
  x = rng.normal(size=(tasks, len(labels), dim))
  x += 0.5 * rng.normal(size=(tasks, ways, dim))[:, labels]
  x /= np.linalg.norm(x, axis=-1, keepdims=True)
  at_once = min(tasks, TASKS_AT_ONCE)
  x = jnp.asarray(x.reshape(-1, at_once, *x.shape[1:]), jnp.float32)
  fit = shared(jax.vmap(lambda x: logistic.fit(x, labels, ways)), at_once)
  residuals = jax.jit(jax.vmap(
    lambda p, x: logistic.diagnostics(p, x, labels)))
  worst = max(map(jnp.max, jax.tree.leaves(residuals(fit(x[0]), x[0]))))
  return lambda: [fit(part) for part in x], tasks, f'residual {worst:.0e}'


def seconds_of(thunk):
  """Returns the wall-clock seconds of one call."""
  start = time.perf_counter()
  jax.block_until_ready(thunk())
  return time.perf_counter() - start


def peer_seconds(args, program, *flags):
  """Runs a peer and returns its median seconds for one task."""
  said = train_step.peer_says(args.peer_python, args.peers, program, *flags)
  return said['seconds'] / said['tasks']


def compare(args, name, make, tasks, program, flags, wanted):
  """Prints one line: ours, theirs and the ratio, per task."""
  thunk, tasks, residual = make(min(tasks, args.tasks or tasks))
  jax.block_until_ready(thunk())
  ours, theirs = [], []
  for _ in range(args.rounds):
    ours += [seconds_of(thunk) / tasks for _ in range(args.repeats)]
    if args.peers:
      theirs.append(peer_seconds(args, program, *flags))
  line = f'{name:9s} ours {1e3 * statistics.median(ours):8.3f} ms per task'
  if theirs:
    ratio = statistics.median(theirs) / statistics.median(ours)
    line += (f'  peer {1e3 * statistics.median(theirs):8.3f} ms per task'
             f'  x{ratio:.0f} (wanted x{wanted})')
  print(f'{line}  {residual}', flush=True)


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', choices=['svm', 'logistic'], default=None)
  parser.add_argument('--peers', default='')
  parser.add_argument('--peer_python', default='python3')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--repeats', type=int, default=5, help='per round')
  parser.add_argument('--devices', type=int, default=2,
                      help='as which the CPU is counted')
  parser.add_argument('--tasks', type=int, default=None,
                      help='of ours at most; default 8 and 2000')
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the lines."""
  args = parse(argv)
  devices.split_cpu(args.devices)
  if args.only != 'logistic':
    compare(args, 'svm', svm_step, 8, 'svm_head.py', ['--shots=15'], 50)
  if args.only != 'svm':
    compare(args, 'logistic', logistic_step, 2000, 'logistic_head.py',
            ['--shots=5', '--tasks=100'], 50)


if __name__ == '__main__':
  main()
