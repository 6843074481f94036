"""A run from config to test.json; reads from top to bottom."""

import contextlib
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import devices, files, writers
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
from mtl_jax.train import optimizer, together
from mtl_jax.train import step as steps


class Run(NamedTuple):
  """What is built from a config, once; all seeds of it share it."""

  algorithm: Any
  optimizer: Any
  meta_batch: int
  epoch_steps: int  # steps of an epoch
  mesh: Any
  splits: dict[str, stores.Store]
  compiled: Any = None  # number of seeds side by side -> devices.Compiled


class Training(NamedTuple):
  """One seed of a run, in its workdir, between two epochs."""

  config: Any
  path: Any
  initial: Any  # TrainState of random weights
  state: Any  # TrainState now
  pending: Any = ()  # metrics of the last steps, which no record holds yet
  weights: str = ''  # says whose weights it started from
  write: Any = None  # (step, values) -> None, of writers.opened
  # While it trains:
  log: Any = None  # metrics.Log
  latest: Any = None  # Orbax managers, see run/checkpoint.py
  best: Any = None
  save: Any = None  # checkpoint.Saver


def train_and_evaluate(config, path):
  """Trains, or resumes the run in the workdir, and tests its best epoch.

  Args:
    config: see config/fields.py; of one seed, see run/seeds.py for several.
    path: the workdir, a local folder or gs://...

  Returns:
    The contents of test.json.

  Raises:
    UserError: what a user can mend, in one line.
  """
  path = files.at(path)
  validate(config)
  if config.seeds:
    raise UserError(f'config.seeds is {config.seeds}: mtl_jax.run.seeds trains '
                    'several')
  workdir.check(path, config)
  result, = side_by_side(make_run(config), [config], [path])
  return result


def side_by_side(run, configs, paths):
  """Trains seeds of a run at once, usually one, and tests the best epochs.

  Args:
    run: Run.
    configs: of each seed; they differ in the seed alone.
    paths: the workdir of each.

  Returns:
    The contents of each test.json.
  """
  with contextlib.ExitStack() as stack:
    first, *others = trainings = [
        stack.enter_context(begun(config, path, run))
        for config, path in zip(configs, paths, strict=True)]
    say(first.config, describe(first.config, run, first.state, first.weights))
    for t in others:
      say(t.config, f'Side by side with seed {t.config.seed}: '
          f'{starting(t.state)}')
    train(run, trainings)
    return [tested(run, t) for t in trainings]


@contextlib.contextmanager
def begun(config, path, run):
  """Yields the Training in a workdir, which is locked meanwhile.

  It is the first one, or that of the last saved state.
  """
  data = build.describe_data(run.splits['train'])
  workdir.check_data(path, data)
  initial = build.initial_state(config, run.algorithm, data['image_shape'])
  start = init_from.load(config, path, initial, data)
  with workdir.alone(path):
    workdir.check(path, config)  # another start may have ended since
    state, pending = checkpoint.restore_latest(path, start.state)
    workdir.claim(path, config, data)
    with writers.opened(config.log.writers, path, config.to_dict(),
                        resumed=bool(state.step)) as write:
      yield Training(config, path, initial, state, pending, start.line, write)


def tested(run, training):
  """Tests the best epoch of a training; returns the contents of test.json."""
  config, path, initial, *_ = training
  best = checkpoint.restore_best(path, initial)
  result = score.test(
      config, path, run.algorithm, best, run.splits,
      build.describe_data(run.splits['train']),
      initial.variables if config.eval.baselines else None)
  training.write(result['checkpoint_step'], {
      f'test_{label}': score['accuracy']
      for label, score in result['scores'].items()})
  report.curves(path)
  say(config, report.scores(result))
  say(config, f'Everything is in {path}')
  return result


def say(config, text):
  """Prints lines of a run, unless it is to be quiet."""
  if config.log.progress:
    print(text, flush=True)


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
  run = Run(build.algorithm_of(config, splits['train'].num_classes),
            optimizer.build(config.optimizer), meta_batch,
            steps.steps_per_epoch(config.train.epoch_tasks, meta_batch), mesh,
            splits)
  return run._replace(compiled=functools.cache(
      functools.partial(compile_step, config, run)))


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


def compile_step(config, run, count=1):
  """Compiles the step of a run for `count` seeds side by side.

  Returns:
    devices.Compiled.
  """
  step = steps.make_step(
      run.algorithm, run.optimizer,
      optimizer.schedule(config.optimizer, run.epoch_steps),
      functools.partial(steps.draw_episode, train=config.train,
                        augmentation=config.augment),
      run.meta_batch, tasks_at_once=config.parallel.tasks_at_once,
      unroll_passes=config.parallel.unroll_passes)
  return devices.compile(together.step(step, count), run.mesh,
                         config.parallel.compile)


def train(run, trainings):
  """Trains each until a limit or until its validation stops gaining.

  Trainings that are at the same step move side by side, each by its own seed
  and with its own best epoch and end. One alone is the usual case.

  Args:
    run: Run.
    trainings: whose configs differ in the seed alone.
  """
  side_by_side = make_steps(trainings[0].config, run)
  validate_each = make_validation([t.config for t in trainings], run)
  number = {t.path: i for i, t in enumerate(trainings)}
  with contextlib.ExitStack() as logs:
    going = [opened(run, t, logs, len(trainings)) for t in trainings]
    while going := [t for t in going if not ended(run, t)]:
      step = min(int(t.state.step) for t in going)
      group = [t for t in going if int(t.state.step) == step]
      compiled, pixels = side_by_side(tuple(t.config.seed for t in group))
      # A run that was killed within an epoch resumes within it.
      numbers = range(step, (step // run.epoch_steps + 1) * run.epoch_steps)
      moved = train_epoch(compiled, group, pixels(numbers), numbers, run)
      done = {t.path: end_epoch(
          run, t, functools.partial(validate_each, number[t.path]))
              for t in moved}
      going = [done.get(t.path, t) for t in going]


def opened(run, training, logs, count):
  """Returns a training with what keeps its records, and its states.

  `logs` is an ExitStack, which closes its Log.
  """
  config, path, state = training.config, training.path, training.state
  latest = checkpoint.manager(path, 'latest')
  best = checkpoint.manager(path, 'best')
  log = metrics.Log(
      path, config.log, int(state.step),
      config.train.max_epochs * run.epoch_steps, {
          '': run.algorithm.remedy,
          'validation_': measure.remedy(run.algorithm,
                                        config.validation.head)},
      f'seed {config.seed}' if count > 1 else '', training.write)
  logs.callback(log.close)
  return training._replace(
      log=log, latest=latest, best=best,
      save=checkpoint.every(config.train.save_minutes, latest))


def ended(run, training):
  """Returns whether a training is at its end; says why if it is early."""
  c, state = training.config.train, training.state
  if int(state.step) // run.epoch_steps >= c.max_epochs:
    return True
  stops = c.stop_patience and int(
      state.epochs_without_gain) >= c.stop_patience
  if stops:
    training.log.say(f'No gain in {c.stop_patience} epochs: training ends.')
  return stops


def make_steps(config, run):
  """Returns seeds -> (Compiled, numbers of steps -> their pixels).

  The compiled step is (state, pixels) -> (state, metrics), of one seed as it
  is, of several stacked (train/together.py). The pixels are None where the
  device has all.
  """
  arrays = run.compiled(1).put(
      stores.arrays(run.splits['train'], config.data.store))

  @functools.cache
  def of_seeds(seeds):
    compiled = run.compiled(len(seeds))
    own_key = together.stack([
        episodes.stream_key(seed, episodes.Stream.TRAIN) for seed in seeds])
    key = compiled.put(own_key)
    step = lambda state, pixels: compiled.step(state, arrays, key, pixels)
    pixels = (lambda numbers: (None for _ in numbers)
              ) if config.data.store == 'device' else feed.make(
                  run.splits['train'], own_key, config.train, run.meta_batch,
                  compiled.divide)
    return compiled._replace(step=step), pixels

  return of_seeds


def train_epoch(compiled, group, batches, numbers, run):
  """Runs the steps that are left of an epoch.

  Args:
    compiled: devices.Compiled with a step (state, pixels) -> (state, metrics).
    group: the Trainings that it moves, all at the same step; their states are
      left as they are.
    batches: pixels of each step, or None.
    numbers: of the steps.
    run: Run.

  Returns:
    The group with its new states, off the mesh again.
  """
  # A copy: the step donates its input, but the caller's first state is the
  # untrained one, which may be scored at the end.
  laid_out = compiled.put(jax.tree.map(
      jnp.copy, together.stack([t.state for t in group])))
  off_mesh = lambda tree: together.split(compiled.get(tree), len(group))
  pending, running = [list(t.pending) for t in group], []
  since, timed = time.monotonic(), 0
  for step, pixels in zip(numbers, batches, strict=True):
    laid_out, values = compiled.step(laid_out, pixels)
    running.append(values)
    timed += 1
    # However rarely losses are fetched, the host runs only so far ahead.
    if len(running) > devices.STEPS_AHEAD:
      jax.block_until_ready(running[-1 - devices.STEPS_AHEAD])
    end = step == numbers[-1]
    due = not end and any(t.save.due() for t in group)
    full = any(len(kept) + len(running) >= t.log.every_steps
               for t, kept in zip(group, pending, strict=True))
    if not (due or end or full):
      continue
    for kept, new in zip(pending, off_mesh(running), strict=True):
      kept += metrics.fetch(new, step + 1 - len(running))
    running = []
    if end or full:
      now = time.monotonic()
      speed, since, timed = run.meta_batch * timed / (now - since), now, 0
    for t, kept in zip(group, pending, strict=True):
      if end or len(kept) >= t.log.every_steps:
        t.log.record({
            'step': step + 1, 'epoch': (step + 1) / run.epoch_steps,
            **metrics.means(kept), 'tasks_per_second': speed})
        kept.clear()
    if due:
      for t, kept, state in zip(group, pending, off_mesh(laid_out),
                                strict=True):
        t.save.now(step + 1, state, kept)
  return [t._replace(state=state, pending=())
          for t, state in zip(group, off_mesh(laid_out), strict=True)]


def end_epoch(run, training, validation):
  """Validates a training, records and saves it; returns it with this counted.

  `validation` is variables -> measure.Measured.
  """
  start = time.monotonic()
  tested = validation(training.state.variables)
  accuracy = interval.summary(tested.accuracies)
  state = count_epoch(training.state, accuracy['accuracy'],
                      training.config.optimizer)
  step = int(state.step)
  # The best state is saved first. A run that is killed between the two
  # saves repeats this epoch, and finds its best state saved already.
  if not int(state.epochs_without_gain):
    checkpoint.save(training.best, step, state)
  training.log.record({
      'step': step, 'epoch': step // run.epoch_steps,
      'validation_accuracy': accuracy['accuracy'],
      'validation_ci95': accuracy['ci95'],
      **{f'validation_{name}': float(np.mean(values))
         for name, values in tested.convergence.items()},
      'validation_seconds': time.monotonic() - start})
  checkpoint.save(training.latest, step, state)
  return training._replace(state=state)


def count_epoch(state, accuracy, c):
  """Adds a validation accuracy to the state; `c` is config.optimizer."""
  accuracy = np.float32(accuracy)
  gain = accuracy > float(state.best_score)
  return state.replace(
      plateau=optimizer.update_plateau(state.plateau, accuracy, c),
      best_score=jnp.float32(max(accuracy, float(state.best_score))),
      epochs_without_gain=jnp.int32(
          0 if gain else int(state.epochs_without_gain) + 1))


def make_validation(configs, run):
  """Returns (number of a config, variables) -> measure.Measured.

  The tasks are those of this config's seed, the same at each call.
  """
  head = configs[0].validation.head
  measured = measure.make_meta_test(
      run.algorithm, run.splits['validation'],
      [protocols.validation(config) for config in configs],
      {head: (head, protocols.options(configs[0], head))})
  return lambda number, variables: measured(variables, [number])[0][head]


def describe(config, run, state, weights=''):
  """Returns the lines that a run prints at its start."""
  c = config.train
  count = sum(x.size for x in jax.tree.leaves(state.variables['params']))
  sizes = ', '.join(f'{name} {s.num_classes} classes, {len(s.images)} images'
                    for name, s in run.splits.items())
  device = run.mesh.devices.flat[0].device_kind
  to_come = max(c.max_epochs * run.epoch_steps - int(state.step), 0)
  images = run.meta_batch * c.ways * (c.shots + c.queries)
  return '\n'.join((
      f'{config.method.name} with {config.model.name} on '
      f'{config.data.name}: {count:,} parameters, {run.mesh.size} x {device}',
      f'data: {sizes}',
      f'a step: {run.meta_batch} tasks of {c.ways} ways, {c.shots} + '
      f'{c.queries} images per class; an epoch: {run.epoch_steps} steps; at '
      f'most {c.max_epochs} epochs',
      f'to come: {"at most " * bool(c.stop_patience)}{to_come:,} steps, '
      f'{to_come * images:,} images',
      settings.summary(config), *([weights] if weights else ()),
      starting(state)))


def starting(state):
  """Says at which step a run starts."""
  return f'Resuming at step {int(state.step)}.' if int(
      state.step) else 'Starting.'
