"""Times a whole test against the protocol that forwards each task's images.

    python benchmarks/meta_test.py --checkpoint=RUN --peers=DIR \\
      --peer_python=ENV/bin/python [--tasks=2000] [--queries=30] [--rounds=3]

Ours is the command `--mode=evaluate`, from its start to its files, of a run of
CNN-4 on 84x84 images: one logistic head for each of --tasks tasks, 5-way
5-shot. The peer's meta_test.py (PyTorch and scikit-learn) passes the images of
every task through the network and fits its head; it is timed on --peer_tasks
tasks and scaled, without its imports. Rounds of the two sides alternate.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import train_step


def ours(args, folder):
  """Returns the seconds of the command."""
  start = time.monotonic()
  subprocess.run(
      [sys.executable, '-m', 'mtl_jax.main', '--mode=evaluate',
       f'--checkpoint={args.checkpoint}', f'--workdir={folder}',
       f'--config.eval.tasks={args.tasks}', '--config.eval.ways=5',
       '--config.eval.shots=5', f'--config.eval.queries={args.queries}',
       "--config.eval.heads=('logistic',)", '--config.eval.also_shots=()',
       '--config.eval.baselines=False', '--config.log.progress=False'],
      check=True, stderr=subprocess.DEVNULL)
  return time.monotonic() - start


def theirs(args):
  """Returns the peer's seconds for as many tasks."""
  said = train_step.peer_says(
      args.peer_python, args.peers, 'meta_test.py',
      f'--tasks={args.peer_tasks}', f'--queries={args.queries}', '--repeats=1')
  return said['seconds'] * args.tasks / args.peer_tasks


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--peers', default='')
  parser.add_argument('--peer_python', default='python3')
  parser.add_argument('--tasks', type=int, default=2000)
  parser.add_argument('--queries', type=int, default=30)
  parser.add_argument('--peer_tasks', type=int, default=20)
  parser.add_argument('--rounds', type=int, default=3)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the medians and their ratio."""
  args = parse(argv)
  sides = [], []
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as folder:
      sides[0].append(ours(args, f'{folder}/test'))
    if args.peers:
      sides[1].append(theirs(args))
  seconds = statistics.median(sides[0])
  line = f'{args.tasks} tasks: {seconds:.1f} s, the whole command'
  if args.peers:
    peer = statistics.median(sides[1])
    line += (f'; peer {peer:.0f} s, from {args.peer_tasks} tasks; '
             f'x{peer / seconds:.0f}')
  print(line)


if __name__ == '__main__':
  main()
