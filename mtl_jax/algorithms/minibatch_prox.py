"""Meta-MinibatchProx (Zhou, Yuan, Xu, Yan & Feng, NeurIPS 2019).

    min over w of  mean_t  min over w_t  L(w_t; D_t) + lambda/2 |w_t - w|^2

All layers adapt, regularised by l2 to w, on the whole task: no part of it is
query. The gradient of the inner minimum is lambda (w - w_t), first order; the
step of the optimizer is taken on (w - w_t), lambda folded into its rate, so
that plain SGD with rate e moves w by e towards the mean of the w_t (the
paper's outer step with e = eta lambda; the public code's interpolation).
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mtl_jax.algorithms import base, maml, network
from mtl_jax.data import episodes
from mtl_jax.errors import UserError, check_choice

UNROLLED = 16  # more steps take too long to compile one behind the other


def options():
  """Returns Meta-MinibatchProx's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  c.l2 = 0.1  # lambda
  c.inner_steps = 8  # of Adam without momentum (beta1 0), in training
  c.test_steps = 50  # on the whole support
  c.inner_rate = 1e-3
  c.inner_batch = 10  # images of a step, drawn without replacement in turns
  # As the public code: lambda is fed to a placeholder that nothing reads, and
  # the penalty is the mean over the V tensors of each tensor's mean square
  # distance. (Its Adam also keeps its moments from task to task in training,
  # which would make tasks depend on their order; here they start anew.)
  c.public_code = False
  # In training each inner batch's; at test time each query image passes with
  # the support, as published without transduction.
  c.batch_norm = 'each_query'
  c.unroll = True  # compile inner steps one behind the other, up to 16
  return c


SMALL = base.SMALL_ALL_LAYERS | {
    'train.shots': 5, 'train.queries': 5, 'method.inner_rate': 3e-3,
    'method.inner_steps': 6, 'method.inner_batch': 25,
    'method.test_steps': 6, 'method.batch_norm': 'support',
    'train.epoch_tasks': 720,
    'optimizer.name': 'sgd', 'optimizer.learning_rate': 1.,
    'optimizer.momentum': 0., 'optimizer.schedule': 'linear',
}


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  tiered = benchmark == 'tiered_imagenet'
  meta_batch = 20 if tiered else 5
  overrides = {
      'train.ways': 5, 'train.shots': 15, 'train.queries': 0,
      'train.meta_batch': meta_batch, 'train.epoch_tasks': 5000 * meta_batch,
      'train.max_epochs': 20, 'train.stop_patience': 0,
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 1.,
      'optimizer.momentum': 0., 'optimizer.weight_decay': 0.,
      'optimizer.schedule': 'linear', 'optimizer.decay_epochs': 20,
      'method.l2': 10. if tiered else 0.1,
  } | base.OWN_TEST
  ours = benchmark not in ('mini_imagenet', 'tiered_imagenet')
  return base.settings(
      benchmark, overrides, SMALL, 'the paper and its supplement; '
      'panzhous.github.io MetaMinibatchProx README (4 convolutions of 32 '
      'channels)', ours)


def build(backbone, num_classes, ways, *, l2, inner_steps, test_steps,
          inner_rate, inner_batch, public_code, batch_norm, unroll):
  """Returns Meta-MinibatchProx; see `options` for the keywords."""
  del num_classes
  check_choice('config.method.batch_norm', batch_norm, maml.BATCH_NORM)
  maml.check_inner(inner_steps, test_steps, inner_rate)
  if not l2 > 0:
    raise UserError(f'config.method.l2 is {l2}: must be above 0')
  if inner_batch < 1:
    raise UserError(f'config.method.inner_batch is {inner_batch}: must be at '
                    'least 1')

  def inner(variables, key, images, labels, steps, size, mode, unroll):
    """Returns (w_t, statistics at w)."""
    start = variables['params']
    order = batches(key, len(labels), size, steps)

    def loss(params, i):
      rows = order[i]
      value, statistics = network.support_loss(
          backbone, variables, images[rows], labels[rows], batch_norm, mode)(
              params, i)
      if public_code:
        value = value + mean_over_tensors(params, start)
      return value, statistics

    adam = optax.adam(inner_rate, b1=0.)
    return network.descend(
        loss, start, adam, steps=steps, l2=0. if public_code else l2,
        first_order=True, unroll=unroll)

  def task_loss(variables, key, episode, tasks_seen):
    images, labels = episodes.joined(episode)
    fixed = jax.lax.stop_gradient(variables)
    end, statistics = inner(
        fixed, jax.random.fold_in(key, 1), images, labels, inner_steps,
        min(inner_batch, len(labels)), network.Mode(True, key, tasks_seen),
        unroll and inner_steps <= UNROLLED)
    distance = sum(jax.tree.leaves(jax.tree.map(
        lambda w, w_t: 0.5 * jnp.sum((w - w_t) ** 2), variables['params'],
        end)))
    # What is reported: w_t on the task, the batch of its last pass.
    logits = network.adapted_logits(
        backbone, end, fixed['batch_stats'], images, images, 'transductive',
        network.Mode(True, key, tasks_seen))
    values = network.example_losses('cross_entropy', logits, labels)
    return distance, network.aux(statistics, values, logits, labels,
                                 distance=distance)

  def adapt(variables, key, support_x, support_y, num_ways):
    del num_ways  # the head has as many as in training
    end, _ = inner(variables, key, support_x, support_y, test_steps,
                   len(support_y), network.TEST,
                   unroll and test_steps <= UNROLLED)
    return network.Adapted(end, variables['batch_stats'], support_x)

  return base.Algorithm(
      network.init_with_head(backbone, ways), task_loss,
      network.features_function(backbone), adapt,
      network.predict_adapted(backbone, batch_norm))


def batches(key, count, size, steps):
  """Draws the rows of each step: int32 [steps, size].

  Walks through shuffles of the images, one behind the other, as the public
  code: a batch may span two.
  """
  shuffles = -(-steps * size // count)
  rows = jax.vmap(lambda k: jax.random.permutation(k, count))(
      jax.random.split(key, shuffles))
  return rows.reshape(-1)[:steps * size].reshape(steps, size)


def mean_over_tensors(params, start):
  """Returns the penalty of the public code, []."""
  means = [jnp.mean((p - s) ** 2) for p, s in zip(
      jax.tree.leaves(params), jax.tree.leaves(start), strict=True)]
  return sum(means) / len(means)
