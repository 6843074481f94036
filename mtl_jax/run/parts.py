"""Makes the parts of a run that trains: data, devices, steps, validation.

Nothing here is written to a workdir.
"""

import functools
from typing import Any, NamedTuple

from mtl_jax import devices, processes
from mtl_jax.data import augment, episodes, feed
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import measure
from mtl_jax.run import agreement, build, init_from, protocols, tested_split
from mtl_jax.train import optimizer, together
from mtl_jax.train import step as steps


class Run(NamedTuple):
  """What is built from a config, once; all seeds of it share it."""

  algorithm: Any
  optimizer: Any
  meta_batch: int
  epoch_steps: int  # steps of an epoch
  mesh: Any
  splits: dict[str, stores.Store]  # train, test, and validation if there is
  before: tuple = ()  # what its first weights were trained on
  compiled: Any = None  # number of seeds side by side -> devices.Compiled


def make_run(config):
  """Builds method, optimizer, devices and stores; writes nothing in a run.

  Raises:
    UserError: the config does not fit the data or the devices, or processes
      have other images.
  """
  run = processes.together(functools.partial(_make_run, config))
  agreement.check_data(run.splits)
  return run._replace(compiled=functools.cache(
      functools.partial(compile_step, config, run)))


def _make_run(config):
  c = config.data
  wanted = {'train': config.train.classes, 'validation': 'validation'}
  if wanted['train'] != 'train':
    del wanted['validation']
  splits = {use: stores.load(c.name, split, c.dir, c.manual_dir,
                             stores.constants(c.normalise, c.mean, c.std))
            for use, split in wanted.items()}
  for split, store in splits.items():
    c = config[split]
    episodes.check(store, ways=c.ways, images_per_class=c.shots + c.queries,
                   field=split)
  augment.check(config.augment.operations,
                splits['train'].images.shape[-1])
  if config.train.turn_classes:
    augment.check_turns(splits['train'])
  before = init_from.trained_before(config)
  data = build.describe_data(splits['train'], before)
  if 'validation' in splits:
    tested_split.check_unseen(config, splits['validation'], data)
  splits['test'] = tested_split.load(config, data, splits)
  tested_split.check_test(config, splits)
  meta_batch, mesh = make_mesh(config)
  build.check_network(config, splits['train'].images.shape[1:])
  return Run(build.algorithm_of(config, splits['train'].num_classes),
             optimizer.build(config.optimizer), meta_batch,
             steps.steps_per_epoch(config.train.epoch_tasks, meta_batch), mesh,
             splits, before)


def make_mesh(config):
  """Returns T and the mesh of the devices that share it.

  Raises:
    UserError: the devices cannot share the tasks of a step.
  """
  c = config.parallel
  meta_batch = config.train.meta_batch
  if c.tasks_per_device is not None:
    meta_batch = c.tasks_per_device * len(devices.chosen(c.devices))
  mesh = devices.mesh(c.devices, meta_batch)
  check_tasks_at_once(config, meta_batch // mesh.size)
  return meta_batch, mesh


def check_tasks_at_once(config, tasks):
  """Raises UserError if the tasks of a device are no multiple of a part."""
  at_once = config.parallel.tasks_at_once
  if at_once and tasks % at_once:
    raise UserError(f'config.parallel.tasks_at_once is {at_once}: must divide '
                    f'the {tasks} tasks of a device')


def compile_step(config, run, count=1):
  """Compiles the step of a run for `count` seeds side by side.

  Returns:
    devices.Compiled.
  """
  step = steps.make_step(
      run.algorithm, run.optimizer,
      optimizer.schedule(config.optimizer, run.epoch_steps),
      functools.partial(steps.draw_episode, train=config.train,
                        augmentation=config.augment,
                        image_shape=run.splits['train'].images.shape[1:]),
      run.meta_batch, tasks_at_once=config.parallel.tasks_at_once,
      unroll_passes=config.parallel.unroll_passes)
  return devices.compile(together.step(step, count), run.mesh,
                         config.parallel.compile)


def place_of_pixels(config, run):
  """Returns where the training pixels are: 'device' or 'host'."""
  return stores.place(config.data.store, run.splits['train'],
                      run.mesh.local_devices[0])


def make_steps(config, run):
  """Returns seeds -> (Compiled, numbers of steps -> their pixels).

  The compiled step is (state, pixels) -> (state, metrics), of one seed as it
  is, of several stacked (train/together.py). The pixels are None where the
  device has all.
  """
  place = place_of_pixels(config, run)
  arrays = run.compiled(1).share(stores.arrays(run.splits['train'], place))

  @functools.cache
  def of_seeds(seeds):
    compiled = run.compiled(len(seeds))
    own_key = together.stack([
        episodes.stream_key(seed, episodes.Stream.TRAIN) for seed in seeds])
    key = compiled.put(own_key)
    step = lambda state, pixels: compiled.step(state, arrays, key, pixels)
    pixels = (lambda numbers: (None for _ in numbers)
              ) if place == 'device' else feed.make(
                  run.splits['train'], own_key, config.train,
                  devices.own_tasks(run.mesh, run.meta_batch),
                  compiled.divide)
    return compiled._replace(step=step), pixels

  return of_seeds


def make_validation(configs, run):
  """Returns (number of a config, variables) -> measure.Measured, or None.

  The tasks are those of this config's seed, the same at each call. None: all
  classes are trained on.
  """
  if 'validation' not in run.splits:
    return None
  head = configs[0].validation.head
  measured = measure.make_meta_test(
      run.algorithm, run.splits['validation'],
      [protocols.validation(config) for config in configs],
      {head: (head, protocols.options(configs[0], head))})
  return lambda number, variables: measured(variables, [number])[0][head]
