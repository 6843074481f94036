"""A run from config to test.json; reads from top to bottom."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import devices, files
from mtl_jax.config.check import validate
from mtl_jax.data import episodes, feed
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import interval, measure
from mtl_jax.run import (
  build,
  checkpoint,
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
  """What a config stands for, made once."""

  algorithm: Any
  optimizer: Any
  meta_batch: int
  mesh: Any
  splits: dict[str, stores.Store]


def train_and_evaluate(config, path):
  """Trains, or goes on where the workdir stands, and tests the best epoch.

  Args:
    config: see config.py.
    path: the workdir, a local folder or gs://...

  Returns:
    The contents of test.json.

  Raises:
    UserError: what a user can mend, in one line.
  """
  path = files.at(path)
  validate(config)
  devices.split_cpu(config.parallel.cpu_devices)
  workdir.check(path, config)
  run = make_run(config)
  initial = build.initial_state(config, run.algorithm,
                                  run.splits['train'].images.shape[1:])
  state = None
  if (path / checkpoint.FOLDERS['latest']).exists():
    state = checkpoint.restore(checkpoint.manager(path, 'latest'), initial)
  workdir.claim(path, config, build.describe_data(run.splits['train']))
  state = initial if state is None else state
  say = lambda text: config.log.progress and print(text, flush=True)
  say(describe(config, run, state))
  train(config, path, run, state)
  best = checkpoint.restore_best(path, initial)
  result = score.test(
      config, path, run.algorithm, best, run.splits,
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
  splits = {split: stores.load(config.data.name, split, config.data.dir,
                               config.data.manual_dir)
            for split in ('train', 'validation')}
  for split, store in splits.items():
    c = config[split]
    episodes.check(store, ways=c.ways, images_per_class=c.shots + c.queries,
                   field=split)
  splits['test'] = tested_split.load(
      config, build.describe_data(splits['train']), splits)
  tested_split.check_test(config, splits)
  meta_batch = devices.meta_batch(config)
  mesh = devices.mesh(config.parallel.devices, meta_batch)
  at_once = config.parallel.tasks_at_once
  if at_once and meta_batch // mesh.size % at_once:
    raise UserError(
        f'config.parallel.tasks_at_once is {at_once}: must divide the '
        f'{meta_batch // mesh.size} tasks of a device')
  algorithm = build.algorithm_of(config, splits['train'].num_classes)
  return Run(algorithm, optimizer.build(config.optimizer), meta_batch, mesh,
             splits)


def train(config, path, run, state):
  """Trains until a limit or until validation stops gaining."""
  c = config.train
  per_epoch = steps.steps_per_epoch(config, run.meta_batch)
  latest = checkpoint.manager(path, 'latest')
  best = checkpoint.manager(path, 'best')
  compiled = devices.compile(
      steps.make_step(run.algorithm, run.optimizer, config, run.meta_batch),
      run.mesh, config.parallel.compile)
  arrays, key = compiled.put((
      stores.arrays(run.splits['train'], config.data.store),
      episodes.stream_key(config.seed, episodes.Stream.TRAIN)))
  pixels = training_pixels(config, run, compiled.divide)
  validation = make_validation(config, run)
  first = int(state.step) // per_epoch
  log = metrics.Log(path, config, int(state.step), c.max_epochs * per_epoch)
  try:
    for epoch in range(first, c.max_epochs):
      if c.stop_patience and int(state.epochs_without_gain
                                 ) >= c.stop_patience:
        log.say(f'No gain in {c.stop_patience} epochs: training ends.')
        break
      numbers = range(epoch * per_epoch, (epoch + 1) * per_epoch)
      state = train_epoch(
          compiled, state, arrays, key, pixels(numbers), numbers, log,
          config.log.every_steps, run.meta_batch)
      start = time.monotonic()
      score = interval.summary(validation(state.variables))
      state = count_epoch(state, score['accuracy'], config.optimizer)
      # The best one first: a run that ends between the two makes this epoch
      # again and finds the best one there.
      if not int(state.epochs_without_gain):
        checkpoint.save(best, int(state.step), state)
      log.record({
          'step': int(state.step), 'epoch': epoch + 1,
          'validation_accuracy': score['accuracy'],
          'validation_ci95': score['ci95'],
          'validation_seconds': time.monotonic() - start})
      checkpoint.save(latest, int(state.step), state)
  finally:
    log.close()


def training_pixels(config, run, divide):
  """Returns numbers of steps -> their pixels, None where the device has all."""
  if config.data.store == 'device':
    return lambda numbers: (None for _ in numbers)
  key = episodes.stream_key(config.seed, episodes.Stream.TRAIN)
  return feed.make(run.splits['train'], key, config, run.meta_batch, divide)


def train_epoch(compiled, state, arrays, key, batches, numbers, log, every,
                tasks):
  """Runs the steps of an epoch; returns the state, off the mesh again."""
  # A copy, since the step donates what it gets and the caller's first state
  # is the untrained one, whose score may be asked for at the end.
  laid_out = compiled.put(jax.tree.map(jnp.copy, state))
  pending, since = [], time.monotonic()
  for step, pixels in zip(numbers, batches, strict=True):
    laid_out, values = compiled.step(laid_out, arrays, key, pixels)
    pending.append(values)
    # However rarely losses are fetched, the host runs only so far ahead.
    if len(pending) > devices.STEPS_AHEAD:
      jax.block_until_ready(pending[-1 - devices.STEPS_AHEAD])
    if len(pending) == every or step == numbers[-1]:
      fetched = metrics.fetch(compiled.get(pending),
                              step + 1 - len(pending))
      now = time.monotonic()
      log.record({
          'step': step + 1, 'epoch': (step + 1) / len(numbers),
          **metrics.means(fetched),
          'tasks_per_second': tasks * len(pending) / (now - since)})
      pending, since = [], now
  return compiled.get(laid_out)


def count_epoch(state, score, c):
  """Brings a validation score into the state; `c` is config.optimizer."""
  score = np.float32(score)
  gain = score > float(state.best_score)
  return state.replace(
      plateau=optimizer.update_plateau(state.plateau, score, c),
      best_score=jnp.float32(max(score, float(state.best_score))),
      epochs_without_gain=jnp.int32(
          0 if gain else int(state.epochs_without_gain) + 1))


def make_validation(config, run):
  """Returns variables -> accuracies, of the same tasks at every call."""
  head = config.validation.head
  accuracies = measure.make_meta_test(
      run.algorithm, run.splits['validation'],
      [protocols.validation(config)],
      {head: (head, protocols.options(config, head))})
  return lambda variables: accuracies(variables)[0][head]


def describe(config, run, state):
  """Returns the lines a run begins with."""
  c = config.train
  count = sum(x.size for x in jax.tree.leaves(state.variables['params']))
  sizes = ', '.join(f'{name} {s.num_classes} classes, {len(s.images)} images'
                    for name, s in run.splits.items())
  device = run.mesh.devices.flat[0].device_kind
  start = f'Going on at step {int(state.step)}.' if int(
      state.step) else 'Starting.'
  return '\n'.join((
      f'{config.method.name} with {config.model.name} on '
      f'{config.data.name}: {count:,} parameters, {run.mesh.size} x {device}',
      f'data: {sizes}',
      f'a step: {run.meta_batch} tasks of {c.ways} ways, {c.shots} + '
      f'{c.queries} images a class; an epoch: '
      f'{steps.steps_per_epoch(config, run.meta_batch)} steps; at most '
      f'{c.max_epochs} epochs',
      f'settings: {config.source or "config file"}', start))
