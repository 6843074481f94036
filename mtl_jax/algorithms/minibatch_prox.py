"""Meta-MinibatchProx (Zhou, Yuan, Xu, Yan & Feng, NeurIPS 2019).

    min over w of  mean_t  min over w_t  L(w_t; D_t) + lambda/2 |w_t - w|^2

All layers adapt, regularised by l2 to w, on the whole task, without a query.
The gradient of the inner minimum is lambda (w - w_t), first order; the
step of the optimizer is taken on (w - w_t), lambda folded into its rate, so
that plain SGD with rate e moves w by e towards the mean of the w_t (the
paper's outer step with e = eta lambda; the public code's interpolation).
"""

import jax
import jax.numpy as jnp
import optax

from mtl_jax import heads
from mtl_jax.algorithms import base, network
from mtl_jax.data import episodes
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field

_UNROLLED = 16  # more steps take too long to compile when unrolled
ANY_WAYS = False  # the head has as many outputs as in training
OPTIONS = {
    'l2': Field(0.1, 'lambda', POSITIVE),
    'inner_steps': Field(8, 'steps of Adam without momentum (beta1 0) in '
                         'training', COUNT),
    'test_steps': Field(50, 'steps at test time', COUNT),
    'inner_rate': Field(1e-3, 'rate of the inner steps', POSITIVE),
    'inner_batch': Field(10, 'images of an inner step, drawn in turns without '
                         'replacement', COUNT),
    'test_batch': Field(0, 'images of an inner step at test time, drawn in the '
                        'same way; 0: the whole support', NOT_NEGATIVE),
    # The public code feeds lambda to a placeholder that nothing reads. (Its
    # Adam also keeps its moments from task to task in training, which would
    # make tasks depend on their order; here they start anew.)
    'public_code': Field(
        False, 'whether the penalty is that of the public code, without '
        'lambda: the mean over tensors of their mean square distance'),
    # As published without transduction.
    'batch_norm': Field(
        'each_query', 'BatchNorm statistics at test time; in training they '
        'are those of each inner batch', network.BATCH_NORM_ALL_LAYERS),
    'unroll': Field(True, 'whether inner steps are unrolled at compilation, '
                    f'up to {_UNROLLED}'),
}


def _published(shots, test_batch, meta_batch=5, l2=0.1):
  """Returns a Recipe of the README and the paper.

  Args:
    shots: K of the test.
    test_batch: images of an inner step in the test.
    meta_batch: T.
    l2: lambda of the paper.
  """
  return base.published({
      'train.ways': 5, 'train.shots': 15, 'train.queries': 0,
      'train.meta_batch': meta_batch, 'train.max_epochs': 20,
      'train.stop_patience': 0,
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 1.,
      'optimizer.momentum': 0., 'optimizer.weight_decay': 0.,
      'optimizer.schedule': 'linear', 'optimizer.decay_epochs': 20,
      'method.l2': l2, 'method.inner_steps': 8, 'method.inner_rate': 1e-3,
      'method.inner_batch': 10, 'method.test_steps': 50,
      'method.test_batch': test_batch, 'method.public_code': False,
      'method.batch_norm': 'each_query',
      **base.OWN_TEST, **base.PLAIN,
      **base.protocol(test=(2000, 1)),
      **base.network('conv4', width=32, pool='flat', pool_edges='same'),
  }, 'the paper and its supplement; panzhous.github.io MetaMinibatchProx '
      'README', {
          'train.epoch_tasks': (
              5000 * meta_batch, 'the source has no epochs: 100,000 steps'),
          **base.selection(1, shots),
      }, notes=(base.BIASES, base.START, base.EPSILON,
                'Lambda acts, as in the paper; in the public code nothing '
                'reads it (method.public_code=True).',
                'The outer step is 1 (1 - s/S) of the way to the mean of the '
                'adapted weights, as in the README; as the paper writes it, '
                'lambda (1 - s/S).',
                'Moments of the inner Adam start anew in every task; in '
                'training the public code keeps them.'))


_MINI = _published(5, test_batch=15)
# Of benchmarks/search.py.
_CHOSEN = {
    'glyphs': {'optimizer.learning_rate': 1., 'method.inner_rate': 0.01},
    'omniglot': {'optimizer.learning_rate': 1., 'method.inner_rate': 0.01},
    # The source's inner loop, where a task's images pass once: see
    # docs/results.md.
    'mini_imagenet': {
        'optimizer.learning_rate': 1., 'train.shots': 15, 'train.queries': 0,
        'method.inner_rate': 1e-3, 'method.inner_steps': 8,
        'method.inner_batch': 10, 'method.test_steps': 8,
        'method.test_batch': 10},
}
RECIPES = base.with_neighbours({
    ('mini_imagenet', 5, 'published'): _MINI,
    ('mini_imagenet', 1, 'published'): _published(1, test_batch=5),
    ('tiered_imagenet', 5, 'published'): _published(
        5, test_batch=20, meta_batch=20, l2=10.),
    ('tiered_imagenet', 1, 'published'): _published(
        1, test_batch=15, meta_batch=20, l2=10.),
    **base.cpu_recipes(_MINI, base.ALL_LAYERS | {
        'method.inner_rate': 3e-3, 'method.inner_steps': 6,
        'method.inner_batch': 25, 'method.test_steps': 6,
        'method.test_batch': 0, 'method.batch_norm': 'support',
        'optimizer.name': 'sgd', 'optimizer.learning_rate': 1.,
        'optimizer.momentum': 0., 'optimizer.schedule': 'linear',
    }, {'small': {None: 250}, 'mini': {None: 440}}, _CHOSEN),
})


def build(backbone, num_classes, ways, *, l2, inner_steps, test_steps,
          inner_rate, inner_batch, test_batch, public_code, batch_norm, unroll):
  """Returns Meta-MinibatchProx; see OPTIONS for the keywords."""
  del num_classes
  body = network.Body(backbone, batch_norm)
  inner = _inner_loop(body, inner_rate, l2, public_code, unroll)

  def task_loss(variables, key, episode, tasks_seen):
    images, labels = episodes.joined(episode)
    fixed = jax.lax.stop_gradient(variables)
    mode = network.Mode(True, key, tasks_seen)
    rows = batches(jax.random.fold_in(key, network.INNER_BATCHES),
                   len(labels), min(inner_batch, len(labels)), inner_steps)
    end, statistics, size = inner(fixed, images, labels, rows, mode)
    distance = sum(jax.tree.leaves(jax.tree.map(
        lambda w, w_t: 0.5 * jnp.sum((w - w_t) ** 2), variables['params'],
        end)))
    # The report is on w_t and all images of the task, as one batch.
    logits = network.query_logits(
        body._replace(batch_norm='transductive'), {**fixed, 'params': end},
        images, images, mode)
    return distance, network.aux(
        statistics, network.score(logits, labels), distance=distance,
        stationarity=size,
        not_converged=heads.convergence({'inner': size})['not_converged'])

  def adapt(variables, key, support_x, support_y, num_ways,
            example_weights=None):
    del num_ways  # the head has as many outputs as in training
    count = len(support_y)
    end, _, size = inner(variables, support_x, support_y,
                         batches(key, count, min(test_batch or count, count),
                                 test_steps), network.TEST, example_weights)
    return network.Adapted({**variables, 'params': end}, support_x,
                           heads.convergence({'inner': size}))

  return base.Algorithm(
      network.init_with_head(backbone, ways), task_loss,
      network.features_function(backbone), adapt,
      network.predict_adapted(body), network.adapted_convergence,
      'raise config.method.inner_steps (at test time test_steps), inner_rate '
      'or l2')


def _inner_loop(body, inner_rate, l2, public_code, unroll):
  """Returns (variables, images, labels, rows, mode, ..) -> three results.

  `rows` [steps, size] are the images of each step, of `batches`. Results are
  w_t, the statistics at w, and network.stationarity of w_t on the images of
  the first step: those of the whole task would take as long as several steps.
  Fewer images than the task's make it larger, as their noise counts.
  """
  def size(slope, params, start):
    if not public_code:
      return network.stationarity(
          slope, network.penalty_slope(l2, params, start))
    pull = jax.grad(mean_over_tensors)(params, start)  # a part of the slope
    return network.stationarity(jax.tree.map(jnp.subtract, slope, pull), pull)

  def inner(variables, images, labels, rows, mode, example_weights=None):
    start = variables['params']

    def loss(params, i):
      batch = rows[i]
      weights = None if example_weights is None else example_weights[batch]
      value, statistics = network.support_loss(
          body, variables, images[batch], labels[batch], mode,
          example_weights=weights)(params, i)
      if public_code:
        value = value + mean_over_tensors(params, start)
      return value, statistics

    end, statistics = network.descend(
        loss, start, optax.adam(inner_rate, b1=0.), steps=len(rows),
        l2=0. if public_code else l2, first_order=True,
        unroll=unroll and len(rows) <= _UNROLLED)
    # The slope of a step that was taken would be free, but then compilers round
    # that step in another way.
    slope, _ = jax.grad(loss, has_aux=True)(end, 0)
    return end, statistics, size(slope, end, start)

  return inner


def batches(key, count, size, steps):
  """Draws the rows of each step: int32 [steps, size].

  Walks through one shuffle of the images after another, as the public code
  does: a batch may span two of them.
  """
  shuffles = -(-steps * size // count)
  rows = jax.vmap(lambda k: jax.random.permutation(k, count))(
      jax.random.split(key, shuffles))
  return rows.reshape(-1)[:steps * size].reshape(steps, size)


def mean_over_tensors(params, start):
  """Returns the penalty of the public code, []."""
  means = [jnp.mean((p - s) ** 2) for p, s in zip(
      jax.tree.leaves(params), jax.tree.leaves(start), strict=True)]
  # There convolutions have biases, which count and hardly move.
  biases = sum(p.ndim == 4 for p in jax.tree.leaves(params))
  return sum(means) / (len(means) + biases)
