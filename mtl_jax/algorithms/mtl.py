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


def _published(shots, queries, meta_batch, normalise=True):
  """Returns a Recipe of the README, section "Running"."""
  return base.Recipe({
      'train.ways': 5, 'train.shots': shots, 'train.queries': queries,
      'train.meta_batch': meta_batch, 'train.epoch_tasks': 1600,
      'train.stop_patience': 15,
      'optimizer.name': 'radam', 'optimizer.learning_rate': 1e-3,
      'optimizer.weight_decay': 0., 'optimizer.schedule': 'plateau',
      'optimizer.plateau_factor': 0.1, 'optimizer.plateau_patience': 4,
      'method.normalise_train_features': normalise,
  }, 'AI-secure/multi-task-learning, README "Running" and train.py',
      ours=False)


_MINI = _published(5, 5, 2)
# configs/glyphs_5shot.py gives the reasons.
_GLYPHS = {
    'train.shots': 2, 'train.queries': 2, 'train.meta_batch': 8,
    'optimizer.name': 'adam', 'optimizer.learning_rate': 2e-3,
    'method.head_init': 'shared', 'method.normalise_train_features': False,
}
_QUICK = {  # counted in steps, so that the time is known beforehand
    'train.epoch_tasks': 800, 'train.max_epochs': 3,
    'optimizer.learning_rate': 3e-3, 'optimizer.schedule': 'cosine',
    'optimizer.decay_epochs': 3,
}
# As for glyphs, but with few classes: a task holds about half of them. All
# trials raised ways and rate together: see docs/omniglot.md.
_OMNIGLOT = {
    'train.ways': 160, 'train.shots': 1, 'train.queries': 0,
    'train.meta_batch': 1, 'optimizer.learning_rate': 6e-3,
    'train.epoch_tasks': 100, 'train.max_epochs': 6,
    'optimizer.schedule': 'cosine', 'optimizer.decay_epochs': 6,
}
_SGD = {
    'method.normalise_train_features': False, 'train.max_epochs': 5,
    'train.stop_patience': 0, 'optimizer.name': 'sgd',
    'optimizer.learning_rate': 0.1, 'optimizer.nesterov': True,
    'optimizer.weight_decay': 5e-4, 'optimizer.schedule': 'cosine',
    'optimizer.decay_epochs': 5,
}
# configs/mini_5shot_cpu.py and mini_5shot_fast.py give the reasons.
_MINI_CPU = _SGD | {
    'train.ways': 32, 'train.shots': 1, 'train.queries': 0,
    'method.head_init': 'shared', 'train.meta_batch': 2,
    'train.epoch_tasks': 1920, 'parallel.cpu_devices': 2,
}
_MINI_FAST = _SGD | {
    'train.ways': 64, 'train.shots': 1, 'train.queries': 1,
    'train.meta_batch': 1,
    'train.epoch_tasks': 1500,  # five passes over the images
}
RECIPES = {
    ('mini_imagenet', 5, 'published'): _MINI,
    ('mini_imagenet', 1, 'published'): _published(5, 5, 6),
    ('tiered_imagenet', 5, 'published'): _published(5, 35, 1),
    ('tiered_imagenet', 1, 'published'): _published(5, 35, 2),
    ('cifar_fs', 5, 'published'): _published(5, 5, 6),
    ('cifar_fs', 1, 'published'): _published(5, 15, 2),
    ('fc100', 5, 'published'): _published(5, 5, 6, normalise=False),
    ('fc100', 1, 'published'): _published(1, 4, 1, normalise=False),
    **base.small_recipes(_MINI, _GLYPHS, [('glyphs', 'cpu')]),
    **base.small_recipes(_MINI, _GLYPHS | _QUICK, [('glyphs', 'fast')]),
    **base.small_recipes(_MINI, _GLYPHS | _OMNIGLOT, [('omniglot', 'cpu')]),
    ('mini_imagenet', 5, 'cpu'): base.Recipe(
        _MINI.overrides | _MINI_CPU, '', ours=True),
    ('mini_imagenet', 5, 'fast'): base.Recipe(
        _MINI.overrides | _MINI_FAST, '', ours=True),
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
