"""Load what a run has learned: its backbone, ready for new images.

    model = trained.load('runs/mini')
    features = model.features(images)        # uint8 [B, h, w, c] -> [B, D]

The data set that it was trained on need not be there.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import models, saved_config
from mtl_jax.algorithms import METHODS
from mtl_jax.config import method_options, model_options
from mtl_jax.config_check import validate
from mtl_jax.data import augment, episodes
from mtl_jax.errors import UserError
from mtl_jax.models import layers
from mtl_jax.train import checkpoint, optimizer, workdir
from mtl_jax.train import step as steps

# Sections that a test reads and a finished training does not.
_TEST_ONLY = ('heads', 'validation', 'augment')


class Trained(NamedTuple):
  """The best epoch of a run."""

  config: Any  # of the run
  algorithm: Any
  variables: Any
  step: int
  best_score: float  # its validation accuracy
  data: dict[str, Any]  # as `describe_data` returns it
  features: Callable  # uint8 [B, h, w, c] -> float32 [B, D]


def describe_data(store):
  """Returns what must be known of the training split without having it."""
  return {'name': store.name, 'classes': list(store.class_names),
          'image_shape': list(store.images.shape[1:]),
          'mean': store.mean.tolist(), 'std': store.std.tolist()}


def algorithm_of(config, num_classes):
  """Builds the method of a config over its backbone."""
  backbone = models.create(config.model.name, **model_options(config))
  return METHODS[config.method.name].build(
      backbone, num_classes, config.train.ways, **method_options(config))


def initial_state(config, algorithm, image_shape):
  """Returns the TrainState before the first step of a run."""
  images = jnp.zeros((2, *image_shape))
  key = episodes.stream_key(config.seed, episodes.Stream.INIT)
  return jax.jit(lambda key: steps.init_state(
      algorithm, optimizer.build(config.optimizer), key, images))(key)


def load(path, config=None):
  """Loads the best epoch of a run.

  Args:
    path: the run's workdir.
    config: to take in place of the run's own; all that made the run must
      agree, but not what a test reads.

  Returns:
    Trained. Its `features` are of unit length where
    `config.eval.normalise_features` says so.

  Raises:
    UserError: no finished epoch there, or damaged files.
  """
  path = workdir.at(path)
  if config is None:
    config = saved_config.get_config(path)
  else:
    workdir.check(path, config, free=_TEST_ONLY)
  validate(config)
  data = read_data(path)
  algorithm = algorithm_of(config, len(data['classes']))
  # A device of this machine: the run may have had another kind.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
      jax.eval_shape(
          lambda: initial_state(config, algorithm, data['image_shape'])))
  state = checkpoint.restore_best(path, like)
  mean, std = (np.array(data[name], np.float32) for name in ('mean', 'std'))

  @jax.jit
  def features(images):
    found = algorithm.features(state.variables,
                               augment.normalise(images, mean, std))
    return layers.unit_norm(found) if config.eval.normalise_features else found

  return Trained(config, algorithm, state.variables, int(state.step),
                 float(state.best_score), data, features)


def read_data(path):
  """Returns what `describe_data` wrote into a workdir."""
  file = path / workdir.DATA
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'{file} cannot be read ({type(error).__name__}): start '
                    'the run again with its config, which writes it'
                    ) from error
