"""Says whether and how fast a config would run on a machine that is not here.

    python -m launch.preflight --config=mini_5shot_pod --target=v5e:4x4

Compiles the training step of a config for a target and reads the program:
memory of a chip, collectives, the least time of a step by products, memory and
links, and tasks per second from 4 to 256 chips. Nothing is run.

    --config=NAME[:METHOD]      as of mtl_jax.main, with its --config.x=y
    --target=TARGET             v5e:4x4, v5e:16x16, v6e:16x16, v4:2x2x4, .. for
                                TPUs, or h100
    --train_images=N            of the training split, where the data set is
                                not built
    --operations=N              also shows the N slowest operations, and the
                                sum of all beside the least time
    --out=FOLDER                writes preflight.json and preflight.png there

TPUs need the extra tpu of this package, a GPU needs cuda. Exit code 1: the
config does not fit or divide; the last line says why.
"""

import logging
import os
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch import chips, hlo
from mtl_jax import devices, files, program
from mtl_jax.config import flags
from mtl_jax.config.check import validate
from mtl_jax.data import episodes, sources, store
from mtl_jax.data.source import names_of
from mtl_jax.errors import UserError, check_choice
from mtl_jax.run import build, parts
from mtl_jax.train import optimizer
from mtl_jax.train import step as steps

_OWN = ('target', 'train_images', 'operations', 'out')
_H100 = 'h100'
# The figures of this card that XLA's compiler asks for.
_GPU = (pathlib.Path(__file__).parent / 'h100.txtpb')
# A chip of v4 has two cores, which JAX joins to one device.
_CORES = {'v4': {'chip_config_name': 'megacore'}}
COUNTS = (4, 8, 16, 32, 64, 128, 256)
# BatchNorm reads a convolution's result for the statistics, and again to
# normalise and write it; its gradient reads result and gradient for two sums,
# and again to write the gradient of the result.
_NORMALISED = 8
_GIB = 2**30


class NoFit(Exception):
  """The config does not fit the target; the text says why."""


class Target(NamedTuple):
  """What is compiled for."""

  name: str
  chip: chips.Chip
  devices: list


class Found(NamedTuple):
  """What the program of a step says; sizes in bytes, per chip."""

  seconds: float  # of compilation
  arguments: int
  temporaries: int
  state: int  # of the arguments
  variables: int  # of the state
  program: hlo.Program

  def reduced(self, count):
    """Returns the bytes that `count` chips average.

    A program of one chip says nothing of them. They are the gradients and the
    statistics, as large as what they change.
    """
    known = sum(c.size for c in self.program.collectives)
    return known or self.variables * (count > 1)

  @property
  def flops(self):
    """Products and sums."""
    return sum(op.flops for op in self.program.operations)

  @property
  def traffic(self):
    """Bytes read and written."""
    return sum(op.traffic for op in self.program.operations)


def target(name):
  """Returns the Target of a name such as 'v5e:4x4' or 'h100'.

  Raises:
    UserError: no such target, or no compiler for it.
  """
  kind, _, shape = name.partition(':')
  check_choice('--target', kind, chips.CHIPS)
  if (kind == _H100) == bool(shape):
    raise UserError(f'--target: {name} must be {_H100}, or a TPU with its '
                    'topology, such as v5e:4x4')
  _say_where_no_tpu_is()
  try:
    if kind == _H100:
      described = _gpu()
    else:
      described = topologies.get_topology_desc(platform='tpu',
                                               topology_name=name,
          **_CORES.get(kind, {}))
  except ImportError as error:
    raise UserError(f"--target={name} needs jax[cuda12] ({error}): pip install "
                    "'jax[cuda12]'") from error
  except Exception as error:  # libtpu raises errors of several kinds
    raise UserError(
        f'--target={name}: {str(error).splitlines()[0][:200]}: install libtpu '
        '(pip install libtpu), and take a topology that it knows, such as '
        'v5e:2x2') from error
  return Target(name, chips.CHIPS[kind], list(described.devices))


def _say_where_no_tpu_is():
  """Tells libtpu that there is no TPU to ask, and to be quiet about it."""
  for name, value in (('TPU_SKIP_MDS_QUERY', '1'), ('TPU_WORKER_ID', '0'),
                      ('TPU_WORKER_HOSTNAMES', 'localhost'),
                      ('TPU_ACCELERATOR_TYPE', 'v5litepod-4'),
                      ('TPU_MIN_LOG_LEVEL', '3'),
                      ('TPU_STDERR_LOG_LEVEL', '3')):
    os.environ.setdefault(name, value)


def _gpu():
  """Returns the topology of one H100, which need not be here."""
  import jax_plugins.xla_cuda12 as plugin
  # Measuring which program is best would need the card.
  os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                             + ' --xla_gpu_autotune_level=0')
  # JAX finds the plugin a second time, and says so at length.
  logging.getLogger('jax._src.xla_bridge').setLevel(logging.CRITICAL)
  plugin.initialize()
  return topologies.get_topology_desc(
      _H100, platform='cuda', target_config=_GPU.read_text(),
      topology='1x1x1')


def meta_batch_of(config, count):
  """Returns T for a number of chips.

  Raises:
    NoFit: the chips cannot share the tasks of a step.
  """
  if config.parallel.tasks_per_device is not None:
    return config.parallel.tasks_per_device * count
  if config.train.meta_batch % count:
    raise NoFit(
        f'config.train.meta_batch is {config.train.meta_batch}, which {count} '
        'chips cannot share evenly: take a multiple, or set '
        'config.parallel.tasks_per_device')
  return config.train.meta_batch


def lower(config, aim, train_images=None):
  """Returns the lowered step of a config for a Target, and its abstract state.

  Args:
    config: see mtl_jax/config/fields.py.
    aim: Target.
    train_images: of the training split; None: of the built data set.

  Raises:
    NoFit: the tasks cannot be shared.
    UserError: the data set is not built, and `train_images` is None.
  """
  meta_batch = meta_batch_of(config, len(aim.devices))
  parts.check_tasks_at_once(config, meta_batch // len(aim.devices))
  mesh = Mesh(np.array(aim.devices), (devices.AXIS,))
  chosen = sources.find(config.data.name)
  images = _images(config, chosen, train_images)
  classes = len(names_of(chosen.source.classes(chosen.variant),
                         config.train.classes))
  algorithm = build.algorithm_of(config, classes)
  run = parts.Run(
      algorithm, optimizer.build(config.optimizer), meta_batch,
      steps.steps_per_epoch(config.train.epoch_tasks, meta_batch), mesh,
      {'train': store.Store(images, (), None, None, None, None, None)})
  state = jax.eval_shape(
      lambda: build.initial_state(config, algorithm, images.shape[1:]))
  key = jax.eval_shape(lambda: episodes.stream_key(
      config.seed, episodes.Stream.TRAIN))
  on_host = store.place_of(
      config.data.store, _size(images), aim.chip.memory) == 'host'
  channels = images.shape[-1]
  arrays = store.Arrays(
      None if on_host else _abstract(
          (images.shape[0], *store.padded_shape(images.shape[1:])), np.uint8),
      _abstract((classes + 1,), np.int32),
      *[_abstract((channels,), np.float32)] * 2)
  c = config.train
  pixels = _abstract((meta_batch, c.ways, c.shots + c.queries,
                      *images.shape[1:]), np.uint8) if on_host else None
  everywhere = NamedSharding(mesh, P())
  put = lambda tree, where: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)
  compiled = parts.compile_step(config, run)
  return compiled.lower(
      *put((state, arrays, key), everywhere),
      put(pixels, NamedSharding(mesh, P(devices.AXIS)))), state


def _images(config, chosen, count):
  """Returns the abstract array of all training images."""
  c = config.data
  if count is None:
    built = store.builder(c.name, c.dir)
    if not built.data_path.exists():
      raise UserError(f'{c.name} is not built here: build it, or say how many '
                      'training images it has, by --train_images')
    count = built.info.splits[config.train.classes].num_examples
    shape = built.info.features['image'].shape
  else:
    shape = chosen.source.image_shape
    if shape is None:
      raise UserError(f'{c.name}: the size of its images is known only when it '
                      'is built: build it, and leave out --train_images')
  return _abstract((count, *shape), np.uint8)


def _abstract(shape, dtype):
  return jax.ShapeDtypeStruct(shape, dtype)


def _size(tree):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def read(lowered, state):
  """Compiles a lowered step; returns Found."""
  start = time.monotonic()
  compiled = lowered.compile()
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  return Found(seconds, memory.argument_size_in_bytes,
               memory.temp_size_in_bytes, _size(state), _size(state.variables),
               hlo.read(compiled.as_text()))


def least_seconds(found, chip, count, share=1.):
  """Returns the least times of a step: products, memory, links.

  Args:
    found: of the program.
    chip: Chip.
    count: of chips.
    share: the tasks of a chip over those of the program.
  """
  return (share * found.flops / chip.flops,
          share * found.traffic / chip.bandwidth,
          chips.all_reduce_seconds(chip, count, found.reduced(count)))


def scaling(config, found, aim):
  """Yields (chips, tasks of a step, least seconds of it; None: no division)."""
  compiled_for = meta_batch_of(config, len(aim.devices)) / len(aim.devices)
  for count in sorted({len(aim.devices), *COUNTS}):
    try:
      tasks = meta_batch_of(config, count)
    except NoFit:
      yield count, config.train.meta_batch, None
      continue
    products, memory, links = least_seconds(
        found, aim.chip, count, tasks / count / compiled_for)
    yield count, tasks, max(products, memory) + links


def lines(config, found, aim):
  """Yields the report, line by line."""
  count, chip = len(aim.devices), aim.chip
  tasks = meta_batch_of(config, count)
  c = config.train
  yield (f'{config.method.name} with {config.model.name} on '
         f'{config.data.name}, for {aim.name}: {count} x '
         f'{aim.devices[0].device_kind}; compiled in {found.seconds:.0f} s, '
         'not run')
  yield (f'a step: {tasks} tasks of {c.ways} ways, {c.shots} + {c.queries} '
         f'images per class; {tasks // count} tasks and '
         f'{tasks // count * c.ways * (c.shots + c.queries)} images on each')
  yield (f'memory of a chip: {(found.arguments + found.temporaries) / _GIB:.2f}'
         f' of {chip.memory / _GIB:.1f} GiB: state {found.state / _GIB:.2f}, '
         f'data {(found.arguments - found.state) / _GIB:.2f}, temporary '
         f'{found.temporaries / _GIB:.2f}')
  program = found.program
  yield (f'work of a chip: {found.flops / 1e12:.3f} TFLOP, '
         f'{found.traffic / 1e9:.2f} GB read and written'
         + (f'; {program.unknown_loops} loops, whose passes the program '
            'does not say, count once' if program.unknown_loops else ''))
  yield ('collectives: ' + (', '.join(
      f'{c.count} {c.name} of {c.size / 1e6:.2f} MB'
      for c in program.collectives) or 'none'))
  products, memory, links = least_seconds(found, chip, count)
  yield (f'least time of a step: {1e3 * (max(products, memory) + links):.2f} '
         f'ms: the longer of products, {1e3 * products:.2f}, and memory, '
         f'{1e3 * memory:.2f}; and links, {1e3 * links:.2f}')
  yield '| chips | tasks of a step | least ms | at most tasks/s | per chip |'
  yield '|---|---|---|---|---|'
  for number, tasks, seconds in scaling(config, found, aim):
    yield (f'| {number} | {tasks} | {1e3 * seconds:.2f} | '
           f'{tasks / seconds:,.0f} | {tasks / seconds / number:,.1f} |'
           if seconds else f'| {number} | {tasks} | does not divide | | |')


def roofline(found, chip, most):
  """Yields the slowest operations of a program, and what all take.

  An operation takes at least as long as its products or its bytes do. The floor
  of their sum is the longer of all products and of the bytes that must move:
  what products read and write, and _NORMALISED times each convolution's result.

  Args:
    found: of the program.
    chip: Chip.
    most: operations to show.
  """
  timed = sorted(((max(op.flops / chip.flops, op.traffic / chip.bandwidth), op)
                  for op in found.program.operations),
                 key=lambda pair: -pair[0])
  yield '| operation | ms | GFLOP | MB | of |'
  yield '|---|---|---|---|---|'
  for seconds, op in timed[:most]:
    yield (f'| {op.name} | {1e3 * seconds:.3f} | {op.flops / 1e9:.1f} '
           f'| {op.traffic / 1e6:.1f} | {op.source.rpartition("jit(")[2]} |')
  total = sum(seconds for seconds, _ in timed)
  products = [op for _, op in timed if op.flops]
  normalised = [op for op in products
                if 'conv' in op.source and 'transpose(' not in op.source]
  moved = (sum(op.traffic for op in products) + _NORMALISED * sum(
      op.written for op in normalised)) / chip.bandwidth
  floor = max(found.flops / chip.flops, moved)
  yield (f'{len(timed)} operations, one after another: {1e3 * total:.2f} ms; '
         f'floor {1e3 * floor:.2f} ms, the longer of all products, '
         f'{1e3 * found.flops / chip.flops:.2f}, and of what they and '
         f'BatchNorm read and write, {1e3 * moved:.2f}'
         + (f': {total / floor:.2f} times' if floor else ''))


def check_memory(found, aim):
  """Raises NoFit where a chip has too little memory."""
  needed = found.arguments + found.temporaries
  if needed > aim.chip.memory:
    raise NoFit(f'a chip needs {needed / _GIB:.1f} GiB and has '
                f'{aim.chip.memory / _GIB:.1f}: set '
                'config.parallel.tasks_at_once, or data.store=host')


def draw(path, config, found, aim):
  """Draws tasks per second against chips."""
  from matplotlib.figure import Figure
  figure = Figure((6, 4), layout='tight')
  axes = figure.add_subplot()
  points = [(count, tasks / seconds) for count, tasks, seconds in scaling(
      config, found, aim) if seconds]
  axes.loglog(*zip(*points, strict=True), 'o-', base=2, label='at most')
  first = points[0][1] / points[0][0]
  axes.loglog([n for n, _ in points], [first * n for n, _ in points], ':',
              color='grey', label='in proportion')
  axes.set(xlabel='chips', ylabel='tasks per second',
           title=f'{config.method.name}, {config.model.name}, {aim.name}')
  axes.grid(alpha=.3)
  axes.legend()
  figure.savefig(path, dpi=100)


def parse(argv):
  """Returns the config and this program's own flags.

  Raises:
    UserError: a flag is wrong.
  """
  own, others = dict.fromkeys(_OWN), []
  for text in argv:
    name, _, value = text.removeprefix('--').partition('=')
    if name in own and text.startswith('--'):
      own[name] = value
    else:
      others.append(text)
  if not own['target']:
    raise UserError('--target is missing: name one, such as --target=v5e:4x4')
  for name in ('train_images', 'operations'):
    if own[name] is not None:
      if not own[name].isdecimal() or not int(own[name]):
        raise UserError(f'--{name} is {own[name]}: must be a number above 0')
      own[name] = int(own[name])
  for text in others:
    name = text.partition('=')[0]
    if name.startswith('--') and not name.startswith('--config'):
      raise UserError(f'{name} is unknown here: a training step is compiled, '
                      'which --config and its fields describe')
  command = flags.parse(others, lambda path: None)
  return command.config, own


def run(config, own):
  """Compiles and prints; raises NoFit or UserError."""
  aim = target(own['target'])
  config.parallel.devices = len(aim.devices)
  validate(config)
  if own['out']:  # before minutes of compiling
    files.make(files.at(own['out']))
  lowered, state = lower(config, aim, own['train_images'])
  try:
    found = read(lowered, state)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' in str(error):
      raise NoFit('the compiler finds no room in the memory of a chip: '
                  f'{str(error).splitlines()[0][:300]}') from error
    raise
  for line in lines(config, found, aim):
    print(line, flush=True)
  if own['operations']:
    print(*roofline(found, aim.chip, own['operations']), sep='\n', flush=True)
  if own['out']:
    folder = files.at(own['out'])
    files.write(folder / 'preflight.json', _json(config, found, aim))
    draw(folder / 'preflight.png', config, found, aim)
  check_memory(found, aim)


def _json(config, found, aim):
  """Returns the contents of preflight.json."""
  return files.json_text({
      'target': aim.name, 'chips': len(aim.devices),
      'method': config.method.name, 'model': config.model.name,
      'argument_bytes': found.arguments, 'temporary_bytes': found.temporaries,
      'state_bytes': found.state, 'flops': found.flops,
      'traffic_bytes': found.traffic,
      'unknown_loops': found.program.unknown_loops,
      'collectives': [c._asdict() for c in found.program.collectives],
      'scaling': [{'chips': count, 'tasks': tasks, 'seconds': seconds}
                  for count, tasks, seconds in scaling(config, found, aim)],
      }).encode()


def main(argv=None):
  """Runs the command line; returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  if {'-h', '--help'} & set(argv):
    program.show(__doc__)
    return 0
  # The target is not here, and its library must not look for it.
  jax.config.update('jax_platforms', 'cpu')
  try:
    with files.errors():
      run(*parse(argv))
  except UserError as error:
    print(f'launch.preflight: {error}', file=sys.stderr)
    return 2
  except NoFit as error:
    print(f'launch.preflight: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
