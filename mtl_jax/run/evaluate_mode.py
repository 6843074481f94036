"""What the other modes than training do with a run, or a file of weights."""

import contextlib

from mtl_jax import files, processes
from mtl_jax.config.check import validate
from mtl_jax.data import store as stores
from mtl_jax.run import (
  agreement,
  build,
  report,
  score,
  tested_split,
  weights,
  workdir,
)


def evaluate_run(config, checkpoint, path):
  """Tests a run that has been trained; only reads the run's folder.

  Args:
    config: the run's, with other `eval`, `heads` or `data` folders.
    checkpoint: workdir of the run; None: the file config.weights is tested.
    path: folder for the files of run/score.py.

  Returns:
    The contents of test.json.

  Raises:
    UserError: what a user can mend, in one line.
  """
  config = agreement.check(config, trains=False)
  path = workdir.for_results(path)
  training = workdir.of_training(
      config if checkpoint is None else workdir.saved_config(checkpoint))
  return _tested(config, path, training, *processes.together(
      lambda: _loaded(config, checkpoint)))


def _loaded(config, checkpoint):
  """Returns the Trained, the splits and the untrained variables of a test."""
  model = weights.of(config, checkpoint)
  splits = {}
  if config.eval.choose_C:
    splits['validation'] = tested_split.as_trained(stores.load(
        config.data.name, 'validation', config.data.dir,
        config.data.manual_dir), model.data, config.data.dir)
  splits['test'] = tested_split.load(config, model.data, splits)
  tested_split.check_test(config, splits)
  untrained = None
  if config.eval.baselines:
    untrained = build.initial_state(
        config, model.algorithm, model.data['image_shape']).variables
  return model, splits, untrained


def _tested(config, path, training, model, splits, untrained):
  """Tests, and writes the files; returns the contents of test.json."""
  agreement.check_data(splits)
  with contextlib.ExitStack() as stack:
    processes.by_leader(lambda: (
        files.make(path), stack.enter_context(workdir.alone(path))))
    result = score.test(config, path, model.algorithm, model, splits, training,
                        untrained)
  if config.log.progress:
    print(report.scores(result))
    print(f'Everything is in {path}')
  return result


def export(config, checkpoint, path):
  """Writes the weights of a run; as `weights.export`."""
  validate(config, trains=False)
  return weights.export(config, checkpoint, workdir.for_results(path))
