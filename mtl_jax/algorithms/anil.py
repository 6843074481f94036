"""ANIL: almost no inner loop (Raghu et al., ICLR 2020).

    min over theta, w of  mean_t  L(theta, w_t; query_t),
    w_t = w after a few steps of descent on L(theta, .; support_t)

MAML whose body stays fixed within a task: the features are computed once, and
the steps cost next to nothing. The authors published no code; the settings
are learn2learn's.
"""

import functools

import jax.numpy as jnp

from mtl_jax.algorithms import base, last_layer, network
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field
from mtl_jax.heads import gradient
from mtl_jax.heads.options import weighted
from mtl_jax.solvers import inner_loop

ANY_WAYS = False  # the head has as many outputs as in training
check = base.need_queries
OPTIONS = {
    'inner_steps': Field(5, 'steps of the inner loop in training', COUNT),
    'test_steps': Field(5, 'steps of the inner loop at test time', COUNT),
    'inner_rate': Field(
        0.1, 'rate of the inner steps, on the mean cross-entropy', POSITIVE),
    'learned_rate': Field(False, 'whether the inner rate, one number, is '
                          'trained; inner_rate is then its initial value'),
    'inner_l2': Field(0., 'factor of half the squared distance to the '
                      'start, in the inner loss', NOT_NEGATIVE),
    'first_order': Field(False, 'whether the gradient counts the inner '
                         'gradients as constants'),
    'loss': Field('cross_entropy', 'loss of an example', network.LOSSES),
    # learn2learn never leaves training mode and passes support and query
    # together: one batch.
    'batch_norm': Field('episode', 'BatchNorm statistics of a task',
                        network.BATCH_NORM),
}


_CNN4 = base.network('conv4', width=64, pool='flat')


def _published(network, source, *, rate, meta_batch, values, changes):
  """Returns a Recipe of learn2learn, for 5 shots.

  Args:
    network: fields of the network.
    source: file that the settings are of.
    rate: of the inner steps.
    meta_batch: T.
    values, changes: further ones, see base.published.
  """
  return base.published({
      'train.ways': 5, 'train.shots': 5, 'train.queries': 5,
      'train.meta_batch': meta_batch, 'train.stop_patience': 0,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 1e-3,
      'optimizer.weight_decay': 0., 'optimizer.schedule': 'constant',
      'method.inner_steps': 5, 'method.test_steps': 5,
      'method.inner_rate': rate, 'method.first_order': False,
      'method.batch_norm': 'episode',
      **base.OWN_TEST, **base.PLAIN, **network, **values,
  }, f'learn2learn, examples/vision/{source}',
      base.selection(5, 5) | changes, notes=(
          'The authors of ANIL published no code.',
          *((base.BIASES, base.START, base.NORM_SCALE)
            if network['model.name'] == 'conv4' else ())))


def _lightning(network, rate, epochs):
  """Returns a Recipe of the Makefile: epochs of ten steps."""
  reason = ('as in training: the BatchNorm batch contains the query; not known '
            'of the source')
  return _published(
      network, 'lightning/Makefile', rate=rate, meta_batch=16,
      values={'train.epoch_tasks': 160, 'train.max_epochs': epochs},
      changes={'eval.queries': (5, reason)})


def _one_shot(recipe):
  """Returns the Recipe of ours for 1 shot, which nobody published."""
  return recipe._replace(ours=True, overrides=recipe.overrides | {
      'train.shots': 1, 'validation.shots': 1})


_MINI = _lightning(base.network('resnet12'), 0.1, 25_000)
_CIFAR_FS = _lightning(_CNN4, 0.05, 2000)
_FC100 = _published(
    _CNN4, 'anil_fc100.py', rate=0.1, meta_batch=32,
    values=base.protocol(test=(600, 5)), changes={
        field: (value, 'the source has no epochs: 1000 steps')
        for field, value in {'train.epoch_tasks': 320,
                             'train.max_epochs': 100}.items()})
# Of benchmarks/search.py. An image of mini-ImageNet has 1600 features, not 32:
# at a rate of 0.1 the inner loop diverges.
_CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 0.01},
    'mini_imagenet': {
        'optimizer.learning_rate': 1e-3, 'method.inner_rate': 0.01},
}
RECIPES = base.with_neighbours({
    ('mini_imagenet', 5, 'published'): _MINI,
    ('mini_imagenet', 1, 'published'): _one_shot(_MINI),
    ('cifar_fs', 5, 'published'): _CIFAR_FS,
    ('cifar_fs', 1, 'published'): _one_shot(_CIFAR_FS),
    ('fc100', 5, 'published'): _FC100,
    ('fc100', 1, 'published'): _one_shot(_FC100),
    **base.cpu_recipes(_MINI, {}, {
        'small': {5: 800, 1: 1330}, 'mini': {5: 1000, 1: 1670}}, _CHOSEN),
})


def build(backbone, num_classes, ways, *, inner_steps, test_steps, inner_rate,
          learned_rate, inner_l2, first_order, loss, batch_norm):
  """Returns ANIL over a backbone; see OPTIONS for the keywords.

  Where parameters hold a 'rate', it takes the place of `inner_rate`: one
  number, or one per part of the head, {'weights': .., 'bias': ..}.
  """
  del num_classes
  score = functools.partial(network.score, loss=loss)

  def init(key, images):
    variables = network.init_with_head(backbone, ways)(key, images)
    if learned_rate:
      variables['params']['rate'] = jnp.float32(inner_rate)
    return variables

  def fit(steps):
    def fit(params, features, labels, num_ways, example_weights=None):
      del num_ways  # the head has as many outputs as in training
      support_loss = lambda head, _: (jnp.mean(weighted(
          example_weights,
          score(gradient.logits(head, features), labels).losses)), None)
      return inner_loop.descend(
          support_loss, params['head'],
          inner_loop.rate(params.get('rate', inner_rate)), steps=steps,
          l2=inner_l2, first_order=first_order)[0]
    return fit

  logits = lambda params, head, features: gradient.logits(head, features)
  body = network.Body(backbone, batch_norm)
  train, test = (last_layer.make(body, fit(steps), logits, score)
                 for steps in (inner_steps, test_steps))
  return base.Algorithm(init, train.loss, network.features_function(backbone),
                        test.adapt, test.predict,
                        from_features=test.from_features)
