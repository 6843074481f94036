"""R2D2 (Bertinetto, Henriques, Torr & Vedaldi, ICLR 2019).

    min over theta, s, b of  mean_t  CE(s <w_t, [f_theta(x), 1]> + b, y),
    w_t = ridge regression on the support, in closed form

The last layer adapts, regularised by l2; the gradient goes through the solve.
"""

import functools

import jax
import jax.numpy as jnp

from mtl_jax import heads
from mtl_jax.algorithms import base, last_layer, network
from mtl_jax.data import episodes
from mtl_jax.errors import UserError
from mtl_jax.fields import NOT_NEGATIVE, POSITIVE, Field
from mtl_jax.heads import ridge

ANY_WAYS = True
OPTIONS = {
    # The regression is on features and labels over sqrt(S), so that it counts
    # S times on the sum of squares; the intercept is penalised, as published.
    'regulariser': Field(50., 'factor of the penalty of ridge regression on '
                         'the mean square', POSITIVE),
    # mini-ImageNet has 1e-4.
    'scale': Field(10., 'initial factor of the outputs; it is trained'),
    'shift': Field(0., 'initial shift of the outputs; it is trained'),
    'max_shots': Field(
        0, '0: a training task has train.shots; n: its shots are drawn from '
        '1..n, and the rest of its train.shots + train.queries images per '
        'class form the query', NOT_NEGATIVE),
    # Support and query are one batch in training; running statistics at test.
    'batch_norm': Field('running', 'BatchNorm statistics of a task',
                        ('running', 'episode')),
}


def _published(shots, ways, images, *, scale, drop, most=48):
  """Returns a Recipe of experiments.sh.

  Args:
    shots: K of validation and test.
    ways, images: of a training task; `images` per class.
    scale: initial factor of the outputs.
    drop: rate of dropout.
    most: images per class of a test task, support and query.
  """
  return base.published({
      'train.ways': ways, 'train.shots': 1, 'train.queries': images - 1,
      'train.meta_batch': 1, 'train.epoch_tasks': 100,
      'train.max_epochs': 1200, 'train.stop_patience': 200,
      'optimizer.name': 'adam', 'optimizer.learning_rate': 5e-3,
      'optimizer.weight_decay': 0., 'optimizer.schedule': 'step',
      'optimizer.step_epochs': tuple(range(20, 1200, 20)),
      'optimizer.step_scales': tuple(0.5 ** i for i in range(1, 60)),
      'method.regulariser': 50., 'method.scale': scale, 'method.shift': 0.,
      'method.max_shots': 9, 'validation.tasks': 200,
      'validation.shots': 'a network each is kept for 1 and for 5',
      **base.protocol(test=(10_000, most - shots)),
      **base.OWN_TEST, **base.PLAIN,
      **base.network('r2d2_net', widths=(96, 192, 384, 512), drop_rate=drop),
  }, 'bertinetto/r2d2 scripts/train', {
      'validation.shots': (shots, 'a run keeps one network, and stops when it '
                           'has not improved; the source keeps two, and stops '
                           'when neither has'),
      'validation.queries': (15, 'not known of the source'),
  }, notes=(base.BIASES,
            base.NORM_SCALE,
            'Weights start as in models/layers.py; the source draws them from '
            'U(+-1 / sqrt(fan-in)).'))


def _all_shots(benchmark, *args, **options):
  return {(benchmark, shots, 'published'): _published(shots, *args, **options)
          for shots in (1, 5)}


_MINI = _all_shots('mini_imagenet', 16, 15, scale=1e-4, drop=0.1)
# Of benchmarks/search.py.
_CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 0.01, 'method.regulariser': 5.},
    'omniglot': {'optimizer.learning_rate': 0.01, 'method.regulariser': 5.},
    'mini_imagenet': {'optimizer.learning_rate': 1e-3},
}
RECIPES = base.with_neighbours({
    **_MINI,
    **_all_shots('cifar_fs', 20, 12, scale=10., drop=0.4),
    # A character has 20 drawings.
    **_all_shots('omniglot', 60, 10, scale=10., drop=0., most=20),
    **base.cpu_recipes(
        _MINI['mini_imagenet', 5, 'published'],
        {'method.max_shots': 0, 'method.scale': 10.},
        {'small': {None: 800}, 'mini': {None: 975}}, _CHOSEN),
})


def check(options, train):
  """Raises UserError where drawn shots would leave no query."""
  if not options['max_shots']:
    base.need_queries(options, train)
  images = train.shots + train.queries
  if options['max_shots'] >= images:
    raise UserError(
        f'config.method.max_shots is {options["max_shots"]}: must be below '
        f'config.train.shots + config.train.queries, {images}')


def build(backbone, num_classes, ways, *, regulariser, scale, shift,
          max_shots, batch_norm):
  """Returns R2D2 over a backbone; see OPTIONS for the keywords."""
  del num_classes, ways

  def init(key, images):
    variables, _, _ = network.init(backbone, key, images)
    variables['params']['adjust'] = {'scale': jnp.float32(scale),
                                     'shift': jnp.float32(shift)}
    return variables

  keywords = {'regulariser': regulariser, 'target': 1., 'bias': True,
              'average': True}
  parts = last_layer.make(
      network.Body(backbone, batch_norm),
      lambda params, *task, example_weights=None: ridge.fit(
          *task, **keywords, example_weights=example_weights), _logits,
      diagnostics=functools.partial(ridge.diagnostics, **keywords))
  return base.Algorithm(
      init, _drawn_shots_loss(backbone, regulariser, max_shots)
      if max_shots else parts.loss,
      network.features_function(backbone), parts.adapt, parts.predict,
      parts.convergence, 'raise config.method.regulariser',
      parts.from_features)


def _logits(params, head, features):
  adjust = params['adjust']
  return adjust['scale'] * ridge.logits(head, features) + adjust['shift']


def _drawn_shots_loss(backbone, regulariser, max_shots):
  """Returns Algorithm.loss with the first images of each class as support.

  Their number is drawn from 1..max_shots. Shapes are fixed: every image has a
  row in the regression. The rows of query images are zero, which changes none
  of its sums.
  """
  def loss(variables, key, episode, tasks_seen):
    params = variables['params']
    num_ways = episode.class_ids.shape[0]
    images, labels = episodes.joined(episode)
    features, statistics = network.forward(
        backbone, variables, images, network.Mode(True, key, tasks_seen))
    shots, queries = (len(y) // num_ways for y in (
        episode.support_y, episode.query_y))
    number = jnp.concatenate([  # of an image within its class
        jnp.tile(jnp.arange(shots), num_ways),
        shots + jnp.tile(jnp.arange(queries), num_ways)])
    drawn = jax.random.randint(
        jax.random.fold_in(key, network.DRAWN_SHOTS), (), 1, max_shots + 1)
    support = (number < drawn).astype(features.dtype)
    rows = jnp.concatenate([features, jnp.ones_like(features[:, :1])], -1)
    used = rows * support[:, None]
    keywords = {'target': 1., 'regulariser': regulariser * drawn * num_ways}
    head = ridge.fit(used, labels, num_ways, **keywords)
    solved = heads.convergence(ridge.diagnostics(
        *jax.lax.stop_gradient((head, used)), labels, **keywords))
    scored = network.score(_logits(params, head, rows), labels)
    values = scored.losses * (1 - support)
    count = jnp.sum(1 - support)
    hits = jnp.sum(
        (jnp.argmax(scored.logits, -1) == labels) * (1 - support))
    return jnp.sum(values) / count, base.Aux(statistics, {
        'loss': (jnp.sum(values), count), 'accuracy': (hits, count),
        **network.of_task(**solved)})

  return loss
