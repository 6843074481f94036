"""Times a meta-step of every method, and what it holds in memory.

    python benchmarks/method_steps.py [--methods=maml,imaml] [--data=omniglot]

Choices of how a device goes through its tasks, of which the gradient does not
depend:

  together    all tasks in one vmap (devices.tasks_at_once=0)
  loop        one by one in a compiled loop (tasks_at_once=1)
  unrolled    one by one, compiled one behind the other (unroll_passes)

and for MAML first order and rematerialised inner steps. Milliseconds are
medians; memory is what the compiled step asks for beside its arguments, of all
devices together. CNN-4 with 32 channels, settings of the small benchmarks
(4 tasks, 5-way 5-shot), two CPU devices unless --devices says otherwise.
"""

import argparse
import json
import pathlib
import runpy
import statistics
import sys
import time

import jax

from mtl_jax import devices
from mtl_jax.algorithms import METHODS
from mtl_jax.data import episodes
from mtl_jax.data import store as stores
from mtl_jax.run import build
from mtl_jax.train import optimizer
from mtl_jax.train import step as steps

ROOT = pathlib.Path(__file__).parent.parent
CHOICES = {
    'together': {'parallel.tasks_at_once': 0},
    'loop': {'parallel.tasks_at_once': 1, 'parallel.unroll_passes': False},
    'unrolled': {'parallel.tasks_at_once': 1, 'parallel.unroll_passes': True},
}
MAML = {'first order': {'method.first_order': True},
        'remat': {'method.remat': True}}


def measure(method, data, devices, changes, repeats):
  """Returns (milliseconds, MiB, seconds of compilation) of a step."""
  get_config = runpy.run_path(str(ROOT / f'configs/{data}_5shot.py'))
  c = get_config['get_config'](method)
  c.model.width, c.train.meta_batch = 32, 4
  c.train.ways, c.train.shots, c.train.queries = 5, 5, 5
  c.update_from_flattened_dict(changes)
  store = stores.load(c.data.name, 'train')
  algorithm = build.algorithm_of(c, store.num_classes)
  state = build.initial_state(c, algorithm, store.images.shape[1:])
  compiled = devices.compile(
      steps.make_step(algorithm, optimizer.build(c.optimizer), c, 4),
      devices.mesh(devices, 4))
  arrays, key, state = compiled.put((
      stores.arrays(store, 'device'),
      episodes.stream_key(0, episodes.Stream.TRAIN), state))
  start = time.monotonic()
  step = compiled.step.lower(state, arrays, key, None).compile()
  compilation = time.monotonic() - start
  times = []
  for _ in range(repeats + 1):
    start = time.monotonic()
    state = jax.block_until_ready(step(state, arrays, key, None))[0]
    times.append(time.monotonic() - start)
  memory = step.memory_analysis().temp_size_in_bytes
  return 1e3 * statistics.median(times[1:]), memory / 2 ** 20, compilation


def main():
  """Prints a row a method and choice; results are kept in --out."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--methods', default=','.join(METHODS))
  parser.add_argument('--data', default='glyphs')
  parser.add_argument('--devices', default=2, type=int)
  parser.add_argument('--repeats', default=7, type=int)
  parser.add_argument('--out', default='', help='a JSON file to go on with')
  args = parser.parse_args()
  devices.split_cpu(args.devices)
  out = pathlib.Path(args.out) if args.out else None
  done = json.loads(out.read_text()) if out and out.exists() else {}
  print('| method | choice | ms a step | MiB | compilation, s |')
  print('|---|---|---|---|---|')
  for method in args.methods.split(','):
    choices = dict(CHOICES)
    if method == 'maml':
      choices |= {k: CHOICES['unrolled'] | v for k, v in MAML.items()}
    for choice, changes in choices.items():
      name = f'{method} | {choice}'
      if name not in done:
        done[name] = measure(method, args.data, args.devices, changes,
                             args.repeats)
        if out:
          out.write_text(json.dumps(done, indent=2))
      ms, memory, compilation = done[name]
      print(f'| {name} | {ms:.0f} | {memory:.0f} | {compilation:.0f} |')
      sys.stdout.flush()


if __name__ == '__main__':
  main()
