"""Times one compiled training step, beside PyTorch's and beside the machine.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --against=PEERS --peer_python=ENV/bin/python
    python benchmarks/train_step.py --methods=mtl,maml --models=conv4 \\
      --sizes=28x28x1,84x84x3 --tasks=1,4 --precisions=float32,bfloat16

Without --methods the cases of CASES are timed, each of which has a peer: a
PyTorch program of the same work in PEERS. Ours and the peer's then run in turn
for --rounds rounds, and `ratio` is the peer's median time over ours. Our step
also draws its tasks, gathers their images and augments them (crop and flip);
the peers have their images ready.

A line has the step's time, images and tasks per second, the memory of its
temporaries, the seconds of its compilation, its FLOPs by the compiled program,
and their share of what one product of two matrices reaches on this machine, in
float32 or bfloat16. --out keeps each line as JSON. Images are random; they
change no time.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# For `launch`, which is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from launch import hlo
from mtl_jax import algorithms, devices
from mtl_jax.config import flags
from mtl_jax.data import episodes
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.run import build, parts
from mtl_jax.train import optimizer
from mtl_jax.train import step as steps

ROOT = pathlib.Path(__file__).parent.parent
ROUND_SECONDS = 1  # at least, of each side
CLASSES, IMAGES_PER_CLASS = 64, 40  # of the random data set, at least


class Case(NamedTuple):
  """A step; the shots and queries are images of a class in a task."""

  method: str
  model: str
  size: tuple  # (h, w, c)
  ways: int = 5
  shots: int = 5
  queries: int = 5
  tasks: int = 2
  precision: str = 'float32'
  peer: tuple = ()  # program and flags
  flags: tuple = ()

  @property
  def images(self):
    """Images of a step."""
    return self.tasks * self.ways * (self.shots + self.queries)

  @property
  def name(self):
    """What a line is called."""
    size = 'x'.join(map(str, self.size))
    return (f'{self.method}, {self.model}, {size}, {self.tasks} x '
            f'{self.images // self.tasks} images, {self.precision}')


def _mtl(model, size, images, tasks):
  """Returns the MTL step of mtl_step.py, its images divided among tasks."""
  each = images // tasks // 5
  return Case('mtl', model, size, shots=each // 2, queries=each - each // 2,
              tasks=tasks, peer=(
                  'mtl_step.py', f'--model={model}', f'--size={size[0]}',
                  f'--channels={size[2]}', f'--images={images}'))


CASES = (
    _mtl('resnet12', (84, 84, 3), 25, 1),
    _mtl('resnet12', (32, 32, 3), 50, 2),
    _mtl('conv4', (84, 84, 3), 50, 2),
    _mtl('conv4', (28, 28, 1), 50, 2),
    Case('maml', 'conv4', (28, 28, 1), queries=15, tasks=4,
         peer=('maml_step.py', '--size=28', '--channels=1', '--tasks=4'),
         flags=('--config.method.inner_steps=5',)),
)


def config_of(case, args):
  """Returns the config of a case."""
  count = min(args.devices, jax.local_device_count())
  while case.tasks % count:
    count -= 1
  c = flags.parse([
      f'--config={ROOT}/configs/mini_5shot_cpu.py:{case.method}',
      f'--config.model.name={case.model}',
      f'--config.model.dtype={case.precision}', *case.flags], None).config
  c.train.update({'ways': case.ways, 'shots': case.shots,
                  'queries': case.queries, 'meta_batch': case.tasks})
  c.augment.operations = () if args.plain else ('crop', 'flip')
  c.augment.padding = 4 if case.size[0] < 84 else 8
  c.parallel.devices = count
  return c


def random_store(size, classes, images_per_class):
  """Returns a training split of random images."""
  rng = np.random.default_rng(0)
  offsets = np.arange(classes + 1, dtype=np.int32) * images_per_class
  images = rng.integers(0, 256, (offsets[-1], *size), dtype=np.uint8)
  return stores.Store(
      images, offsets, tuple(map(str, range(classes))),
      np.full(size[2], 0.5, np.float32), np.full(size[2], 0.3, np.float32),
      'random', 'train')


class Step(NamedTuple):
  """A compiled step."""

  once: Callable  # () -> seconds of one step, which goes on from the one before
  compiled: Any
  compilation: float  # seconds
  devices: int


def make_step(case, args):
  """Compiles the step of a case, of random images; returns a Step."""
  config = config_of(case, args)
  store = random_store(case.size, max(CLASSES, case.ways),
                       max(IMAGES_PER_CLASS, case.shots + case.queries))
  meta_batch, mesh = parts.make_mesh(config)
  return compile_step(config, parts.Run(
      build.algorithm_of(config, store.num_classes),
      optimizer.build(config.optimizer),
      meta_batch, steps.steps_per_epoch(config.train.epoch_tasks, meta_batch),
      mesh, {'train': store}))


def compile_step(config, run):
  """Compiles the step of a parts.Run; returns a Step."""
  store, compiled = run.splits['train'], parts.compile_step(config, run)
  state, arrays, key = compiled.put((
      build.initial_state(config, run.algorithm, store.images.shape[1:]),
      stores.arrays(store), episodes.stream_key(0, episodes.Stream.TRAIN)))
  start = time.monotonic()
  compiled = compiled.lower(state, arrays, key, None).compile()
  compilation = time.monotonic() - start

  def once():
    nonlocal state
    start = time.perf_counter()
    state, _ = jax.block_until_ready(compiled(state, arrays, key, None))
    return time.perf_counter() - start

  return Step(once, compiled, compilation, run.mesh.size)


def peak(precision):
  """Returns the FLOPs per second of a product of two matrices."""
  n = 2048 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((n, n), precision)
  product = jax.jit(lambda x: x @ x)
  times = []
  for _ in range(8):
    start = time.perf_counter()
    product(x).block_until_ready()
    times.append(time.perf_counter() - start)
  return 2 * n ** 3 / min(times[1:])


def peer_says(python, folder, program, *flags):
  """Runs a peer; returns the record that it prints last."""
  out = subprocess.run(
      [python, pathlib.Path(folder) / program, *flags], check=True,
      capture_output=True, text=True).stdout
  return json.loads(out.splitlines()[-1])


def measure(case, args, peaks):
  """Returns the record of a case."""
  step = make_step(case, args)
  ours, theirs = [], []
  step.once()  # the first one is longer
  # Of steps of 17 ms, five of each side differ by a factor of 1.5 in turn.
  repeats = max(args.repeats, round(ROUND_SECONDS / step.once()))
  for _ in range(args.rounds):
    step.once()  # what the peer has left in the caches is gone
    ours += [step.once() for _ in range(repeats)]
    if args.against and case.peer:
      theirs.append(peer_says(args.peer_python, args.against, *case.peer,
                              f'--repeats={repeats}')['seconds'])
  seconds = statistics.median(ours)
  flops = step.devices * sum(
      op.flops for op in hlo.read(step.compiled.as_text()).operations)
  if case.precision not in peaks:
    peaks[case.precision] = peak(case.precision)
  record = {
      'case': case.name, 'devices': step.devices, 'seconds': seconds,
      'images_per_second': case.images / seconds,
      'tasks_per_second': case.tasks / seconds,
      'temporary_bytes':
          step.compiled.memory_analysis().temp_size_in_bytes * step.devices,
      'compilation_seconds': step.compilation, 'flops': flops,
      'share_of_peak': flops / seconds / peaks[case.precision],
      'peak_flops': peaks[case.precision],
      'device': jax.devices()[0].device_kind, 'jax': jax.__version__}
  if theirs:
    record |= {'peer_seconds': statistics.median(theirs),
               'ratio': statistics.median(theirs) / seconds}
  return record


def line(record):
  """Returns a record as a line of a Markdown table."""
  peer = (f'{1e3 * record["peer_seconds"]:.1f} | {record["ratio"]:.2f}'
          if 'ratio' in record else '- | -')
  return (
      f'| {record["case"]} | {record["devices"]} '
      f'| {1e3 * record["seconds"]:.1f} | {record["images_per_second"]:.0f} '
      f'| {record["tasks_per_second"]:.1f} '
      f'| {record["temporary_bytes"] / 2 ** 20:.0f} '
      f'| {record["compilation_seconds"]:.1f} | {record["flops"] / 1e9:.1f} '
      f'| {record["share_of_peak"]:.0%} | {peer} |')


def cases_of(args):
  """Returns the cases that the flags ask for."""
  if not args.methods:
    return [case for case in CASES if args.only in case.name]
  lists = [text.split(',') for text in (
      args.methods, args.models, args.sizes, args.tasks, args.precisions)]
  return [
      Case(method, model, tuple(map(int, size.split('x'))), args.ways,
           args.shots, args.queries, int(tasks), precision)
      for method in lists[0] for model in lists[1] for size in lists[2]
      for tasks in lists[3] for precision in lists[4]]


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--methods', default='',
                      help='of ' + ', '.join(algorithms.METHODS) + ', or all')
  parser.add_argument('--models', default='conv4')
  parser.add_argument('--sizes', default='84x84x3')
  parser.add_argument('--tasks', default='2')
  parser.add_argument('--precisions', default='float32')
  for name in ('ways', 'shots', 'queries'):
    parser.add_argument(f'--{name}', type=int, default=5)
  parser.add_argument('--only', default='', help='cases whose name has this')
  parser.add_argument('--devices', type=int, default=2,
                      help='as which the CPU is counted; as many as divide the '
                      'tasks are used')
  parser.add_argument('--plain', action='store_true', help='no augmentation')
  parser.add_argument('--against', default='', help='folder of the peers')
  parser.add_argument('--peer_python', default='python3')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--repeats', type=int, default=5,
                      help='of a round, more where steps are short')
  parser.add_argument('--out', default='', help='file of JSON lines, appended')
  parser.add_argument('--json', action='store_true',
                      help='print JSON lines in place of the table')
  args = parser.parse_args(argv)
  if args.methods == 'all':
    args.methods = ','.join(algorithms.METHODS)
  return args


def main(argv=None):
  """Prints a table, or JSON lines; returns the exit code."""
  try:
    run(parse(argv))
  except UserError as error:
    print(f'train_step.py: {error}', file=sys.stderr)
    return 2
  return 0


def run(args):
  """Prints a table, or JSON lines; appends those to --out."""
  devices.split_cpu(args.devices)
  if not args.json:
    print('| step | devices | ms | images/s | tasks/s | MiB | compilation, s '
          '| GFLOP | of peak | peer, ms | ratio |')
    print('|---|---|---|---|---|---|---|---|---|---|---|')
  peaks = {}
  for case in cases_of(args):
    record = measure(case, args, peaks)
    print(json.dumps(record) if args.json else line(record), flush=True)
    if args.out:
      with open(args.out, 'a', encoding='utf-8') as file:
        file.write(json.dumps(record) + '\n')
  for precision, flops in peaks.items():
    if not args.json:
      print(f'peak of a {precision} product: {flops / 1e9:.0f} GFLOP/s')


if __name__ == '__main__':
  sys.exit(main())
