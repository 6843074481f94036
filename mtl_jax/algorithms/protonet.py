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


def _published(values, ways, shots, queries, epochs, source, changes, notes=()):
  """Returns a Recipe.

  Args:
    values: further fields, see base.published.
    ways, shots, queries: of a training task; the shots of the test as well.
    epochs: of 100 tasks; the rate halves after every 20.
    source, changes, notes: see base.published.
  """
  steps = range(20, epochs, 20)
  return base.published({
      'train.ways': ways, 'train.shots': shots, 'train.queries': queries,
      'train.meta_batch': 1, 'train.epoch_tasks': 100,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.weight_decay': 0., 'optimizer.schedule': 'step',
      'optimizer.step_epochs': tuple(steps),
      'optimizer.step_scales': tuple(0.5 ** i
                                     for i in range(1, len(steps) + 1)),
      'method.distance': 'squared', 'method.scale': 1.,
      'method.learned_scale': False, 'augment.operations': (),
      **base.OWN_TEST, **base.network('conv4', width=64, pool='flat'),
      **values,
  }, source, changes, notes=(base.BIASES, *notes))


def _mini(ways, shots):
  return _published({
      'train.max_epochs': 200, 'train.stop_patience': 0,
      'method.batch_norm': 'running_apart',
      'data.normalise': 'by the constants of ImageNet',
      **base.protocol(validation=(400, shots, 15), test=(2000, 30)),
  }, ways, shots, 15, 200, 'cyvius96/prototypical-network-pytorch train.py', {
      'data.normalise': (True, 'by the constants of the data set, as Lee et '
                         'al. (2019) have them'),
  }, notes=(
      base.NORM_SCALE,
      'Running statistics keep 0.9 of themselves per task, and take the mean '
      'of support and query; in the source these enter one after the other, so '
      'that 0.81 is kept.'))


def _omniglot(shots):
  reason = 'not known of the source'
  return _published({
      'train.stop_patience': 200, 'method.batch_norm': 'running',
      'data.normalise': False, 'eval.tasks': 1000,
  }, 60, shots, 5, 1000, 'jakesnell/prototypical-networks run_train.py', {
      'train.max_epochs': (1000, 'a bound: the rate has halved 49 times'),
      **{field: (value, reason) for field, value in base.protocol(
          validation=(400, shots, 15)).items()},
      'eval.queries': (15, reason),
  }, notes=(
      'Validation accuracy decides; in the source the validation loss does.',
      'The source trains once more on training and validation classes, for '
      'the best number of epochs.',
      'The source turns validation and test characters into four classes as '
      'well.'))


# Of benchmarks/search.py. An image of mini-ImageNet has 1600 features: squared
# distances as they are would saturate the softmax.
_CHOSEN = {
    'glyphs': {
        'optimizer.learning_rate': 0.01, 'train.ways': 10,
        'train.meta_batch': 2},
    'omniglot': {
        'optimizer.learning_rate': 0.01, 'train.ways': 10,
        'train.meta_batch': 2},
    'mini_imagenet': {
        'method.scale': 1 / 64, 'optimizer.learning_rate': 1e-3},
}
RECIPES = base.with_neighbours({
    ('mini_imagenet', 5, 'published'): _mini(20, 5),
    ('mini_imagenet', 1, 'published'): _mini(30, 1),
    ('omniglot', 5, 'published'): _omniglot(5),
    ('omniglot', 1, 'published'): _omniglot(1),
    **base.cpu_recipes(_mini(20, 5), {'method.batch_norm': 'running'}, {
        'small': {5: 800, 1: 1330}, 'mini': {5: 1000, 1: 1650}}, _CHOSEN),
})


def build(backbone, num_classes, ways, *, distance, scale, learned_scale,
          batch_norm):
  """Returns ProtoNet over a backbone; see OPTIONS for the keywords."""
  del num_classes, ways

  def init(key, images):
    variables, _, _ = network.init(backbone, key, images)
    if learned_scale:
      variables['params']['scale'] = jnp.float32(scale)
    return variables

  def fit(params, features, labels, num_ways, example_weights=None):
    return centroid.fit(features, labels, num_ways, distance=distance,
                        scale=params.get('scale', scale),
                        example_weights=example_weights)

  parts = last_layer.make(
      network.Body(backbone, batch_norm), fit,
      lambda params, head, features: centroid.logits(head, features))
  return base.Algorithm(init, parts.loss, network.features_function(backbone),
                        parts.adapt, parts.predict,
                        from_features=parts.from_features)
