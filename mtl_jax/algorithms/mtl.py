"""Joint multi-task learning (Wang, Zhao & Li, ICML 2021).

The bi-level problem of ANIL, MetaOptNet or R2D2 fits a head to every task
inside the loss; MTL makes the heads parameters and trains them together with
the representation, by plain first-order gradients:

    min over theta, {w_t} of  mean_t  CE(<w_t, f_theta(x)>, y).

A head for every possible N-way task would need C(M, N) N D numbers. Tasks
are made of M classes, so the heads are too: one row of D numbers a class,
and a task's head is the gather of its N rows (M D numbers, whatever the
number of tasks). An unseen task gets a new head, fitted on frozen features.
"""

import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import network
from mtl_jax.algorithms.base import Algorithm, Published
from mtl_jax.data import episodes
from mtl_jax.errors import UserError, check_choice
from mtl_jax.heads import linear
from mtl_jax.models import layers


def options():
  """Returns MTL's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  # 'cross_entropy' over the task's N rows, or 'squared': half the sum over
  # outputs of (logit - one-hot)^2, for the tangent-kernel comparison.
  c.loss = 'cross_entropy'
  # 'rows': U(+-1/sqrt(D)) sqrt(M/N), as published; 'shared': every class
  # starts from one vector, as the theory assumes.
  c.head_init = 'rows'
  # Unit-length features in training; published for all but FC100.
  c.normalise_train_features = True
  # C of the new head of an unseen task, as in scikit-learn.
  c.test_C = 3.
  # BatchNorm at test time: 'running' statistics of training.
  c.batch_norm = 'running'
  return c


# (images per class, meta-batch) of the README, section "Running".
_RUNS = {
    ('mini_imagenet', 5): (10, 2), ('mini_imagenet', 1): (10, 6),
    ('tiered_imagenet', 5): (40, 1), ('tiered_imagenet', 1): (40, 2),
    ('cifar_fs', 5): (10, 6), ('cifar_fs', 1): (20, 2),
    ('fc100', 5): (10, 6), ('fc100', 1): (5, 1),
}


# No publication: see configs/glyphs_5shot.py for the reasons.
_GLYPHS = {
    'train.shots': 2, 'train.queries': 2, 'train.meta_batch': 8,
    'optimizer.name': 'adam', 'optimizer.learning_rate': 2e-3,
    'method.head_init': 'shared', 'method.normalise_train_features': False,
}
# As for glyphs, but with few classes: a task holds about half of them. What was
# tried raised ways and rate together: see docs/omniglot.md.
_OMNIGLOT = _GLYPHS | {
    'train.ways': 160, 'train.shots': 1, 'train.queries': 0,
    'train.meta_batch': 1, 'optimizer.learning_rate': 6e-3,
    'train.epoch_tasks': 100, 'train.max_epochs': 6,
    'optimizer.schedule': 'cosine', 'optimizer.decay_epochs': 6,
}


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  ours = (benchmark, shots) not in _RUNS
  per_class, meta_batch = _RUNS[('mini_imagenet', 5) if ours
                                else (benchmark, shots)]
  train_shots = 1 if (benchmark, shots) == ('fc100', 1) else 5
  overrides = {
      'train.ways': 5, 'train.shots': train_shots,
      'train.queries': per_class - train_shots,
      'train.meta_batch': meta_batch, 'train.epoch_tasks': 1600,
      'train.stop_patience': 15,
      'optimizer.name': 'radam', 'optimizer.learning_rate': 1e-3,
      'optimizer.weight_decay': 0., 'optimizer.schedule': 'plateau',
      'optimizer.plateau_factor': 0.1, 'optimizer.plateau_patience': 4,
      'method.normalise_train_features': benchmark != 'fc100',
  }
  if benchmark == 'glyphs':
    overrides.update(_GLYPHS)
  if benchmark == 'omniglot':
    overrides.update(_OMNIGLOT)
  where = 'AI-secure/multi-task-learning, README "Running" and train.py'
  return Published(overrides, where, ours)


def build(backbone, num_classes, ways, *, loss, head_init,
          normalise_train_features, test_C, batch_norm):
  """Returns MTL over a backbone; see `options` for the keywords."""
  check_choice('config.method.loss', loss, network.LOSSES)
  check_choice('config.method.head_init', head_init, linear.INITS)
  check_choice('config.method.batch_norm', batch_norm, ('running',))
  if test_C <= 0:
    raise UserError(f'config.method.test_C is {test_C}: must be above 0')

  def init(key, images):
    variables, dim, rows_key = network.init(backbone, key, images)
    variables['params']['rows'] = linear.init(rows_key, num_classes, dim,
                                              ways, how=head_init)
    return variables

  def task_loss(variables, key, episode, tasks_seen):
    images, targets = episodes.joined(episode)
    features, statistics = network.forward(
        backbone, variables['params'], variables['batch_stats'], images,
        network.Mode(True, key, tasks_seen))
    if normalise_train_features:
      features = layers.unit_norm(features)
    logits = linear.logits(variables['params']['rows'], episode.class_ids,
                           features)
    values = network.example_losses(loss, logits, targets)
    return jnp.mean(values), network.aux(statistics, values, logits, targets)

  features = network.features_function(backbone)
  return Algorithm(init, task_loss, features,
                   *network.new_head(features, test_C))
