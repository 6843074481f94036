"""Load what a run has learned: its backbone, ready for new images.

    model = trained.load('runs/mini')
    features = model.features(images)        # uint8 [B, h, w, c] -> [B, D]

The training data are not needed.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax import files
from mtl_jax.config.check import validate_network
from mtl_jax.data import augment
from mtl_jax.errors import UserError
from mtl_jax.models import layers
from mtl_jax.run import build, checkpoint, workdir


class Trained(NamedTuple):
  """The best epoch of a run, or weights of a file."""

  config: Any  # of the run
  algorithm: Any
  variables: Any
  step: int | None  # None: the weights are of no run
  best_score: float | None  # its validation accuracy; -inf: it had none
  data: dict[str, Any]  # of build.describe_data
  features: Callable  # uint8 [B, h, w, c] -> float32 [B, D]
  weights: dict[str, str] | None = None  # file and sha256; None: of a run


def load(path, config=None):
  """Loads the best epoch of a run.

  Args:
    path: the run's workdir.
    config: to take in place of the run's own; it may differ in what a test
      reads, and in nothing that made the run.

  Returns:
    Trained. Its `features` are of unit length where
    `config.eval.normalise_features` says so.

  Raises:
    UserError: the run has no finished epoch, or its files are damaged.
  """
  path = files.at(path)
  if config is None:
    config = workdir.saved_config(path)
  else:
    workdir.check(path, config, testing=True)
  validate_network(config)
  data = read_data(path)
  algorithm = build.algorithm_of(config, len(data['classes']))
  # A device of this machine: the run may have had another kind.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
      jax.eval_shape(
          lambda: build.initial_state(config, algorithm, data['image_shape'])))
  state = checkpoint.restore_best(path, like)
  return Trained(config, algorithm, state.variables, int(state.step),
                 float(state.best_score), data,
                 make_features(config, algorithm, state.variables, data))


def make_features(config, algorithm, variables, data):
  """Returns the `features` of Trained, of what its other fields are."""
  mean, std = (np.array(data[name], np.float32) for name in ('mean', 'std'))

  @jax.jit
  def features(images):
    values = algorithm.features(variables, augment.normalise(images, mean, std))
    return (layers.unit_norm(values) if config.eval.normalise_features
            else values)

  return features


def read_data(path):
  """Returns the data.json of a workdir, of `build.describe_data`.

  Raises:
    UserError: it cannot be read.
  """
  file = path / workdir.DATA
  try:
    data = json.loads(file.read_text())
    if not describes_data(data):
      raise ValueError
    return data
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{file} cannot be read ({type(error).__name__}): start '
                    'the run once more with its config, which writes it'
                    ) from error


def describes_data(data):
  """Returns whether a value is of the form of `build.describe_data`."""
  if not isinstance(data, dict) or not data.keys() >= set(build.DATA_KEYS):
    return False
  shape, before = data['image_shape'], data.get('before', [])
  return (isinstance(before, list) and all(
      isinstance(earlier, dict) and isinstance(earlier.get('name'), str)
      and _is_list(earlier.get('classes'), str) for earlier in before)
          and _is_list(data['classes'], str) and _is_list(shape, int)
          and len(shape) == 3 and min(shape) > 0
          and all(_is_list(data[name], int, float)
                  and len(data[name]) == shape[2]
                  and np.isfinite(data[name]).all()
                  for name in ('mean', 'std')) and min(data['std']) > 0)


def _is_list(values, *types):
  return isinstance(values, list) and values and all(
      type(value) in types for value in values)
