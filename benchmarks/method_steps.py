"""Times a meta-step of every method, and what it holds in memory.

    python benchmarks/method_steps.py [--methods=maml,imaml] [--data=omniglot]
                                      [--choices loop unrolled]

Choices of how a device goes through its tasks. The gradient is the same:

  together    all tasks in one vmap (parallel.tasks_at_once=0)
  loop        one task at a time in a compiled loop (tasks_at_once=1)
  unrolled    one task at a time, the loop unrolled (unroll_passes)

and for MAML first order and rematerialised inner steps. Milliseconds are
medians; memory is what the compiled step needs in addition to its arguments,
on all devices together. CNN-4 with 32 channels, settings of the small
benchmarks (4 tasks, 5-way 5-shot), two CPU devices unless --devices says
otherwise.
"""

import argparse
import json
import pathlib
import statistics
import sys

import train_step

from mtl_jax import devices
from mtl_jax.algorithms import METHODS
from mtl_jax.config import load_config
from mtl_jax.run import parts

ROOT = pathlib.Path(__file__).parent.parent
CHOICES = {
    'together': {'parallel.tasks_at_once': 0},
    'loop': {'parallel.tasks_at_once': 1, 'parallel.unroll_passes': False},
    'unrolled': {'parallel.tasks_at_once': 1, 'parallel.unroll_passes': True},
}
MAML = {'first order': {'method.first_order': True},
        'remat': {'method.remat': True}}


def make_config(method, changes, args):
  """Returns the config of a run with these steps."""
  benchmark = args.data.partition('/')[0]
  c = load_config(f'{ROOT}/configs/{benchmark}_5shot.py:{method}')
  c.data.name, c.model.width = args.data, args.width
  c.train.ways, c.train.shots, c.train.queries = 5, 5, 5
  c.train.meta_batch, c.parallel.devices = 4, args.devices
  c.update_from_flattened_dict(changes)
  return c


def measure(config, repeats):
  """Returns (milliseconds, MiB, seconds of compilation) of a step."""
  step = train_step.compile_step(config, parts.make_run(config))
  step.once()
  seconds = statistics.median(step.once() for _ in range(repeats))
  memory = step.compiled.memory_analysis().temp_size_in_bytes * step.devices
  return 1e3 * seconds, memory / 2 ** 20, step.compilation


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--methods', default=','.join(METHODS))
  parser.add_argument('--data', default='glyphs')
  parser.add_argument('--devices', default=2, type=int)
  parser.add_argument('--width', default=32, type=int, help='channels')
  parser.add_argument('--choices', nargs='+', choices=[*CHOICES, *MAML],
                      help='default all')
  parser.add_argument('--repeats', default=7, type=int)
  parser.add_argument('--out', default='', help='a JSON file of results; those '
                      'that it has are not measured again')
  return parser.parse_args(argv)


def choices_of(method, args):
  """Returns name -> changes of the config."""
  choices = dict(CHOICES)
  if method == 'maml':
    choices |= {name: CHOICES['unrolled'] | changes
                for name, changes in MAML.items()}
  return {name: changes for name, changes in choices.items()
          if name in (args.choices or choices)}


def main(argv=None):
  """Prints a row per method and choice; results are kept in --out."""
  args = parse(argv)
  devices.split_cpu(args.devices)
  out = pathlib.Path(args.out) if args.out else None
  done = json.loads(out.read_text()) if out and out.exists() else {}
  print('| method | choice | ms per step | MiB | compilation, s |')
  print('|---|---|---|---|---|')
  for method in args.methods.split(','):
    for choice, changes in choices_of(method, args).items():
      name = f'{method} | {choice}'
      if name not in done:
        done[name] = measure(make_config(method, changes, args), args.repeats)
        if out:
          out.write_text(json.dumps(done, indent=2))
      ms, memory, compilation = done[name]
      print(f'| {name} | {ms:.0f} | {memory:.0f} | {compilation:.0f} |')
      sys.stdout.flush()


if __name__ == '__main__':
  main()
