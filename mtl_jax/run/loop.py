"""A run from config to test.json; reads from top to bottom."""

import contextlib
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import devices, files, processes, progress, stopping, writers
from mtl_jax.errors import UserError
from mtl_jax.evaluate import interval, measure
from mtl_jax.run import (
  agreement,
  build,
  checkpoint,
  init_from,
  metrics,
  parts,
  report,
  score,
  workdir,
)
from mtl_jax.train import optimizer, together


class Training(NamedTuple):
  """One seed of a run, in its workdir, between two epochs."""

  config: Any
  path: Any
  initial: Any  # TrainState of random weights
  state: Any  # TrainState now
  pending: Any = ()  # metrics of the last steps, which no record holds yet
  unvalidated: bool = False  # whether it is at the end of such an epoch
  weights: str = ''  # says whose weights it started from
  write: Any = None  # (step, values) -> None, of writers.opened
  # While it trains; in process 0 alone, but for `log` and `save`:
  log: Any = None  # metrics.Log
  latest: Any = None  # Orbax managers, see run/checkpoint.py
  best: Any = None
  save: Any = None  # checkpoint.Saver


def train_and_evaluate(config, path):
  """Trains, or resumes the run in the workdir, and tests its best epoch.

  It tests the last epoch where all classes are trained on
  (config.train.classes).

  Args:
    config: see config/fields.py; of one seed, see run/seeds.py for several.
    path: the workdir, a local folder or gs://...

  Returns:
    The contents of test.json.

  Raises:
    UserError: what a user can mend, in one line.
  """
  path = files.at(path)
  config = agreement.check(config)
  if config.seeds:
    raise UserError(f'config.seeds is {config.seeds}: mtl_jax.run.seeds trains '
                    'several')
  processes.by_leader(lambda: workdir.check(path, config))
  result, = side_by_side(parts.make_run(config), [config], [path])
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
    say(first.config, report.describe(
        first.config, run, first.state, first.weights))
    for t in others:
      say(t.config, f'Side by side with seed {t.config.seed}: '
          f'{report.starting(t.state)}')
    train(run, trainings)
    return [tested(run, t) for t in trainings]


@contextlib.contextmanager
def begun(config, path, run):
  """Yields the Training in a workdir, which is locked meanwhile.

  It is the first one, or that of the last saved state, which process 0 reads
  and gives to the others.
  """
  data = build.describe_data(run.splits['train'], run.before)
  initial = build.initial_state(config, run.algorithm, data['image_shape'])
  with contextlib.ExitStack() as stack:
    training = processes.by_leader(lambda: claimed(
        config, path, run, initial, data, stack)) or Training(
            config, path, initial, initial)
    state, unvalidated = processes.arrays_of_leader(
        (training.state, training.unvalidated))
    yield training._replace(state=state, unvalidated=bool(unvalidated))


def claimed(config, path, run, initial, data, stack):
  """Returns the Training in a workdir, which is locked until `stack` ends."""
  workdir.check_data(path, data)
  start = init_from.load(config, path, initial, data)
  stack.enter_context(workdir.alone(path))
  workdir.check(path, config)  # another start may have ended since
  workdir.check_meta_batch(path, run.meta_batch)
  workdir.check_epochs(path, config.train.max_epochs, run.epoch_steps)
  if checkpoint.has_state(path):  # the other run may be gone
    data = {**data, **workdir.kept_before(path)}
  state, *kept = checkpoint.restore_latest(path, start.state)
  workdir.claim(path, config, data, run.meta_batch)
  write = stack.enter_context(writers.opened(
      config.log.writers, path, config.to_dict(), resumed=bool(state.step)))
  return Training(config, path, initial, state, *kept, start.line, write)


def tested(run, training):
  """Tests the best epoch of a training; returns the contents of test.json."""
  config, path, initial, *_ = training
  best = processes.arrays_of_leader(processes.by_leader(
      lambda: checkpoint.restore_best(path, initial)) or initial)
  result = score.test(
      config, path, run.algorithm, best, run.splits,
      workdir.of_training(config),
      initial.variables if config.eval.baselines else None)
  if not processes.leads():
    return result
  training.write(result['checkpoint_step'], {
      f'test_{label}': of_label['accuracy']
      for label, of_label in result['scores'].items()})
  report.curves(path)
  say(config, report.scores(result))
  say(config, f'Everything is in {path}')
  return result


def say(config, text):
  """Prints lines of a run, unless it is to be quiet."""
  if config.log.progress and processes.leads():
    progress.say(text)


def train(run, trainings):
  """Trains each until a limit or until its validation stops gaining.

  Trainings that are at the same step move side by side, each by its own seed
  and with its own best epoch and end. One alone is the usual case.

  Args:
    run: Run.
    trainings: whose configs differ in the seed alone.
  """
  side_by_side = parts.make_steps(trainings[0].config, run)
  validate_each = parts.make_validation([t.config for t in trainings], run)
  number = {t.path: i for i, t in enumerate(trainings)}
  with contextlib.ExitStack() as logs, stopping.noticed() as asked:
    going = [opened(run, t, logs, len(trainings)) for t in trainings]
    while going := [t for t in going if not ended(run, t)]:
      moved = [t for t in going if t.unvalidated]
      if not moved:
        step = min(int(t.state.step) for t in going)
        group = [t for t in going if int(t.state.step) == step]
        compiled, pixels = side_by_side(tuple(t.config.seed for t in group))
        # A run that was killed within an epoch resumes within it.
        numbers = range(step, (step // run.epoch_steps + 1) * run.epoch_steps)
        moved = train_epoch(compiled, group, pixels(numbers), numbers, run,
                            asked)
      done = {t.path: end_epoch(
          run, t, validate_each and functools.partial(
              validate_each, number[t.path])) for t in moved}
      going = [done.get(t.path, t) for t in going]


def opened(run, training, logs, count):
  """Returns a training with what keeps its records, and its states.

  `logs` is an ExitStack, which closes its Log.
  """
  config, path, state = training.config, training.path, training.state
  if not processes.leads():
    return training._replace(log=metrics.no_log(config.log.every_steps),
                             save=checkpoint.every(0, None))
  latest = checkpoint.manager(path, 'latest')
  best = checkpoint.manager(path, 'best')
  checkpoint.drop_damaged(best, state)
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
  if training.unvalidated:
    return False
  if int(state.step) // run.epoch_steps >= c.max_epochs:
    return True
  stops = c.stop_patience and int(
      state.epochs_without_gain) >= c.stop_patience
  if stops:
    training.log.say(f'No gain in {c.stop_patience} epochs: training ends.')
  return stops


def train_epoch(compiled, group, batches, numbers, run,
                asked=lambda: None):
  """Runs the steps that are left of an epoch.

  Args:
    compiled: devices.Compiled with a step (state, pixels) -> (state, metrics).
    group: the Trainings that it moves, all at the same step; their states are
      left as they are.
    batches: pixels of each step, or None.
    numbers: of the steps.
    run: Run.
    asked: of stopping.noticed.

  Returns:
    The group with its new states, off the mesh again.

  Raises:
    KeyboardInterrupt, SystemExit: a signal asked to stop; the states are saved.
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
    end, stop = step == numbers[-1], asked()
    due = stop or not end and any(t.save.due() for t in group)
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
            **metrics.means(kept), 'tasks_per_second': speed,
            **({'seeds': len(group)} if len(group) > 1 else {})})
        kept.clear()
    if due:
      for t, kept, state in zip(group, pending, off_mesh(laid_out),
                                strict=True):
        t.save.now(step + 1, state, kept, unvalidated=end)
    if stop:
      raise stopping.ended(stop)
  return [t._replace(state=state, pending=())
          for t, state in zip(group, off_mesh(laid_out), strict=True)]


def end_epoch(run, training, validation):
  """Validates a training, records and saves it; returns it with this counted.

  `validation` is variables -> measure.Measured. Where it is None, the state is
  saved as the best one: the last step is tested.
  """
  metrics.check_parameters(training.state.variables['params'],
                           int(training.state.step) - 1)
  if validation is None:
    if processes.leads():
      for manager in (training.best, training.latest):
        checkpoint.save(manager, int(training.state.step), training.state,
                        again=training.unvalidated)
    return training._replace(unvalidated=False)
  start = time.monotonic()
  tested = validation(training.state.variables)
  accuracy = interval.summary(tested.accuracies)
  state = count_epoch(training.state, accuracy['accuracy'],
                      training.config.optimizer)
  if not processes.leads():
    return training._replace(state=state, unvalidated=False)
  step = int(state.step)
  # The best state is saved first. A run that is killed between the two
  # saves repeats this epoch, and finds its best state saved already.
  if not int(state.epochs_without_gain):
    checkpoint.save(training.best, step, state)
  record = {
      'step': step, 'epoch': step // run.epoch_steps,
      'validation_accuracy': accuracy['accuracy'],
      'validation_ci95': accuracy['ci95'],
      **{f'validation_{name}': float(np.mean(values))
         for name, values in tested.convergence.items()},
      'validation_seconds': time.monotonic() - start}
  training.log.record(record)
  if line := metrics.guessing(record, training.config.validation.ways,
                              float(training.state.best_score)):
    training.log.say(line)
  checkpoint.save(training.latest, step, state, again=training.unvalidated)
  return training._replace(state=state, unvalidated=False)


def count_epoch(state, accuracy, c):
  """Adds a validation accuracy to the state; `c` is config.optimizer."""
  accuracy = np.float32(accuracy)
  gain = accuracy > float(state.best_score)
  return state.replace(
      plateau=optimizer.update_plateau(state.plateau, accuracy, c),
      best_score=jnp.float32(max(accuracy, float(state.best_score))),
      epochs_without_gain=jnp.int32(
          0 if gain else int(state.epochs_without_gain) + 1))
