"""MetaOptNet (Lee, Maji, Ravichandran & Soatto, CVPR 2019).

    min over theta, s of  mean_t  CE(s <w_t, f_theta(x)>, y) on the query,
    w_t = the convex learner's optimum on the support

The last layer adapts, regularised by l2 and to convergence; the gradient goes
through the optimality conditions of the head (heads/svm.py, heads/ridge.py).
"""

import functools

import jax.numpy as jnp

from mtl_jax.algorithms import base, last_layer, network
from mtl_jax.fields import NOT_NEGATIVE, POSITIVE, SHARE, Field
from mtl_jax.heads import ridge, svm

ANY_WAYS = True
check = base.need_queries
OPTIONS = {
    'head': Field('svm', 'the convex learner: the support vector machine of '
                  'Crammer and Singer, or ridge regression',
                  ('svm', 'ridge')),
    'C': Field(0.1, 'svm: bound of the dual', POSITIVE),
    'svm_ridge': Field(1., 'svm: factor of the identity that the public code '
                       'adds to the Gram matrix', NOT_NEGATIVE),
    'regulariser': Field(50., 'ridge: factor of the penalty', POSITIVE),
    'scale': Field(1., 'initial factor of the logits; it is trained',
                   POSITIVE),
    'label_smoothing': Field(0., 'share of a target that the other classes '
                             'get', SHARE),
    # Batch statistics in training, running ones at test time. The public code
    # passes the supports and the queries of eight tasks as two batches.
    'batch_norm': Field('running', 'BatchNorm statistics of a task',
                        network.BATCH_NORM),
}


def _published(shots, *, small_images=False, smoothing=0.):
  """Returns a Recipe of train.py; `shots` K in training, `smoothing` e."""
  changes = {'method.batch_norm': (
      'running', 'here a task is a batch; the source passes 8 supports and '
      '8 queries as two batches, divided over its GPUs')}
  ramp = 53_333  # 40,000 of 6000 an epoch, in tasks of 8000 an epoch
  if not small_images:
    ramp = 'never, by an error under several GPUs'
    changes['model.ramp_tasks'] = (
        160_000, 'as meant: full after 40,000 forward passes, two per step of '
        '8 tasks; that the counter stood still is deduced, not observed')
  return base.published({
      'train.ways': 5, 'train.shots': shots, 'train.queries': 6,
      'train.meta_batch': 8, 'train.epoch_tasks': 8000,
      'train.max_epochs': 60, 'train.stop_patience': 0,
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.1,
      'optimizer.momentum': 0.9, 'optimizer.nesterov': True,
      'optimizer.weight_decay': 5e-4, 'optimizer.schedule': 'step',
      'optimizer.step_epochs': (20, 40, 50),
      'optimizer.step_scales': (0.06, 0.012, 0.0024),
      'method.head': 'svm', 'method.C': 0.1, 'method.svm_ridge': 1.,
      'method.scale': 1., 'method.label_smoothing': smoothing,
      'method.batch_norm': '8 supports, and 8 queries',
      **base.OWN_TEST,
      **base.protocol(validation=(2000, 5, 15), test=(1000, 15)),
      **base.resnet12(small_images, pool='flat', ramp_tasks=ramp),
  }, 'kjunelee/MetaOptNet train.py and README', changes, notes=(
      'The head is solved to its optimum; the source takes 15 iterations, and '
      '3 in its test.',
      'Validation tasks are the same after every epoch; the source draws '
      'others.',
      'DropBlock blanks whole blocks; the source blanks a part of most.'))


# Of benchmarks/search.py.
_CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 0.01},
    'omniglot': {'optimizer.learning_rate': 0.01},
    'mini_imagenet': {'optimizer.learning_rate': 0.01, 'method.scale': 10.},
}
RECIPES = {  # one network for all shots of the test
    ('mini_imagenet', None, 'published'): _published(15, smoothing=0.1),
    ('tiered_imagenet', None, 'published'): _published(10),
    ('cifar_fs', None, 'published'): _published(5, small_images=True),
    ('fc100', None, 'published'): _published(15, small_images=True),
    **base.cpu_recipes(_published(15), {'method.label_smoothing': 0.}, {
        'small': {None: 800}, 'mini': {None: 905}}, _CHOSEN),
}


def build(backbone, num_classes, ways, *, head, C, svm_ridge, regulariser,
          scale, label_smoothing, batch_norm):
  """Returns MetaOptNet over a backbone; see OPTIONS for the keywords."""
  del num_classes, ways
  learner, keywords, remedy = {
      'svm': (svm, {'C': C, 'ridge': svm_ridge},
              'lower config.method.C or raise config.method.svm_ridge'),
      'ridge': (ridge, {'regulariser': regulariser},
                'raise config.method.regulariser')}[head]

  def init(key, images):
    variables, _, _ = network.init(backbone, key, images)
    variables['params']['scale'] = jnp.float32(scale)
    return variables

  parts = last_layer.make(
      network.Body(backbone, batch_norm),
      lambda params, *task, example_weights=None: learner.fit(
          *task, **keywords, example_weights=example_weights),
      lambda params, fitted, features: params['scale'] * learner.logits(
          fitted, features),
      functools.partial(network.score, smoothing=label_smoothing),
      functools.partial(learner.diagnostics, **keywords))
  return base.Algorithm(init, parts.loss, network.features_function(backbone),
                        parts.adapt, parts.predict, parts.convergence, remedy,
                        parts.from_features)
