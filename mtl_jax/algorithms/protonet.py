"""Prototypical networks (Snell, Swersky & Zemel, NeurIPS 2017).

    min over theta of  mean_t  CE(-|f(x) - c_y|^2), c the support's class means

The baseline of metric learning: nothing adapts but the class means.
"""

import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import base, network
from mtl_jax.errors import UserError, check_choice
from mtl_jax.heads import centroid


def options():
  """Returns ProtoNet's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  c.distance = 'squared'  # of heads/centroid.py; MetaOptNet's: mean_squared
  c.scale = 1.  # factor of the logits
  c.learned_scale = False  # whether it is trained; MetaOptNet's code does
  # Support and query are one batch in training; running statistics at test.
  c.batch_norm = 'running'
  return c


SMALL = base.SMALL_TRAINING


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  ours = benchmark not in ('mini_imagenet', 'omniglot')
  omniglot = benchmark == 'omniglot'
  overrides = {
      'train.ways': 60 if omniglot else 30 if shots == 1 else 20,
      'train.shots': shots, 'train.queries': 5 if omniglot else 15,
      'train.meta_batch': 1, 'train.epoch_tasks': 100,
      'train.max_epochs': 200, 'train.stop_patience': 0,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.schedule': 'step',
      'optimizer.step_epochs': tuple(range(20, 200, 20)),
      'optimizer.step_scales': tuple(0.5 ** i for i in range(1, 10)),
  } | base.OWN_TEST
  where = ('jakesnell/prototypical-networks run_train.py' if omniglot else
           'cyvius96/prototypical-network-pytorch train.py')
  return base.settings(benchmark, overrides, SMALL, where, ours)


def build(backbone, num_classes, ways, *, distance, scale, learned_scale,
          batch_norm):
  """Returns ProtoNet over a backbone; see `options` for the keywords."""
  del num_classes, ways
  check_choice('config.method.distance', distance, centroid.DISTANCES)
  check_choice('config.method.batch_norm', batch_norm, network.BATCH_NORM)
  if not scale > 0:
    raise UserError(f'config.method.scale is {scale}: must be above 0')

  def init(key, images):
    variables, _, _ = network.init(backbone, key, images)
    if learned_scale:
      variables['params']['scale'] = jnp.float32(scale)
    return variables

  def fit(params, features, labels, num_ways):
    return centroid.fit(features, labels, num_ways, distance=distance,
                        scale=params.get('scale', scale))

  parts = network.last_layer(
      backbone, batch_norm, fit,
      lambda params, head, features: centroid.logits(head, features),
      lambda logits, labels: network.example_losses(
          'cross_entropy', logits, labels))
  return base.Algorithm(init, parts.loss, network.features_function(backbone),
                        parts.adapt, parts.predict)
