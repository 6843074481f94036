"""Makes the comparison of the paper, cell by cell.

    python benchmarks/reproduce.py --scale=cpu --minutes=120
    python -m mtl_jax.report results/cpu --page=docs/comparison

A cell is a method on a benchmark with 1 or 5 shots and a seed. Its record goes
to OUT/SCALE/BENCHMARK/METHOD_Kshot_seedS.json as soon as it is finished, with
what it cost and how it was made. A finished cell is not repeated; a training
that was stopped resumes. So the same command goes on, in as many pieces as you
like. OUT/SCALE/cells.json lists all cells and what is missing.

    --scale=cpu     CNN-4, two CPU cores: about 11 hours in all
    --scale=gpu     the published settings but bfloat16, ResNet-12, one
                    accelerator; in the order of their worth, MTL first
    --prepare       compiles the steps, no more; data sets that need no files
                    are built, too
    --minutes=N     ends after N minutes; the training in progress is saved
    --only=TEXT     trainings with a cell whose name has TEXT, such as
                    mini_imagenet/mtl_5shot
    --list          prints the cells, their state and their commands, and writes
                    cells.json

Any further --config.field=value goes to every training.

Where a method has one training for all shots, it makes the cells of both.
"""

import argparse
import datetime
import json
import math
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax

# For `launch`, which is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from launch import chips, preflight
from mtl_jax import algorithms, devices, early, files
from mtl_jax.config import flags, load_config
from mtl_jax.data import sources
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.report import cell as cells
from mtl_jax.run import parts, workdir

ROOT = pathlib.Path(__file__).parent.parent
SHOTS = 5, 1


class Benchmark(NamedTuple):
  """How the cells of a data set are made.

  configs: K -> name of the config.
  flags: further ones.
  seeds: of every method.
  more_seeds: method -> seeds in place of these.
  methods: in the order of their worth.
  """

  configs: dict
  flags: tuple
  seeds: tuple = (0,)
  more_seeds: dict = {}
  methods: tuple = tuple(algorithms.METHODS)


_SMALL = ('--config.model.width=32', '--config.eval.tasks=1000',
          '--config.validation.tasks=200', '--config.parallel.cpu_devices=2')
# A network that adapts all layers takes more than ten minutes for 2,000 tasks,
# and the untrained one, a baseline, as long again.
_MINI = ('--config.eval.tasks=2000', '--config.validation.tasks=200',
         '--config.eval.baselines=False')
_MINI_CONFIGS = {5: 'mini_5shot_cpu', 1: 'mini_1shot_cpu'}
_OTHERS = 'tiered_imagenet', 'cifar_fs', 'fc100'
SCALES = {
    'cpu': {
        'glyphs': Benchmark({5: 'glyphs_5shot', 1: 'glyphs_1shot'}, _SMALL,
                            (0, 1, 2)),
        'omniglot': Benchmark({5: 'omniglot_5shot', 1: 'omniglot_1shot'},
                              _SMALL, (0, 1, 2)),
        'mini_imagenet': Benchmark(_MINI_CONFIGS, _MINI, more_seeds={
            name: (0, 1) for name in ('mtl', 'anil', 'protonet', 'metaoptnet')
        }),
        **{name: Benchmark(_MINI_CONFIGS,
                           (*_MINI, f'--config.data.name={name}'))
           for name in _OTHERS},
    },
    'gpu': {
        name: Benchmark({5: f'{short}_5shot', 1: f'{short}_1shot'},
                        ('--config.model.dtype=bfloat16',),
                        methods=('mtl', 'metaoptnet'))
        for name, short in (
            ('mini_imagenet', 'mini'), ('tiered_imagenet', 'tiered'),
            ('cifar_fs', 'cifar_fs'), ('fc100', 'fc100'))},
}
# (benchmark, method, K) -> accuracy and the half-width of its interval in per
# cent, network, source. Of CNN-4, or what comes nearest.
_LEE = 'Lee et al. (2019)'
_CNN4 = {
    ('mini_imagenet', 'maml', 5): (63.11, 0.92, 'CNN-4, 32', 'Finn et al. '
                                   '(2017)'),
    ('mini_imagenet', 'maml', 1): (48.70, 1.84, 'CNN-4, 32', 'Finn et al. '
                                   '(2017)'),
    ('mini_imagenet', 'anil', 5): (61.00, 0.60, 'CNN-4, 64', 'Deleu et al. '
                                   '(2022)'),
    ('mini_imagenet', 'anil', 1): (46.30, 0.40, 'CNN-4, 64', 'Deleu et al. '
                                   '(2022)'),
    ('mini_imagenet', 'meta_sgd', 5): (64.03, 0.94, 'CNN-4', 'Li et al. '
                                       '(2017)'),
    ('mini_imagenet', 'meta_sgd', 1): (50.47, 1.87, 'CNN-4', 'Li et al. '
                                       '(2017)'),
    ('mini_imagenet', 'imaml', 5): (59.77, 0.73, 'CNN-4', 'Deleu et al. '
                                    '(2022)'),
    ('mini_imagenet', 'imaml', 1): (49.30, 1.88, 'CNN-4', 'Rajeswaran et al. '
                                    '(2019)'),
    ('mini_imagenet', 'minibatch_prox', 5): (
        64.15, 0.92, 'CNN-4, 32', 'Zhou et al. (2019)'),
    ('mini_imagenet', 'minibatch_prox', 1): (
        48.51, 0.92, 'CNN-4, 32', 'Zhou et al. (2019)'),
    ('mini_imagenet', 'r2d2', 5): (68.8, 0.1, '96 to 512 channels',
                                   'Bertinetto et al. (2019)'),
    ('mini_imagenet', 'r2d2', 1): (51.2, 0.6, '96 to 512 channels',
                                   'Bertinetto et al. (2019)'),
    ('mini_imagenet', 'protonet', 5): (70.68, None, 'CNN-4', _LEE),
    ('mini_imagenet', 'protonet', 1): (53.47, None, 'CNN-4', _LEE),
    ('mini_imagenet', 'metaoptnet', 5): (68.76, 0.48, 'CNN-4', _LEE),
    ('mini_imagenet', 'metaoptnet', 1): (52.87, 0.57, 'CNN-4', _LEE),
    ('mini_imagenet', 'whole_class', 5): (71.56, 0.52, 'CNN-4', 'Tian et al. '
                                          '(2020)'),
    ('mini_imagenet', 'whole_class', 1): (55.25, 0.58, 'CNN-4', 'Tian et al. '
                                          '(2020)'),
}
_WANG = 'Wang et al. (2021)'
_RESNET = {
    (name, method, shots): (value, half_width, 'ResNet-12', source)
    for method, source, rows in (
        ('mtl', _WANG, {
            'mini_imagenet': ((77.72, 0.09), (59.84, 0.22)),
            'tiered_imagenet': ((83.69, 0.02), (67.11, 0.12)),
            'cifar_fs': ((84.1, 0.1), (69.5, 0.3)),
            'fc100': ((57.7, 0.3), (42.4, 0.2))}),
        ('metaoptnet', _LEE, {
            'mini_imagenet': ((78.63, 0.46), (62.64, 0.61)),
            'tiered_imagenet': ((81.56, 0.53), (65.99, 0.72)),
            'cifar_fs': ((84.2, 0.5), (72.0, 0.7)),
            'fc100': ((55.5, 0.6), (41.1, 0.6))}))
    for name, values in rows.items()
    for shots, (value, half_width) in zip(SHOTS, values, strict=True)}
PUBLISHED = {'cpu': _CNN4, 'gpu': _RESNET}


class Training(NamedTuple):
  """A training, which makes one or two cells."""

  scale: str
  benchmark: str
  method: str
  seed: int
  shots: tuple  # of its cells; the first is that of its config
  more: tuple = ()  # flags

  @property
  def name(self):
    """Returns the name of its first cell."""
    return self.cell(self.shots[0])

  def cell(self, shots):
    """Returns the name of a cell, such as 'mini_imagenet/mtl_5shot_seed0'."""
    return f'{self.benchmark}/{self.method}_{shots}shot_seed{self.seed}'

  def record(self, out, shots):
    """Returns the path of the record of one of its cells."""
    return out / self.scale / f'{self.cell(shots)}.json'

  def flags(self, path):
    """Returns the flags of mtl_jax.main."""
    benchmark = SCALES[self.scale][self.benchmark]
    return [f'--config={benchmark.configs[self.shots[0]]}:{self.method}',
            f'--config.seed={self.seed}', f'--workdir={path}',
            *benchmark.flags,
            *(f'--config.eval.also_shots={k},' for k in self.shots[1:]),
            *self.more]


def trainings(scale, more=()):
  """Returns the Trainings of a scale in the order of their worth.

  `more` are flags for all of them.
  """
  found = []
  for name, benchmark in SCALES[scale].items():
    for method in benchmark.methods:
      config = load_config(f'{ROOT}/configs/{benchmark.configs[5]}.py:{method}')
      recipes = algorithms.find(method).RECIPES
      once = (config.recipe.benchmark, None, config.recipe.scale) in recipes
      for seed in benchmark.more_seeds.get(method, benchmark.seeds):
        found += [Training(scale, name, method, seed, shots, tuple(more))
                  for shots in ([SHOTS] if once else [(k,) for k in SHOTS])]
  # All methods once before any twice; in the order of the paper's table.
  return sorted(found, key=lambda t: t.seed)


def at_hand(name):
  """Returns whether a data set is built, or needs no files to be built."""
  source, _ = sources.find(name)
  return not source.put or stores.builder(name, None).data_path.exists()


def state(training, shots, out, runs):
  """Returns 'done', 'begun', 'not run yet' or 'data not at hand'."""
  if training.record(out, shots).exists():
    return 'done'
  if not at_hand(training.benchmark):
    return 'data not at hand'
  begun = (runs / training.scale / training.name / workdir.CONFIG).exists()
  return 'begun' if begun else 'not run yet'


def command(training, path):
  """Returns the command of a training as a user types it."""
  return ' '.join(['python -m mtl_jax.main', *training.flags(path)])


def write_cells(all_trainings, out, runs):
  """Writes cells.json of a scale, for the page; returns its contents."""
  listed = [{
      'scale': t.scale, 'benchmark': t.benchmark, 'method': t.method,
      'shots': k, 'seed': t.seed, 'status': state(t, k, out, runs),
      'command': command(t, f'runs/{t.scale}/{t.name}')}
            for t in all_trainings for k in t.shots]
  folder = files.at(out / all_trainings[0].scale)
  files.make(folder)
  files.write(folder / 'cells.json', files.json_text(listed, indent=1) + '\n')
  return listed


def train(training, path, deadline):
  """Trains and tests; returns whether it has ended.

  At the deadline the training is told to save its state. Its exit code alone
  says that it has ended: a test may be that of an earlier start.

  Raises:
    SystemExit: it failed.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path.parent / f'{path.name}.log', 'a') as log:
    process = subprocess.Popen(
        [sys.executable, '-m', 'mtl_jax.main', *training.flags(path)],
        cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
      code = process.wait(max(1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM)
      code = process.wait()
    except KeyboardInterrupt:
      process.send_signal(signal.SIGINT)
      process.wait()
      raise
  if code not in (0, early.PREEMPTED):
    sys.exit(f'{training.name} ended with exit code {code}: see {log.name}')
  return code == 0


def cost(config):
  """Returns the FLOPs of a step, of the compiled program, and parameters."""
  here = jax.devices()[:parts.make_mesh(config)[1].size]
  nowhere = chips.Chip(flops=1., memory=math.inf, bandwidth=1., links=1.)
  lowered, state = preflight.lower(
      config, preflight.Target('here', nowhere, here))
  found = preflight.read(lowered, state)
  return {'flops_per_step': found.flops * len(here),
          'unknown_loops': found.program.unknown_loops,
          'parameters': sum(x.size for x in jax.tree.leaves(
              state.variables['params']))}


def cost_of(path, runs):
  """Returns `cost` of a run, kept for runs that differ in the seed alone.

  A process of its own finds it: one that has used an accelerator keeps its
  memory from the next training.
  """
  config = workdir.saved_config(path)
  kept = runs / 'costs' / (
      workdir.of_training(config)['settings_sha256'] + '.json')
  if not kept.exists():
    kept.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, __file__, f'--cost_of={path}',
                    f'--cost_to={kept}'], cwd=ROOT, check=True)
  return json.loads(kept.read_text())


def git(*words):
  """Returns what git prints; None outside of a clone."""
  try:
    return subprocess.run(['git', *words], cwd=ROOT, check=True, text=True,
                          capture_output=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def write_records(training, path, out, runs):
  """Writes the records of a finished training."""
  files.write(files.at(path / cells.COST), json.dumps(cost_of(path, runs)))
  about = {
      'commit': git('rev-parse', 'HEAD'),
      'changed': bool(git('status', '--porcelain', '--untracked-files=no', '--',
                          '.', ':!results')),
      'command': command(training, f'runs/{training.scale}/{training.name}'),
      'date': datetime.date.today().isoformat()}
  for record in cells.of_run(path):
    shots = record['cell']['shots']
    record['cell'] |= {'scale': training.scale,
                       'benchmark': training.benchmark}
    known = PUBLISHED[training.scale].get(
        (training.benchmark, training.method, shots))
    if known:
      value, half, network, source = known
      record['published'] = {
          'accuracy': value / 100, 'ci95': half and half / 100,
          'network': network, 'source': source}
    record['provenance'] |= about
    file = training.record(out, shots)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(files.at(file), files.json_text(record) + '\n')


def prepare(wanted, runs):
  """Builds the data sets and compiles every step once, into the cache."""
  for training in wanted:
    if not at_hand(training.benchmark):
      print(f'{training.name}: data not at hand', flush=True)
    else:
      path = runs / 'prepared' / training.name
      config = flags.parse(training.flags(path), workdir.saved_config).config
      stores.prepare(config.data.name, config.data.dir, None)
      print(f'{training.name}: {cost(config)}', flush=True)


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--scale', choices=SCALES, default='cpu')
  parser.add_argument('--minutes', type=float, default=math.inf)
  parser.add_argument('--only', default='')
  parser.add_argument('--out', type=pathlib.Path, default='results')
  parser.add_argument('--runs', type=pathlib.Path, default='runs')
  parser.add_argument('--prepare', action='store_true')
  parser.add_argument('--list', action='store_true')
  for name in ('--cost_of', '--cost_to'):  # of the call in `cost_of`
    parser.add_argument(name, type=pathlib.Path, help=argparse.SUPPRESS)
  args, args.more = parser.parse_known_args(argv)
  for flag in args.more:
    if not flag.startswith('--config.'):
      parser.error(f'{flag} is unknown')
  return args


def main(argv=None):
  """Runs the command line; returns the exit code."""
  try:
    return make(parse(argv))
  except UserError as error:
    print(f'reproduce.py: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    return early.STOPPED


def make(args):
  """Makes what is missing of the cells that the flags name; returns 0."""
  deadline = time.monotonic() + 60 * args.minutes
  devices.split_cpu(2)
  if args.cost_of:
    files.write(files.at(args.cost_to), json.dumps(
        cost(workdir.saved_config(args.cost_of))))
    return 0
  out, runs = args.out.absolute(), args.runs.absolute()
  everything = trainings(args.scale, args.more)
  wanted = [t for t in everything
            if any(args.only in t.cell(k) for k in t.shots)]
  if not wanted:
    sys.exit(f'--only={args.only} names no cell: see --list')
  if args.prepare:
    prepare(wanted, runs)
    return 0
  for training in () if args.list else wanted:
    states = {state(training, k, out, runs) for k in training.shots}
    if states == {'done'} or 'data not at hand' in states:
      continue
    if time.monotonic() > deadline:
      break
    print(f'{time.strftime("%H:%M")} {training.name}', flush=True)
    path = runs / training.scale / training.name
    if train(training, path, deadline):
      write_records(training, path, out, runs)
    write_cells(everything, out, runs)
  shown = {(t.benchmark, t.method, k, t.seed) for t in wanted for k in t.shots}
  for cell in write_cells(everything, out, runs):
    if args.list and (cell['benchmark'], cell['method'], cell['shots'],
                      cell['seed']) in shown:
      print('{benchmark} {method} {shots}-shot seed {seed}: {status}\n    '
            '{command}'.format(**cell))
  states = [{state(t, k, out, runs) for k in t.shots} for t in wanted]
  left = [found for found in states if found & {'begun', 'not run yet'}]
  print(f'{len(left)} trainings are left.')
  without = dict.fromkeys(t.benchmark for t, found in zip(
      wanted, states, strict=True) if 'data not at hand' in found)
  if without:
    print(f'Others need data that are not at hand: build {", ".join(without)} '
          'by python -m mtl_jax.data build NAME --manual_dir=FOLDER')
  return 0


if __name__ == '__main__':
  # A training must not go on alone.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  sys.exit(main())
