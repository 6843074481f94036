"""Prototypical networks (Snell, Swersky & Zemel, NeurIPS 2017).

    min over theta of  mean_t  CE(-|f(x) - c_y|^2), c the support's class means

The baseline of metric learning: nothing adapts but the class means.
"""

import jax.numpy as jnp

from mtl_jax.algorithms import base, last_layer, network
from mtl_jax.fields import POSITIVE, Field
from mtl_jax.heads import centroid

ANY_WAYS = True
check = base.need_queries
OPTIONS = {
    # MetaOptNet's ProtoNet has 'mean_squared'.
    'distance': Field('squared', 'distance between a query and a class mean, '
                      'as in heads/centroid.py', centroid.DISTANCES),
    'scale': Field(1., 'factor of the logits', POSITIVE),
    # MetaOptNet's code trains it.
    'learned_scale': Field(False, 'whether the factor is trained; scale is '
                           'then its initial value'),
    # Support and query are one batch in training; running statistics at test.
    'batch_norm': Field('running', 'BatchNorm statistics of a task',
                        network.BATCH_NORM),
}


def _published(ways, shots, queries, source):
  return base.Recipe({
      'train.ways': ways, 'train.shots': shots, 'train.queries': queries,
      'train.meta_batch': 1, 'train.epoch_tasks': 100,
      'train.max_epochs': 200, 'train.stop_patience': 0,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.schedule': 'step',
      'optimizer.step_epochs': tuple(range(20, 200, 20)),
      'optimizer.step_scales': tuple(0.5 ** i for i in range(1, 10)),
  } | base.OWN_TEST, source, ours=False)


_MINI = 'cyvius96/prototypical-network-pytorch train.py'
_OMNIGLOT = 'jakesnell/prototypical-networks run_train.py'
RECIPES = {
    ('mini_imagenet', 5, 'published'): _published(20, 5, 15, _MINI),
    ('mini_imagenet', 1, 'published'): _published(30, 1, 15, _MINI),
    ('omniglot', 5, 'published'): _published(60, 5, 5, _OMNIGLOT),
    ('omniglot', 1, 'published'): _published(60, 1, 5, _OMNIGLOT),
    **base.small_recipes(_published(20, 5, 15, _MINI), base.SMALL_TRAINING),
    **base.small_recipes(_published(60, 5, 5, _OMNIGLOT), base.SMALL_TRAINING,
                         [('omniglot', 'cpu')]),
}


def build(backbone, num_classes, ways, *, distance, scale, learned_scale,
          batch_norm):
  """Returns ProtoNet over a backbone; see OPTIONS for the keywords."""
  del num_classes, ways

  def init(key, images):
    variables, _, _ = network.init(backbone, key, images)
    if learned_scale:
      variables['params']['scale'] = jnp.float32(scale)
    return variables

  def fit(params, features, labels, num_ways):
    return centroid.fit(features, labels, num_ways, distance=distance,
                        scale=params.get('scale', scale))

  parts = last_layer.make(
      network.Body(backbone, batch_norm), fit,
      lambda params, head, features: centroid.logits(head, features))
  return base.Algorithm(init, parts.loss, network.features_function(backbone),
                        parts.adapt, parts.predict)
