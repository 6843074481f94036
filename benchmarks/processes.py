"""Draws the first losses of one run on devices and processes of many numbers.

    python benchmarks/processes.py [--config=quickstart] [--steps=50]
        [--ways 1x1-jit 1x8-jit 1x8-pmap 2x1-jit 4x1-jit]
        [--out=docs/processes.png] [--config.FIELD=VALUE ..]

A way is PROCESSES x DEVICES of each - how the step is compiled. Each way trains
the same steps of 8 tasks in a folder of its own. The table has the largest
difference of a loss from that of the first way, after the first step and up to
the last. One seed draws the same tasks everywhere, so only the order of sums
differs.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

import matplotlib.figure
from etils import epath

from mtl_jax.run import metrics

WAYS = ('1x1-jit', '1x8-jit', '1x8-pmap', '2x1-jit', '4x1-jit')
TASKS = 8
ROOT = pathlib.Path(__file__).parent.parent


def parse(argv):
  """Returns the arguments of the command line."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='quickstart')
  parser.add_argument('--steps', type=int, default=50)
  parser.add_argument('--ways', nargs='+', default=WAYS, type=_way)
  parser.add_argument('--out', default='docs/processes.png')
  args, args.changes = parser.parse_known_args(argv)
  wrong = [x for x in args.changes if not x.startswith('--config.')]
  if wrong:
    parser.error(f'{wrong[0]} is unknown')
  return args


def _way(text):
  if not re.fullmatch('[1-9]x[1-9]-(jit|pmap)', text):
    raise argparse.ArgumentTypeError(f'{text}: write such as 2x1-jit')
  return text


def flags_of(way, args, folder):
  """Returns (number of processes, flags of mtl_jax.main) of a way."""
  processes, devices = (int(x) for x in way.partition('-')[0].split('x'))
  return processes, [
      f'--config={args.config}', f'--workdir={folder}',
      f'--config.parallel.cpu_devices={devices}',
      f'--config.parallel.devices={devices}',
      f'--config.parallel.compile={way.partition("-")[2]}',
      f'--config.train.meta_batch={TASKS}',
      f'--config.train.epoch_tasks={TASKS * args.steps}',
      '--config.train.max_epochs=1', '--config.validation.tasks=2',
      '--config.eval.tasks=2', '--config.eval.baselines=False',
      '--config.log.every_steps=1', '--config.log.progress=False',
      *args.changes]


def run_apart(processes, flags):
  """Trains in processes of their own."""
  program = ['mtl_jax.main'] if processes == 1 else [
      'launch.local', f'--processes={processes}', '--']
  subprocess.run([sys.executable, '-m', *program, *flags], cwd=ROOT,
                 check=True)


def losses(way, args):
  """Returns the loss of each step of a way."""
  with tempfile.TemporaryDirectory() as folder:
    run_apart(*flags_of(way, args, folder))
    records = metrics.read(epath.Path(folder))
  return [record['loss'] for record in records if 'loss' in record]


def table(found):
  """Returns the differences from the first way as a table in Markdown."""
  first, *_ = found.values()
  rows = ['| processes x devices | last loss | apart at step 1 | largest |',
          '|---|---|---|---|']
  for way, values in found.items():
    apart = [abs(a - b) for a, b in zip(values, first, strict=True)]
    rows.append(f'| {way} | {values[-1]:.4f} | {apart[0]:.1e} '
                f'| {max(apart):.1e} |')
  return '\n'.join(rows)


def draw(found, path):
  """Draws the losses, and how far they are from the first way's."""
  figure = matplotlib.figure.Figure(figsize=(9, 3.5), layout='constrained')
  left, right = figure.subplots(1, 2)
  first = next(iter(found.values()))
  steps = range(1, len(first) + 1)
  for i, (way, values) in enumerate(found.items()):
    # Each later curve is thinner, so that those below it can be seen.
    left.plot(steps, values, label=way, linewidth=2 * (len(found) - i) - 1)
    apart = [max(abs(a - b), 1e-9) for a, b in zip(values, first, strict=True)]
    if i:
      right.semilogy(steps, apart, label=way, color=f'C{i}')
  left.set(xlabel='step', ylabel='training loss')
  right.set(xlabel='step', ylabel='difference from the first way')
  for axes in (left, right):
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend(fontsize='small', title='processes x devices')
  figure.savefig(path, dpi=120)


def main(argv=None):
  """Trains in all ways, prints the table and draws the picture."""
  args = parse(argv)
  found = {way: losses(way, args) for way in args.ways}
  print(table(found))
  draw(found, args.out)


if __name__ == '__main__':
  main()
