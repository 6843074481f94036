"""A run from config to test.json; reads from top to bottom."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import devices, files
from mtl_jax.config import settings
from mtl_jax.config.check import validate
from mtl_jax.data import augment, episodes, feed
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import interval, measure
from mtl_jax.run import (
  build,
  checkpoint,
  init_from,
  metrics,
  protocols,
  report,
  score,
  tested_split,
  workdir,
)
from mtl_jax.train import optimizer
from mtl_jax.train import step as steps


class Run(NamedTuple):
  """What is built from a config, once."""

  algorithm: Any
  optimizer: Any
  meta_batch: int
  epoch_steps: int  # steps of an epoch
  mesh: Any
  splits: dict[str, stores.Store]


def train_and_evaluate(config, path):
  """Trains, or resumes the run in the workdir, and tests its best epoch.

  Args:
    config: see config/fields.py.
    path: the workdir, a local folder or gs://...

  Returns:
    The contents of test.json.

  Raises:
    UserError: what a user can mend, in one line.
  """
  path = files.at(path)
  validate(config)
  workdir.check(path, config)
  run = make_run(config)
  data = build.describe_data(run.splits['train'])
  workdir.check_data(path, data)
  initial = build.initial_state(config, run.algorithm, data['image_shape'])
  start = init_from.load(config, path, initial, data)
  with workdir.alone(path):
    workdir.check(path, config)  # another start may have ended since
    return _train_and_evaluate(config, path, run, data, initial, start)


def _train_and_evaluate(config, path, run, data, initial, start):
  """Does the part of `train_and_evaluate` that writes.

  `initial` is the state of random weights, `start` an init_from.Start.
  """
  state, pending = checkpoint.restore_latest(path, start.state)
  workdir.claim(path, config, data)
  say = lambda text: config.log.progress and print(text, flush=True)
  say(describe(config, run, state, start.line))
  train(config, path, run, state, pending)
  best = checkpoint.restore_best(path, initial)
  result = score.test(
      config, path, run.algorithm, best, run.splits, data,
      initial.variables if config.eval.baselines else None)
  report.curves(path)
  say(report.scores(result))
  say(f'Everything is in {path}')
  return result


def make_run(config):
  """Builds method, optimizer, devices and stores; writes nothing in a run.

  Raises:
    UserError: the config does not fit the data or the devices.
  """
  c = config.data
  splits = {split: stores.load(c.name, split, c.dir, c.manual_dir,
                               stores.constants(c.normalise, c.mean, c.std))
            for split in ('train', 'validation')}
  for split, store in splits.items():
    c = config[split]
    episodes.check(store, ways=c.ways, images_per_class=c.shots + c.queries,
                   field=split)
  augment.check(config.augment.operations,
                splits['train'].images.shape[-1])
  splits['test'] = tested_split.load(
      config, build.describe_data(splits['train']), splits)
  tested_split.check_test(config, splits)
  meta_batch, mesh = make_mesh(config)
  build.check_network(config, splits['train'].images.shape[1:])
  return Run(build.algorithm_of(config, splits['train'].num_classes),
             optimizer.build(config.optimizer), meta_batch,
             steps.steps_per_epoch(config.train.epoch_tasks, meta_batch), mesh,
             splits)


def make_mesh(config):
  """Returns T and the mesh of the devices that share it.

  Raises:
    UserError: the devices cannot share the tasks of a step.
  """
  c = config.parallel
  meta_batch = config.train.meta_batch
  if c.tasks_per_device is not None:
    meta_batch = c.tasks_per_device * c.devices
  mesh = devices.mesh(c.devices, meta_batch)
  if c.tasks_at_once and meta_batch // mesh.size % c.tasks_at_once:
    raise UserError(
        f'config.parallel.tasks_at_once is {c.tasks_at_once}: must divide the '
        f'{meta_batch // mesh.size} tasks of a device')
  return meta_batch, mesh


def compile_step(config, run):
  """Compiles the step of a run; returns devices.Compiled."""
  step = steps.make_step(
      run.algorithm, run.optimizer,
      optimizer.schedule(config.optimizer, run.epoch_steps),
      functools.partial(steps.draw_episode, train=config.train,
                        augmentation=config.augment),
      run.meta_batch, tasks_at_once=config.parallel.tasks_at_once,
      unroll_passes=config.parallel.unroll_passes)
  return devices.compile(step, run.mesh, config.parallel.compile)


def train(config, path, run, state, pending=()):
  """Trains until a limit or until validation stops gaining.

  `pending` are the metrics of steps before `state` that have no record yet.
  """
  c = config.train
  latest = checkpoint.manager(path, 'latest')
  best = checkpoint.manager(path, 'best')
  compiled = compile_step(config, run)
  place = place_of_pixels(config, run)
  arrays = compiled.share(stores.arrays(run.splits['train'], place))
  key = compiled.put(
      episodes.stream_key(config.seed, episodes.Stream.TRAIN))
  one_step = lambda state, pixels: compiled.step(state, arrays, key, pixels)
  pixels = training_pixels(config, run, place, compiled.divide)
  validation = make_validation(config, run)
  save = checkpoint.every(c.save_minutes, latest)
  log = metrics.Log(path, config.log, int(state.step),
                    c.max_epochs * run.epoch_steps, {
                        '': run.algorithm.remedy,
                        'validation_': measure.remedy(
                            run.algorithm, config.validation.head)})
  try:
    for epoch in range(int(state.step) // run.epoch_steps, c.max_epochs):
      if c.stop_patience and int(state.epochs_without_gain
                                 ) >= c.stop_patience:
        log.say(f'No gain in {c.stop_patience} epochs: training ends.')
        break
      # A run that was killed within an epoch resumes within it.
      numbers = range(int(state.step), (epoch + 1) * run.epoch_steps)
      state = train_epoch(
          compiled._replace(step=one_step), state, pixels(numbers), numbers,
          pending, log, run, save)
      pending = ()
      start = time.monotonic()
      tested = validation(state.variables)
      accuracy = interval.summary(tested.accuracies)
      state = count_epoch(state, accuracy['accuracy'], config.optimizer)
      # The best state is saved first. A run that is killed between the two
      # saves repeats this epoch, and finds its best state saved already.
      if not int(state.epochs_without_gain):
        checkpoint.save(best, int(state.step), state)
      log.record({
          'step': int(state.step), 'epoch': epoch + 1,
          'validation_accuracy': accuracy['accuracy'],
          'validation_ci95': accuracy['ci95'],
          **{f'validation_{name}': float(np.mean(values))
             for name, values in tested.convergence.items()},
          'validation_seconds': time.monotonic() - start})
      checkpoint.save(latest, int(state.step), state)
  finally:
    log.close()


def place_of_pixels(config, run):
  """Returns where the training pixels are: 'device' or 'host'."""
  return stores.place(config.data.store, run.splits['train'],
                      run.mesh.devices.flat[0])


def training_pixels(config, run, place, divide):
  """Returns numbers of steps -> their pixels, None where the device has all."""
  if place == 'device':
    return lambda numbers: (None for _ in numbers)
  key = episodes.stream_key(config.seed, episodes.Stream.TRAIN)
  return feed.make(run.splits['train'], key, config.train, run.meta_batch,
                   divide)


def train_epoch(compiled, state, batches, numbers, pending, log, run, save):
  """Runs the steps that are left of an epoch.

  Args:
    compiled: devices.Compiled with a step (state, pixels) -> (state, metrics).
    state: TrainState, which is left as it is.
    batches: pixels of each step, or None.
    numbers: of the steps.
    pending: metrics of the steps before that no record holds yet.
    log: metrics.Log.
    run: Run.
    save: from checkpoint.every.

  Returns:
    The state, off the mesh again.
  """
  # A copy: the step donates its input, but the caller's first state is the
  # untrained one, which may be scored at the end.
  laid_out = compiled.put(jax.tree.map(jnp.copy, state))
  pending, running = list(pending), []
  since, timed = time.monotonic(), 0
  for step, pixels in zip(numbers, batches, strict=True):
    laid_out, values = compiled.step(laid_out, pixels)
    running.append(values)
    timed += 1
    # However rarely losses are fetched, the host runs only so far ahead.
    if len(running) > devices.STEPS_AHEAD:
      jax.block_until_ready(running[-1 - devices.STEPS_AHEAD])
    end = step == numbers[-1]
    due = not end and save.due()
    if due or end or len(pending) + len(running) >= log.every_steps:
      pending += metrics.fetch(compiled.get(running), step + 1 - len(running))
      running = []
    if end or len(pending) >= log.every_steps:
      now = time.monotonic()
      log.record({
          'step': step + 1, 'epoch': (step + 1) / run.epoch_steps,
          **metrics.means(pending),
          'tasks_per_second': run.meta_batch * timed / (now - since)})
      pending, since, timed = [], now, 0
    if due:
      save.now(step + 1, compiled.get(laid_out), pending)
  return compiled.get(laid_out)


def count_epoch(state, accuracy, c):
  """Adds a validation accuracy to the state; `c` is config.optimizer."""
  accuracy = np.float32(accuracy)
  gain = accuracy > float(state.best_score)
  return state.replace(
      plateau=optimizer.update_plateau(state.plateau, accuracy, c),
      best_score=jnp.float32(max(accuracy, float(state.best_score))),
      epochs_without_gain=jnp.int32(
          0 if gain else int(state.epochs_without_gain) + 1))


def make_validation(config, run):
  """Returns variables -> measure.Measured, of the same tasks at each call."""
  head = config.validation.head
  measured = measure.make_meta_test(
      run.algorithm, run.splits['validation'],
      [protocols.validation(config)],
      {head: (head, protocols.options(config, head))})
  return lambda variables: measured(variables)[0][head]


def describe(config, run, state, weights=''):
  """Returns the lines that a run prints at its start."""
  c = config.train
  count = sum(x.size for x in jax.tree.leaves(state.variables['params']))
  sizes = ', '.join(f'{name} {s.num_classes} classes, {len(s.images)} images'
                    for name, s in run.splits.items())
  device = run.mesh.devices.flat[0].device_kind
  start = f'Resuming at step {int(state.step)}.' if int(
      state.step) else 'Starting.'
  to_come = max(c.max_epochs * run.epoch_steps - int(state.step), 0)
  images = run.meta_batch * c.ways * (c.shots + c.queries)
  return '\n'.join((
      f'{config.method.name} with {config.model.name} on '
      f'{config.data.name}: {count:,} parameters, {run.mesh.size} x {device}',
      f'data: {sizes}' + (', pixels on the host' if place_of_pixels(
          config, run) == 'host' else ''),
      f'a step: {run.meta_batch} tasks of {c.ways} ways, {c.shots} + '
      f'{c.queries} images per class; an epoch: {run.epoch_steps} steps; at '
      f'most {c.max_epochs} epochs',
      f'to come: {"at most " * bool(c.stop_patience)}{to_come:,} steps, '
      f'{to_come * images:,} images',
      settings.summary(config), *([weights] if weights else ()), start))
