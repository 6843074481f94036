"""MAML (Finn, Abbeel & Levine, ICML 2017).

    min over theta of  mean_t  L(theta_t; query_t),
    theta_t = theta after a few steps of descent on L(.; support_t)

Body and head adapt, few steps keep them near theta, and the gradient goes
through the steps. Options lead to its neighbours in the table of
docs/methods.md: `adapts` (with the last layer it is ANIL), `inner_l2`,
`first_order`, and learned rates.
"""

import jax
import jax.numpy as jnp

from mtl_jax.algorithms import base, network
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field
from mtl_jax.solvers import inner_loop

_ADAPTS = {'all': ('backbone', 'head'), 'last': ('head',)}
ANY_WAYS = False  # the head has as many outputs as in training
check = base.need_queries
OPTIONS = {
    'adapts': Field('all', 'parts that adapt: all layers, or the last one, '
                    'the head', tuple(_ADAPTS)),
    'inner_steps': Field(5, 'steps of the inner loop in training', COUNT),
    'test_steps': Field(10, 'steps of the inner loop at test time', COUNT),
    # The public code divides the sum over the examples by K, not by N K. So its
    # 0.01 is a rate of N times 0.01 on the mean.
    'inner_rate': Field(
        0.05, 'rate of the inner steps, on the mean cross-entropy', POSITIVE),
    'learned_rate': Field(
        'none', 'whether the inner rate is trained: not, as one number, or '
        'as one per parameter (as in Meta-SGD)',
        ('none', 'shared', 'per_parameter')),
    'inner_l2': Field(0., 'factor of half the squared distance to the '
                      'start, in the inner loss', NOT_NEGATIVE),
    'first_order': Field(False, 'whether the gradient counts the inner '
                         'gradients as constants'),
    'loss': Field('cross_entropy', 'loss of an example', network.LOSSES),
    # Query images are a batch of their own in training and test, as published.
    'batch_norm': Field('transductive', 'BatchNorm statistics of a task',
                        network.BATCH_NORM_ALL_LAYERS),
    'remat': Field(False, 'whether inner steps are computed again for the '
                   'gradient, which saves memory'),
    'unroll': Field(True, 'whether inner steps are unrolled at compilation'),
}
_WAYS = 5


def _published(shots, *, network, rate=0.05, meta_batch=4, steps=5, queries=15,
               clip=10., ours=None, source='', notes=()):
  """Returns a Recipe of main.py.

  The loss of the source is a sum over the query, divided by K: N Q / K times
  ours, the mean. What is compared with a gradient, the clip and Adam's
  epsilon, is therefore divided by that.

  Args:
    shots: K, and Q of the test.
    network: fields of the network in the source, and others.
    rate: of the inner steps on the mean, N times that of the source.
    meta_batch, steps, queries: of training.
    clip: of the source; 0: none.
    ours: further changes, see base.published.
    source: what stands before cbfinn/maml.
    notes: further ones, see base.Recipe.
  """
  larger = _WAYS * queries / shots
  return base.published({
      'train.ways': _WAYS, 'train.shots': shots, 'train.queries': queries,
      'train.meta_batch': meta_batch, 'train.max_epochs': 120,
      'train.stop_patience': 0,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.epsilon': 1e-8 / larger, 'optimizer.clip': clip / larger,
      'optimizer.schedule': 'constant', 'method.adapts': 'all',
      'method.inner_rate': rate, 'method.inner_steps': steps,
      'method.test_steps': 10, 'method.first_order': False,
      'method.batch_norm': 'transductive',
      **base.OWN_TEST, **base.PLAIN, **network,
      # Q matters: the query images are a BatchNorm batch.
      **base.protocol(test=(600, shots)),
  }, f'{source}cbfinn/maml main.py', {
      'train.epoch_tasks': (
          500 * meta_batch, 'the source has no epochs: 60,000 steps'),
      **base.selection(shots, shots), **(ours or {}),
  }, notes=(base.BIASES, base.START, base.EPSILON,
            "BatchNorm has a scale, and inner steps adapt its scale and shift; "
            "the source has no scale, and adapts neither.", *notes))


_CONV32 = base.network('conv4', width=32, pool='flat')
MINI = _published(5, network=_CONV32)
_CIFAR_FS = 'ArnoutDevos/maml-cifar-fs, after '
# Few steps at a high rate.
CPU = base.ALL_LAYERS | {
    'method.inner_steps': 3, 'method.test_steps': 5, 'method.inner_rate': 0.4,
    'optimizer.clip': 0., 'optimizer.epsilon': 1e-8,
}
# Of benchmarks/search.py. On mini-ImageNet three steps of 0.02 go a quarter as
# far as the published five of 0.05; three of 0.1 were worse in its trials.
CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 0.01, 'method.inner_rate': 0.1},
    'omniglot': {'optimizer.learning_rate': 0.01, 'method.inner_rate': 0.1},
    'mini_imagenet': {
        'optimizer.learning_rate': 1e-3, 'method.inner_rate': 0.02},
}
RECIPES = base.with_neighbours({
    ('mini_imagenet', 5, 'published'): MINI,
    ('mini_imagenet', 1, 'published'): _published(1, network=_CONV32),
    ('cifar_fs', 5, 'published'): _published(5, network=_CONV32,
                                             source=_CIFAR_FS),
    ('cifar_fs', 1, 'published'): _published(1, network=_CONV32,
                                             source=_CIFAR_FS),
    ('omniglot', 1, 'published'): _published(
        1, rate=2., meta_batch=32, steps=1, queries=1, clip=0.,
        network=base.network('four convolutions of stride 2, mean over pixels',
                             width=64, pool='no pools') | {
                                 'train.turn_classes': True},
        ours=base.pooled('the source has strides, which no network here has')
        | base.TURNS_ARE_CLASSES, notes=(
            base.UPRIGHT_TEST,
            'The output layer starts with a standard deviation of 0.17; the '
            'source draws it from N(0, 1).')),
    **base.cpu_recipes(MINI, CPU, {
        'small': {5: 120, 1: 460}, 'mini': {5: 205, 1: 720}}, CHOSEN),
})


def build(backbone, num_classes, ways, *, adapts, inner_steps, test_steps,
          inner_rate, learned_rate, inner_l2, first_order, loss, batch_norm,
          remat, unroll):
  """Returns MAML over a backbone; see OPTIONS for the keywords."""
  del num_classes
  body = network.Body(backbone, batch_norm)
  part = lambda params: {name: params[name] for name in _ADAPTS[adapts]}

  def init(key, images):
    variables = network.init_with_head(backbone, ways)(key, images)
    params = variables['params']
    if learned_rate == 'shared':
      params['rate'] = jnp.float32(inner_rate)
    if learned_rate == 'per_parameter':
      params['rate'] = jax.tree.map(
          lambda p: jnp.full_like(p, inner_rate), part(params))
    return variables

  def inner(variables, support_x, support_y, steps, mode,
            example_weights=None):
    """Returns (variables after the inner loop, statistics before it)."""
    params = variables['params']
    end, statistics = network.descend(
        network.support_loss(body, variables, support_x, support_y, mode,
                             loss, example_weights),
        part(params), inner_loop.rate(params.get('rate', inner_rate)),
        steps=steps, l2=inner_l2, first_order=first_order, remat=remat,
        unroll=unroll)
    return {**variables, 'params': {**params, **end}}, statistics

  def task_loss(variables, key, episode, tasks_seen):
    mode = network.Mode(True, key, tasks_seen)
    end, statistics = inner(variables, episode.support_x, episode.support_y,
                            inner_steps, mode)
    value, scored = network.query_loss(body, end, episode,
                                       mode.at(inner_steps), loss)
    return value, network.aux(statistics, scored)

  def adapt(variables, key, support_x, support_y, num_ways,
            example_weights=None):
    del key, num_ways  # nothing random; the head's outputs are fixed
    end, _ = inner(variables, support_x, support_y, test_steps, network.TEST,
                   example_weights)
    return network.Adapted(end, support_x)

  return base.Algorithm(init, task_loss, network.features_function(backbone),
                        adapt, network.predict_adapted(body))
