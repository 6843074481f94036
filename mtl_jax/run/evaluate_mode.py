"""What the other modes than training do with a run, or a file of weights."""

import io

import numpy as np

from mtl_jax import files
from mtl_jax.config.check import validate
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import features
from mtl_jax.run import (
  build,
  report,
  score,
  tested_split,
  trained,
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
  validate(config, trains=False)
  path = _folder(path)
  model = _model(config, checkpoint)
  splits = {}
  if config.eval.choose_C:
    splits['validation'] = tested_split.as_trained(stores.load(
        config.data.name, 'validation', config.data.dir,
        config.data.manual_dir), model.data)
  splits['test'] = tested_split.load(config, model.data, splits)
  tested_split.check_test(config, splits)
  untrained = None
  if config.eval.baselines:
    untrained = build.initial_state(
        config, model.algorithm, model.data['image_shape']).variables
  files.make(path)
  result = score.test(config, path, model.algorithm, model, splits, model.data,
                      untrained)
  if config.log.progress:
    print(report.scores(result))
    print(f'Everything is in {path}')
  return result


def write_features(config, checkpoint, path):
  """Writes the features of config.eval's split to features.npz.

  `features` float32 [I, D], `labels` int32 [I], `class_names` [M], `names`
  [I] of the images; of unit length where config.eval.normalise_features.

  Args:
    config, checkpoint, path: as in `evaluate_run`.

  Raises:
    UserError: what a user can mend, in one line.
  """
  validate(config, trains=False)
  path = _folder(path)
  model = _model(config, checkpoint)
  c = config.eval
  store = tested_split.as_trained(stores.load(
      c.data or config.data.name, c.split, config.data.dir,
      config.data.manual_dir), model.data)
  values = features.of_store(
      model.algorithm, model.variables, store, c.normalise_features,
      c.batch_size, config.log.progress)
  packed = io.BytesIO()
  np.savez(packed, features=values, class_names=np.array(store.class_names),
           labels=np.repeat(np.arange(store.num_classes, dtype=np.int32),
                            np.diff(store.offsets)),
           names=np.array(stores.image_names(store, config.data.dir)))
  files.make(path)
  files.write(path / 'features.npz', packed.getvalue())
  if config.log.progress:
    print(f'{len(values)} features of {values.shape[1]} numbers are in '
          f'{path / "features.npz"}')


def export(config, checkpoint, path):
  """Writes the weights of a run; as `weights.export`."""
  validate(config, trains=False)
  return weights.export(config, checkpoint, _folder(path))


def _model(config, checkpoint):
  """Returns the Trained of a run, or of the file config.weights."""
  if checkpoint is not None:
    return trained.load(checkpoint, config)
  model = weights.load(config)
  if config.log.progress:
    print('\n'.join(weights.lines(model)), flush=True)
  return model


def _folder(path):
  """Returns the path of a folder for results; UserError for that of a run."""
  path = files.at(path)
  if (path / workdir.CONFIG).exists():
    raise UserError(f'{path} is the workdir of a run, whose own results would '
                    'be lost: choose another --workdir')
  return path
