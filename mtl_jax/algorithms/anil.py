"""ANIL: almost no inner loop (Raghu et al., ICLR 2020).

    min over theta, w of  mean_t  L(theta, w_t; query_t),
    w_t = w after a few steps of descent on L(theta, .; support_t)

MAML whose body stays as it is within a task: the features are computed once
and the steps cost next to nothing. The authors published no code; settings
are learn2learn's.
"""

import jax.numpy as jnp
import ml_collections

from mtl_jax.algorithms import base, maml, network
from mtl_jax.errors import check_choice
from mtl_jax.heads import gradient
from mtl_jax.solvers import inner_loop


def options():
  """Returns ANIL's own fields with their defaults."""
  c = ml_collections.ConfigDict()
  c.inner_steps = 5  # in training
  c.test_steps = 5
  c.inner_rate = 0.1  # of the mean cross-entropy
  c.learned_rate = False  # whether the rate, one number, is trained
  c.inner_l2 = 0.  # times 1/2 |w_t - w|^2, in the inner loss
  c.first_order = False
  c.loss = 'cross_entropy'  # or 'squared'
  # learn2learn never leaves training mode and passes support and query
  # together: one batch.
  c.batch_norm = 'episode'
  return c


_RUNS = {  # (inner rate, meta-batch), examples/vision of learn2learn
    ('fc100', 5): (0.1, 32), ('cifar_fs', 5): (0.05, 16),
    ('mini_imagenet', 5): (0.1, 16),
}
SMALL = base.SMALL_TRAINING | {'method.inner_rate': 0.1}


def published(benchmark, shots):
  """Returns the published settings, mini-ImageNet's where there are none."""
  ours = (benchmark, shots) not in _RUNS
  rate, meta_batch = _RUNS[
      ('mini_imagenet', 5) if ours else (benchmark, shots)]
  overrides = {
      'train.ways': 5, 'train.shots': shots, 'train.queries': 5,
      'train.meta_batch': meta_batch, 'train.epoch_tasks': 10 * meta_batch,
      'train.max_epochs': 25000, 'train.stop_patience': 0,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.schedule': 'constant', 'method.inner_rate': rate,
  } | base.OWN_TEST
  return base.settings(
      benchmark, overrides, SMALL, 'learn2learn, examples/vision/anil_fc100.py '
      'and lightning/Makefile (no selection)', ours)


def build(backbone, num_classes, ways, *, inner_steps, test_steps, inner_rate,
          learned_rate, inner_l2, first_order, loss, batch_norm):
  """Returns ANIL over a backbone; see `options` for the keywords."""
  del num_classes
  check_choice('config.method.loss', loss, network.LOSSES)
  check_choice('config.method.batch_norm', batch_norm, network.BATCH_NORM)
  maml.check_inner(inner_steps, test_steps, inner_rate, inner_l2)
  losses = lambda logits, labels: network.example_losses(loss, logits, labels)

  def init(key, images):
    variables = network.init_with_head(backbone, ways)(key, images)
    if learned_rate:
      variables['params']['rate'] = jnp.float32(inner_rate)
    return variables

  def fit(steps):
    def fit(params, features, labels, num_ways):
      del num_ways  # the head has as many as in training
      support_loss = lambda head, _: (
          jnp.mean(losses(gradient.logits(head, features), labels)), None)
      return inner_loop.descend(
          support_loss, params['head'],
          inner_loop.rate(params.get('rate', inner_rate)), steps=steps,
          l2=inner_l2, first_order=first_order)[0]
    return fit

  logits = lambda params, head, features: gradient.logits(head, features)
  train, test = (
      network.last_layer(backbone, batch_norm, fit(steps), logits, losses)
      for steps in (inner_steps, test_steps))
  return base.Algorithm(init, train.loss, network.features_function(backbone),
                        test.adapt, test.predict)
