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


_BATCH = 64


def _published(images=38_400, validated=0, *, small_images=False,
               classes=_BATCH):
  """Returns a Recipe.

  Args:
    images: of the training split.
    validated: images that the source shows the network after each epoch.
    small_images: whether images have 32 pixels.
    classes: of a step; no more than the split has.
  """
  changes = {}
  # The counter of DropBlock rises by every batch, and is full after 40,000: 64
  # images of training, or 32 of validation.
  epochs = 40_000 / (images // _BATCH + -(-validated // 32))
  if classes < _BATCH:
    reason = 'a step holds an image each of all classes there are'
    changes = {'train.ways': (classes, reason),
               'train.epoch_tasks': (images // classes, reason)}
  return base.published({
      'train.ways': _BATCH, 'train.shots': 1, 'train.queries': 0,
      'train.meta_batch': 1, 'train.epoch_tasks': images // _BATCH,
      'train.max_epochs': 100, 'train.stop_patience': 0,
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.05,
      'optimizer.momentum': 0.9, 'optimizer.nesterov': False,
      'optimizer.weight_decay': 5e-4,
      'optimizer.schedule': 'step', 'optimizer.step_epochs': (60, 80),
      'optimizer.step_scales': (0.1, 0.01),
      'validation.head': 'logistic', 'eval.heads': ('logistic',),
      'eval.normalise_features': True, 'eval.support_copies': 5,
      'heads.logistic.C': 1.,
      **base.protocol(test=(600, 15)),
      **base.resnet12(small_images, pool='global',
                      ramp_tasks=round(epochs * (images // classes))),
  }, 'WangYueFt/rfs train_supervised.py and eval', {
      **changes, **base.selection(15)}, notes=(
          'A step holds one image each of as many classes; the source takes '
          'shuffled images.',
          'DropBlock blanks whole blocks; the source blanks a part of most.',
          'The interval is 1.96 standard errors; that of the source is of '
          "Student's t."))


# Of benchmarks/search.py. A task of mini-ImageNet has half of its classes.
_CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 3e-3},
    'omniglot': {
        'optimizer.learning_rate': 0.01, 'optimizer.weight_decay': 2e-3},
    'mini_imagenet': {'train.ways': 32, 'optimizer.learning_rate': 3e-3},
}
RECIPES = {  # one network for all shots of the test
    # About 300 further images of each training class are validated on.
    ('mini_imagenet', None, 'published'): _published(validated=64 * 300),
    # How many here is not known.
    ('tiered_imagenet', None, 'published'): _published(448_695),
    # The training images once more.
    ('cifar_fs', None, 'published'): _published(
        validated=38_400, small_images=True),
    ('fc100', None, 'published'): _published(
        36_000, validated=36_000, small_images=True, classes=60),
    **base.cpu_recipes(_published(), {
        'train.ways': 80, 'train.shots': 1, 'train.queries': 0,
        'train.meta_batch': 2, 'eval.support_copies': 0,
    }, {'small': {None: 1000}, 'mini': {None: 1600}}, _CHOSEN),
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
