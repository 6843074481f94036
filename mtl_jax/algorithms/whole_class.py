"""Whole-class training (RFS: Tian et al., ECCV 2020): no tasks at all.

    min over theta, W, b of  mean over images  CE(W f_theta(x) + b, class of x)

One classifier of all M training classes; an unseen task gets a new head on
frozen unit-length features, logistic regression. The public code takes
shuffled batches of 64 images. A step here is a task of `train.ways` classes
with `train.shots` images each: a batch that is balanced over the classes it
holds, with its own BatchNorm statistics as there.
"""

import jax.numpy as jnp

from mtl_jax.algorithms import base, last_layer, network
from mtl_jax.data import episodes
from mtl_jax.fields import POSITIVE, Field
from mtl_jax.heads import gradient

ANY_WAYS = True
OPTIONS = {
    'test_C': Field(1., "C of the new head where 'own' is tested; other "
                    'heads have config.heads', POSITIVE),
    'batch_norm': Field('running', 'BatchNorm statistics at test time: '
                        'running ones of training', ('running',)),
}


def _published(classes=64, images=38400):
  """Returns a Recipe for a training split of so many images."""
  return base.Recipe({
      'train.ways': classes, 'train.shots': 1, 'train.queries': 0,
      'train.meta_batch': 1, 'train.epoch_tasks': images // classes,
      'train.max_epochs': 100, 'train.stop_patience': 0,
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.05,
      'optimizer.nesterov': False, 'optimizer.weight_decay': 5e-4,
      'optimizer.schedule': 'step', 'optimizer.step_epochs': (60, 80),
      'optimizer.step_scales': (0.1, 0.01),
      'validation.head': 'logistic', 'eval.heads': ('logistic',),
      'heads.logistic.C': 1.,
  }, 'WangYueFt/rfs train_supervised.py (balanced batches are ours)',
      ours=False)


RECIPES = {  # one network for all shots of the test
    ('mini_imagenet', None, 'published'): _published(),
    ('tiered_imagenet', None, 'published'): _published(images=448695),
    ('cifar_fs', None, 'published'): _published(),
    ('fc100', None, 'published'): _published(classes=60, images=36000),
    **base.small_recipes(_published(), {
        'train.ways': 160, 'train.shots': 1, 'train.queries': 0,
        'train.meta_batch': 1, 'train.epoch_tasks': 200,
        'train.max_epochs': 3, 'optimizer.decay_epochs': 3,
        'optimizer.name': 'adam', 'optimizer.learning_rate': 3e-3,
        'optimizer.weight_decay': 0., 'optimizer.schedule': 'cosine',
        'eval.support_copies': 0,
    }),
}


def build(backbone, num_classes, ways, *, test_C, batch_norm):
  """Returns whole-class training; see OPTIONS for the keywords."""
  del ways, batch_norm  # `features` has running statistics

  def loss(variables, key, episode, tasks_seen):
    images, labels = episodes.joined(episode)
    features, statistics = network.forward(
        backbone, variables, images, network.Mode(True, key, tasks_seen))
    logits = gradient.logits(variables['params']['head'], features)
    scored = network.score(logits, episode.class_ids[labels])
    return jnp.mean(scored.losses), network.aux(statistics, scored)

  features = network.features_function(backbone)
  return base.Algorithm(network.init_with_head(backbone, num_classes), loss,
                        features, *last_layer.new_head(features, test_C))
