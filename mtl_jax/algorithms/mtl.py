"""Joint multi-task learning (Wang, Zhao & Li, ICML 2021).

The bi-level problem of ANIL, MetaOptNet or R2D2 fits a head to every task
inside the loss; MTL makes the heads parameters and trains them together with
the representation, by plain first-order gradients:

    min over theta, {w_t} of  mean_t  CE(<w_t, f_theta(x)>, y).

A head for every possible N-way task would need C(M, N) N D numbers. Tasks
consist of M classes, so the heads do too: one row of D numbers per class,
and a task's head is the gather of its N rows (M D numbers, whatever the
number of tasks). An unseen task gets a new head, fitted on frozen features.
"""

import jax.numpy as jnp

from mtl_jax.algorithms import base, last_layer, network
from mtl_jax.data import episodes
from mtl_jax.fields import POSITIVE, Field
from mtl_jax.heads import linear
from mtl_jax.models import layers

ANY_WAYS = True
OPTIONS = {
    # 'squared', half the sum over outputs of (logit - one-hot)^2, is for the
    # comparison with the tangent kernel.
    'loss': Field('cross_entropy', "loss of an example over the task's N rows",
                  network.LOSSES),
    # 'rows': U(+-1/sqrt(D)) sqrt(M/N), as published; 'shared': every class
    # starts from one vector, as the theory assumes.
    'head_init': Field('rows', 'whether rows start from vectors of their own '
                       'or from one shared vector', linear.INITS),
    # Published for all but FC100.
    'normalise_train_features': Field(
        True, 'whether features have unit length in training'),
    # As in scikit-learn.
    'test_C': Field(3., "C of the new head where 'own' is tested; other "
                    'heads have config.heads', POSITIVE),
    'batch_norm': Field('running', 'BatchNorm statistics at test time: '
                        'running ones of training', ('running',)),
}


_NOTES = (
    'The epoch with the best validation accuracy is tested, as the README '
    'says; the public code tests the last one.',
    'Running statistics take the tasks of a step together; the source takes '
    'them one after another.',
    'Validation tasks are the same after every epoch; the source draws new '
    'ones.',
    'DropBlock blanks whole blocks; the source blanks a part of most.',
    'The source remaps labels in place, which gives images of some tasks to a '
    'wrong row; this is not copied.')


def _published(test_shots, shots, queries, meta_batch, small_images=False,
               normalise=True):
  """Returns a Recipe of the README, section "Running".

  Args:
    test_shots: K of validation and test.
    shots, queries: images per class of a training task, all trained on.
    meta_batch: T.
    small_images: whether images have 32 pixels.
    normalise: whether features have unit length in training.
  """
  return base.published({
      'train.ways': 5, 'train.shots': shots, 'train.queries': queries,
      'train.meta_batch': meta_batch, 'train.epoch_tasks': 1600,
      'train.max_epochs': 1000, 'train.stop_patience': 15,
      'optimizer.name': 'radam', 'optimizer.learning_rate': 1e-3,
      'optimizer.weight_decay': 0., 'optimizer.schedule': 'plateau',
      'optimizer.plateau_factor': 0.1, 'optimizer.plateau_patience': 4,
      'method.head_init': 'rows', 'method.loss': 'cross_entropy',
      'method.normalise_train_features': normalise,
      'validation.head': 'logistic', 'eval.heads': ('logistic',),
      'heads.logistic.C': 3.,
      **base.protocol(validation=(400, test_shots, 30), test=(2000, 30)),
      # The counter of the public code rises by 2000 forward passes an epoch,
      # 400 of validation among them. It is full after 40,000: 20 epochs.
      **base.resnet12(small_images, pool='global', ramp_tasks=20 * 1600),
  }, 'AI-secure/multi-task-learning, README "Running" and train.py',
      notes=_NOTES)


_MINI = _published(5, 5, 5, 2)
# configs/glyphs_5shot.py and mini_5shot_cpu.py give the reasons.
_CPU = {
    'train.ways': 80, 'train.shots': 1, 'train.queries': 0,
    'train.meta_batch': 2, 'method.head_init': 'shared',
    'method.normalise_train_features': False,
}
# Of benchmarks/search.py. A task of mini-ImageNet has half of its classes.
_CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 0.01},
    'omniglot': {
        'optimizer.learning_rate': 0.01, 'train.ways': 20,
        'train.meta_batch': 8},
    'mini_imagenet': {
        'train.ways': 32, 'optimizer.learning_rate': 1e-3},
}
# configs/mini_5shot_fast.py gives the reasons.
_MINI_FAST = {
    'method.normalise_train_features': False, 'train.stop_patience': 0,
    'optimizer.name': 'sgd', 'optimizer.momentum': 0.9,
    'optimizer.nesterov': True, 'optimizer.weight_decay': 5e-4,
    'optimizer.schedule': 'cosine',
    'train.ways': 64, 'train.shots': 1, 'train.queries': 1,
    'train.meta_batch': 1, 'train.max_epochs': 5,
    'train.epoch_tasks': 6000,  # twenty passes over the images
    'optimizer.learning_rate': 0.1, 'optimizer.decay_epochs': 5,
}
RECIPES = {
    ('mini_imagenet', 5, 'published'): _MINI,
    ('mini_imagenet', 1, 'published'): _published(1, 5, 5, 6),
    ('tiered_imagenet', 5, 'published'): _published(5, 5, 35, 1),
    ('tiered_imagenet', 1, 'published'): _published(1, 5, 35, 2),
    ('cifar_fs', 5, 'published'): _published(5, 5, 5, 6, small_images=True),
    ('cifar_fs', 1, 'published'): _published(1, 5, 15, 2, small_images=True),
    ('fc100', 5, 'published'): _published(
        5, 5, 5, 6, small_images=True, normalise=False),
    ('fc100', 1, 'published'): _published(
        1, 1, 4, 1, small_images=True, normalise=False),
    **base.cpu_recipes(_MINI, _CPU, {
        'small': {None: 1000}, 'mini': {None: 1600}}, _CHOSEN),
    ('mini_imagenet', 5, 'fast'): base.small_recipe(
        _MINI._replace(source=''), _MINI_FAST),
}


def build(backbone, num_classes, ways, *, loss, head_init,
          normalise_train_features, test_C, batch_norm):
  """Returns MTL over a backbone; see OPTIONS for the keywords."""
  del batch_norm  # `features` has running statistics

  def init(key, images):
    variables, dim, rows_key = network.init(backbone, key, images)
    variables['params']['rows'] = linear.init(rows_key, num_classes, dim,
                                              ways, how=head_init)
    return variables

  def task_loss(variables, key, episode, tasks_seen):
    images, targets = episodes.joined(episode)
    features, statistics = network.forward(
        backbone, variables, images, network.Mode(True, key, tasks_seen))
    if normalise_train_features:
      features = layers.unit_norm(features)
    logits = linear.logits(variables['params']['rows'], episode.class_ids,
                           features)
    scored = network.score(logits, targets, loss)
    return jnp.mean(scored.losses), network.aux(statistics, scored)

  features = network.features_function(backbone)
  return base.Algorithm(init, task_loss, features,
                        *last_layer.new_head(features, test_C))
