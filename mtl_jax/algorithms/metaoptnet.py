"""MetaOptNet (Lee, Maji, Ravichandran & Soatto, CVPR 2019).

    min over theta, s of  mean_t  CE(s <w_t, f_theta(x)>, y) on the query,
    w_t = the convex learner's optimum on the support

The last layer adapts, regularised by l2 and to convergence; the gradient goes
through the optimality conditions of the head (heads/svm.py, heads/ridge.py).
"""

import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import base, network
from mtl_jax.errors import UserError, check_choice
from mtl_jax.heads import ridge, svm

HEADS = ('svm', 'ridge')


def options():
  """Returns MetaOptNet's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  c.head = 'svm'  # Crammer and Singer's, or 'ridge'
  c.C = 0.1  # svm: bound of the dual
  c.svm_ridge = 1.  # svm: the identity that the public code adds
  c.regulariser = 50.  # ridge
  c.scale = 1.  # initial factor of the logits; it is trained
  c.label_smoothing = 0.  # 0.1 on mini-ImageNet with ResNet-12
  # Batch statistics in training, running ones at test time. The public code
  # passes the supports and the queries of eight tasks as two batches.
  c.batch_norm = 'running'
  return c


_SHOTS = {'mini_imagenet': 15, 'tiered_imagenet': 10, 'cifar_fs': 5,
          'fc100': 15}  # in training, one network for all shots
SMALL = base.SMALL_TRAINING | {'method.label_smoothing': 0.}


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  del shots
  ours = benchmark not in _SHOTS
  overrides = {
      'train.ways': 5, 'train.shots': _SHOTS.get(benchmark, 15),
      'train.queries': 6, 'train.meta_batch': 8, 'train.epoch_tasks': 8000,
      'train.max_epochs': 60, 'train.stop_patience': 0,
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.1,
      'optimizer.nesterov': True, 'optimizer.weight_decay': 5e-4,
      'optimizer.schedule': 'step', 'optimizer.step_epochs': (20, 40, 50),
      'optimizer.step_scales': (0.06, 0.012, 0.0024),
      'method.label_smoothing': 0.1 if benchmark == 'mini_imagenet' else 0.,
  } | base.OWN_TEST
  return base.settings(benchmark, overrides, SMALL,
                       'kjunelee/MetaOptNet train.py and README', ours)


def build(backbone, num_classes, ways, *, head, C, svm_ridge, regulariser,
          scale, label_smoothing, batch_norm):
  """Returns MetaOptNet over a backbone; see `options` for the keywords."""
  del num_classes, ways
  check_choice('config.method.head', head, HEADS)
  check_choice('config.method.batch_norm', batch_norm, network.BATCH_NORM)
  for name, value in (('C', C), ('regulariser', regulariser),
                      ('scale', scale)):
    if not value > 0:
      raise UserError(f'config.method.{name} is {value}: must be above 0')
  if svm_ridge < 0:
    raise UserError(f'config.method.svm_ridge is {svm_ridge}: must be at '
                    'least 0')
  if not 0 <= label_smoothing < 1:
    raise UserError(f'config.method.label_smoothing is {label_smoothing}: must'
                    ' be at least 0, below 1')
  learner, keywords = {
      'svm': (svm, {'C': C, 'ridge': svm_ridge}),
      'ridge': (ridge, {'regulariser': regulariser})}[head]

  def init(key, images):
    variables, _, _ = network.init(backbone, key, images)
    variables['params']['scale'] = jnp.float32(scale)
    return variables

  parts = network.last_layer(
      backbone, batch_norm,
      lambda params, features, labels, num_ways: learner.fit(
          features, labels, num_ways, **keywords),
      lambda params, fitted, features: params['scale'] * learner.logits(
          fitted, features),
      lambda logits, labels: network.example_losses(
          'cross_entropy', logits, labels, label_smoothing))
  return base.Algorithm(init, parts.loss, network.features_function(backbone),
                        parts.adapt, parts.predict)
