"""Build what a config describes: the method and its first state."""

import math

import jax
import jax.numpy as jnp

from mtl_jax import models, registry
from mtl_jax.config.check import build_method
from mtl_jax.data import episodes
from mtl_jax.errors import UserError
from mtl_jax.train import optimizer
from mtl_jax.train import step as steps

_MOST_PARAMETERS = 2**31 - 1
DATA_KEYS = ('name', 'classes', 'image_shape', 'mean', 'std')


def describe_data(store, before=()):
  """Returns what a test must know of the training split: data.json.

  Args:
    store: the training split.
    before: what the first weights were trained on, of init_from.trained_before.
  """
  data = {'name': store.name, 'classes': list(store.class_names),
          'image_shape': list(store.images.shape[1:]),
          'mean': store.mean.tolist(), 'std': store.std.tolist()}
  return {**data, 'before': list(before)} if before else data


def algorithm_of(config, num_classes):
  """Builds the method of a config over its backbone."""
  return build_method(config.to_dict(), num_classes)


def check_network(config, image_shape):
  """Raises UserError for a network of the user's own that no method can use."""
  if registry.is_own(config.model.name):
    models.check(config.model.name, models.create(**config.model), image_shape)


def initial_state(config, algorithm, image_shape):
  """Returns the TrainState before the first step of a run.

  Raises:
    UserError: the network has more parameters than any device holds, which XLA
      would take for ever to find out.
  """
  images = jnp.zeros((2, *image_shape))
  key = episodes.stream_key(config.seed, episodes.Stream.INIT)
  init = jax.jit(lambda key: steps.init_state(
      algorithm, optimizer.build(config.optimizer), key, images))
  params = jax.eval_shape(init, key).variables['params']
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  if count > _MOST_PARAMETERS:
    raise UserError(
        f'config.model: {config.method.name} with {config.model.name} has '
        f'{count:,} parameters: at most {_MOST_PARAMETERS:,}, so take a '
        'smaller network')
  return init(key)
