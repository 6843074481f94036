"""Whole-class training (RFS: Tian et al., ECCV 2020): no tasks at all.

    min over theta, W, b of  mean over images  CE(W f_theta(x) + b, class of x)

One classifier of all M training classes; an unseen task gets a new head on
frozen unit-length features, logistic regression. The public code takes
shuffled batches of 64 images. A step here is a task of `train.ways` classes
with `train.shots` images each: a batch that is balanced over the classes it
holds, with its own BatchNorm statistics as there.
"""

import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import base, network
from mtl_jax.data import episodes
from mtl_jax.errors import UserError, check_choice
from mtl_jax.heads import gradient


def options():
  """Returns whole-class training's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  c.test_C = 1.  # C of the new head of an unseen task
  c.batch_norm = 'running'  # at test time: statistics of training
  return c


SMALL = {
    'train.ways': 160, 'train.shots': 1, 'train.queries': 0,
    'train.meta_batch': 1, 'train.epoch_tasks': 200,
    'train.max_epochs': 3, 'optimizer.decay_epochs': 3,
    'optimizer.name': 'adam', 'optimizer.learning_rate': 3e-3,
    'optimizer.weight_decay': 0., 'optimizer.schedule': 'cosine',
    'eval.support_copies': 0,
}


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  del shots  # one network for all
  classes = {'fc100': 60}.get(benchmark, 64)
  images = {'tiered_imagenet': 448695, 'fc100': 36000}.get(benchmark, 38400)
  overrides = {
      'train.ways': classes, 'train.shots': 1, 'train.queries': 0,
      'train.meta_batch': 1, 'train.epoch_tasks': images // classes,
      'train.max_epochs': 100, 'train.stop_patience': 0,
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.05,
      'optimizer.nesterov': False, 'optimizer.weight_decay': 5e-4,
      'optimizer.schedule': 'step', 'optimizer.step_epochs': (60, 80),
      'optimizer.step_scales': (0.1, 0.01),
      'validation.head': 'logistic', 'eval.heads': ('logistic',),
      'heads.logistic.C': 1.,
  }
  return base.settings(
      benchmark, overrides, SMALL, 'WangYueFt/rfs train_supervised.py '
      '(balanced batches are ours)', False)


def build(backbone, num_classes, ways, *, test_C, batch_norm):
  """Returns whole-class training; see `options` for the keywords."""
  del ways
  check_choice('config.method.batch_norm', batch_norm, ('running',))
  if not test_C > 0:
    raise UserError(f'config.method.test_C is {test_C}: must be above 0')
  features = network.features_function(backbone)

  def loss(variables, key, episode, tasks_seen):
    images, labels = episodes.joined(episode)
    classes = episode.class_ids[labels]
    found, statistics = network.forward(
        backbone, variables['params'], variables['batch_stats'], images,
        network.Mode(True, key, tasks_seen))
    out = gradient.logits(variables['params']['head'], found)
    values = network.example_losses('cross_entropy', out, classes)
    return jnp.mean(values), network.aux(statistics, values, out, classes)

  return base.Algorithm(network.init_with_head(backbone, num_classes), loss,
                        features, *network.new_head(features, test_C))
