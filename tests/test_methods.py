"""The methods' gradients against independent answers, in float64.

With a convolutional backbone and BatchNorm, and by hand: a method whose
gradient misses a path would still train, and score only a little less.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT
from small_backbone import Small, directional, distance, dot, start, task

from mtl_jax import algorithms, heads
from mtl_jax.algorithms import METHODS, minibatch_prox, network
from mtl_jax.config import base_config
from mtl_jax.data import episodes
from mtl_jax.errors import UserError
from mtl_jax.heads import centroid, ridge

KEY = jax.random.key(5)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def build(name, smooth=False, **changes):
  unroll = {'unroll': False} if 'unroll' in METHODS[name].OPTIONS else {}
  return algorithms.create(name, Small(smooth=smooth), 6, 3,
                           **unroll | changes)


def loss_of(algorithm, variables, episode):
  """Returns a jitted function, params -> loss."""
  return jax.jit(lambda params: algorithm.loss(
      {**variables, 'params': params}, KEY, episode, 0)[0])


@jax.jit
def applied(variables, images):
  """Returns features of one batch, and its statistics, by plain Flax."""
  return Small().apply(
      {'params': variables['params']['backbone'],
       'batch_stats': variables['batch_stats']}, images, train=True,
      mutable=['batch_stats'])


# What a loss is differentiated through, method by method.
DIFFERENTIATED = {
    'mtl': {}, 'whole_class': {}, 'protonet': {'learned_scale': True},
    'anil': {'inner_steps': 2, 'learned_rate': True, 'inner_l2': 0.3},
    'anil-running': {'inner_steps': 2, 'batch_norm': 'running'},
    'maml': {'inner_steps': 2, 'inner_rate': 0.3},
    'maml-remat': {'inner_steps': 2, 'remat': True, 'unroll': False,
                   'inner_l2': 0.5, 'learned_rate': 'per_parameter',
                   'batch_norm': 'support'},
    'maml-each': {'inner_steps': 1, 'batch_norm': 'each_query',
                  'learned_rate': 'shared', 'loss': 'squared'},
    'meta_sgd': {}, 'r2d2': {'scale': 3.},
    'r2d2-drawn': {'scale': 3., 'max_shots': 3},
    'metaoptnet': {}, 'metaoptnet-ridge': {'head': 'ridge',
                                           'label_smoothing': 0.1},
}


@pytest.mark.parametrize('case', DIFFERENTIATED)
def test_gradient_equals_central_differences(case):
  algorithm, episode = build(case.split('-')[0], **DIFFERENTIATED[case]), task()
  variables = start(algorithm, episode)
  # One program: a second one for the value alone would compile as long again.
  both = jax.jit(jax.value_and_grad(loss_of(algorithm, variables, episode)))
  gradient = both(variables['params'])[1]
  difference, v = directional(lambda p: both(p)[0], variables['params'])
  np.testing.assert_allclose(dot(gradient, v), difference, rtol=1e-5)
  # Every part is trained: a part without a gradient would be a constant.
  for name, part in gradient.items():
    assert optax.tree.norm(part) > 0, name


def hand_loss(params, features, support, query, steps, rate, order,
              smooth=False):
  """Returns MAML's loss with its steps written out, by plain Flax calls."""
  def cross_entropy(p, images, labels):
    outputs, _ = Small(smooth=smooth).apply(
        {'params': p['backbone'], 'batch_stats': features}, images,
        train=True, mutable=['batch_stats'])
    logits = outputs @ p['head']['weights'] + p['head']['bias']
    logp = logits - jax.scipy.special.logsumexp(logits, -1, keepdims=True)
    return -jnp.mean(logp[jnp.arange(len(labels)), labels])

  fast = params
  for _ in range(steps):
    slope = jax.grad(cross_entropy)(fast, *support)
    if order == 1:
      slope = jax.lax.stop_gradient(slope)
    fast = jax.tree.map(lambda p, g: p - rate * g, fast, slope)
  return cross_entropy(fast, *query)


@pytest.mark.parametrize('order', [1, 2])
def test_maml_equals_its_steps_written_out(order):
  algorithm = build('maml', inner_steps=2, inner_rate=0.3,
                    first_order=order == 1)
  episode = task()
  variables = start(algorithm, episode)
  ours = jax.jit(jax.grad(loss_of(algorithm, variables, episode)))(
      variables['params'])
  by_hand = jax.jit(jax.grad(hand_loss), static_argnums=(4, 6))(
      variables['params'], variables['batch_stats'],
      (episode.support_x, episode.support_y),
      (episode.query_x, episode.query_y), 2, 0.3, order)
  assert distance(ours, by_hand) < 1e-9


def test_first_order_is_second_order_without_the_hessian_term():
  """Fails if g2 is not g1 - rate H g1, with H by differences."""
  episode, rate = task(), 0.3
  one, two = (build('maml', inner_steps=1, inner_rate=rate, first_order=first)
              for first in (True, False))
  variables = start(two, episode)
  params = variables['params']
  g1, g2 = (jax.jit(jax.grad(loss_of(a, variables, episode)))(params)
            for a in (one, two))
  # One step of MAML is p - rate * slope(p): slope from what adapting moves.
  single = build('maml', test_steps=1, inner_rate=rate)
  adapted = jax.jit(lambda p: single.adapt(
      {**variables, 'params': p}, KEY, episode.support_x, episode.support_y,
      3).variables['params'])
  slope = lambda p: jax.tree.map(lambda a, b: (a - b) / rate, p, adapted(p))
  s = 1e-4 / float(optax.tree.norm(g1))
  moved = lambda sign: slope(jax.tree.map(lambda p, g: p + sign * s * g,
                                          params, g1))
  hessian_g1 = jax.tree.map(lambda a, b: (a - b) / (2 * s), moved(1),
                            moved(-1))
  expected = jax.tree.map(lambda g, h: g - rate * h, g1, hessian_g1)
  assert distance(g2, expected) < 1e-5
  assert distance(g1, g2) > 0.01, 'the case has no Hessian term to miss'


@pytest.mark.parametrize('name', METHODS)
def test_every_pass_of_a_loss_is_told_the_tasks_seen(name):
  """Fails if DropBlock's rate never rises under a method."""
  told = []

  class Told(Small):
    def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
      if train:
        told.append(tasks_seen)
      return super().__call__(images, train=train,
                              own_statistics=own_statistics)

  algorithm, episode = algorithms.create(name, Told(), 6, 3), task()
  variables = jax.eval_shape(algorithm.init, KEY, episode.support_x)
  jax.eval_shape(lambda v: algorithm.loss(v, KEY, episode, 7)[0], variables)
  assert told and set(told) == {7}


@pytest.mark.parametrize('changes', [
    {}, {'inner_l2': 0.3}, {'first_order': True}, {'loss': 'squared'}], ids=str)
def test_anil_is_maml_whose_body_is_frozen_in_the_inner_loop(changes):
  episode = task()
  anil = build('anil', inner_steps=2, inner_rate=0.3,
               batch_norm='transductive', **changes)
  maml = build('maml', inner_steps=2, inner_rate=0.3, adapts='last', **changes)
  variables = start(anil, episode)
  for shift in (0., 0.1):
    params = jax.tree.map(lambda p, shift=shift: p + shift,
                          variables['params'])
    values = [jax.jit(jax.value_and_grad(loss_of(a, variables, episode)))(
        params) for a in (anil, maml)]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-10)
    assert distance(values[0][1], values[1][1]) < 1e-9


def test_meta_sgd_is_maml_with_a_rate_per_parameter():
  episode, sgd = task(), build('meta_sgd', inner_rate=0.3)
  maml = build('maml', inner_steps=1, learned_rate='per_parameter')
  variables = start(sgd, episode)
  renamed = lambda p: {('rate' if k == 'rates' else k): v for k, v in p.items()}
  ours = jax.jit(jax.grad(loss_of(sgd, variables, episode)))(
      variables['params'])
  theirs = jax.jit(jax.grad(loss_of(maml, variables, episode)))(
      renamed(variables['params']))
  assert distance(renamed(ours), theirs) < 1e-9


def test_smoothed_targets_share_what_the_label_gives_up():
  logits, labels = jax.random.normal(KEY, (4, 3)), jnp.array([0, 2, 1, 1])
  logp = np.asarray(jax.nn.log_softmax(logits))
  own = logp[np.arange(4), labels]
  np.testing.assert_allclose(
      network.example_losses('cross_entropy', logits, labels, 0.1),
      -(0.9 * own + 0.05 * (logp.sum(1) - own)), rtol=1e-9)
  episode = task()
  first, second = (build('metaoptnet', head='ridge', label_smoothing=e)
                   for e in (0., 0.1))
  variables = start(first, episode)
  values = [loss_of(a, variables, episode)(variables['params'])
            for a in (first, second)]
  assert abs(values[0] - values[1]) > 1e-6


@pytest.mark.parametrize('public_code', [False, True])
def test_prox_trains_on_batches_of_the_whole_task(public_code):
  """Fails if inner steps take other images, or another penalty."""
  episode = task()
  algorithm = build('minibatch_prox', inner_steps=3, inner_batch=4,
                    inner_rate=0.01, l2=0.5, public_code=public_code)
  variables = start(algorithm, episode)
  w = variables['params']
  gradient = jax.jit(jax.grad(loss_of(algorithm, variables, episode)))(w)
  images, labels = episodes.joined(episode)
  rows = minibatch_prox.batches(
      jax.random.fold_in(KEY, network.INNER_BATCHES), len(labels), 4, 3)
  penalty = minibatch_prox.mean_over_tensors if public_code else (
      lambda p, s: 0.25 * sum(jnp.sum((a - b) ** 2) for a, b in zip(
          jax.tree.leaves(p), jax.tree.leaves(s), strict=True)))
  adam = optax.adam(0.01, b1=0.)

  @jax.jit
  def step(end, state, row):
    slope = jax.grad(lambda p: penalty(p, w) + hand_loss(
        p, variables['batch_stats'], None, (images[row], labels[row]),
        0, 0., 1))(end)
    updates, state = adam.update(slope, state)
    return optax.apply_updates(end, updates), state

  end, state = w, adam.init(w)
  for row in rows:
    end, state = step(end, state, row)
  assert distance(gradient, jax.tree.map(jnp.subtract, w, end)) < 1e-9


def test_imaml_goes_to_the_unrolled_gradient_as_the_inner_problem_converges():
  episode, l2, rate = task(), 10., 0.03
  variables, gaps = None, []
  for steps in (2, 60):
    implicit = build('imaml', smooth=True, l2=l2, inner_steps=steps,
                     inner_rate=rate, cg_steps=30)
    unrolled = build('maml', smooth=True, inner_l2=l2, inner_steps=steps,
                     inner_rate=rate)
    variables = variables or start(implicit, episode)
    loss = lambda params, a=implicit, v=variables: a.loss(
        {**v, 'params': params}, KEY, episode, 0)
    ours, aux = jax.jit(jax.grad(loss, has_aux=True))(variables['params'])
    theirs = jax.jit(jax.grad(loss_of(unrolled, variables, episode)))(
        variables['params'])
    gaps.append(distance(ours, theirs))
    assert float(aux.metrics['residual'][0]) < 1e-4
    assert not float(aux.metrics['negative_curvature'][0])
  assert gaps[-1] < 1e-4
  assert gaps[0] > 0.05, 'the first was no test'


def test_the_mean_of_the_public_code_counts_biases_of_convolutions():
  """Fails if a tensor that only the source has makes the others count more."""
  params = {'kernel': np.full((3, 3, 1, 2), 2.), 'scale': np.ones(2)}
  start = jax.tree.map(np.zeros_like, params)
  assert minibatch_prox.mean_over_tensors(params, start) == pytest.approx(
      (4 + 1 + 0) / 3)


def test_imaml_public_code_pulls_back_once_and_damps():
  """Fails if A is not 2 I + H / (lambda + 10), solved densely here."""
  episode = task(shots=1, queries=1)
  algorithm = build('imaml', public_code=True, l2=2., damping=1.,
                    curvature_damping=10., inner_steps=3, inner_rate=0.1,
                    cg_steps=60, unroll=False)
  variables = start(algorithm, episode)
  theta, stats = variables['params'], variables['batch_stats']

  def slope_of(images, labels):
    return jax.jit(jax.grad(lambda p: hand_loss(
        p, stats, None, (images, labels), 0, 0., 1)))
  support = slope_of(episode.support_x, episode.support_y)
  phi = theta
  for _ in range(3):
    phi = jax.tree.map(lambda p, g: p - 0.1 * g, phi, support(phi))
  phi = jax.tree.map(lambda p, t: p - 0.1 * 2. * (p - t), phi, theta)
  flat, unravel = jax.flatten_util.ravel_pytree(phi)
  ravel = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]
  hessian = jax.jit(jax.jacrev(lambda f: ravel(support(unravel(f)))))(flat)
  g = ravel(slope_of(episode.query_x, episode.query_y)(phi))
  matrix = 2. * np.eye(len(g)) + np.asarray(hessian) / 12.
  expected = unravel(jnp.asarray(np.linalg.solve(matrix, g)))
  ours = jax.jit(jax.grad(loss_of(algorithm, variables, episode)))(theta)
  assert distance(ours, expected) < 1e-4


def test_imaml_says_so_where_curvature_is_not_positive():
  """Fails if an indefinite I + H / lambda is not reported."""
  episode = task()
  algorithm = build('imaml', l2=1e-3, inner_steps=1, inner_rate=0.1,
                    cg_steps=20, unroll=False)
  variables = start(algorithm, episode)
  gradient, aux = jax.jit(jax.grad(lambda params: algorithm.loss(
      {**variables, 'params': params}, KEY, episode, 0), has_aux=True))(
          variables['params'])
  assert float(aux.metrics['negative_curvature'][0]) == 1.
  assert np.isfinite(optax.tree.norm(gradient))


def test_minibatch_prox_ends_where_its_condition_of_optimality_holds():
  """Fails if grad L(w_t; D) + lambda (w_t - w) does not vanish at w_t."""
  episode, l2 = task(), 3.
  algorithm = build('minibatch_prox', smooth=True, l2=l2, inner_steps=2000,
                    inner_rate=5e-4, inner_batch=100)
  variables = start(algorithm, episode)
  w = variables['params']
  gradient = jax.jit(jax.grad(loss_of(algorithm, variables, episode)))(w)
  w_t = jax.tree.map(lambda w, g: w - g, w, gradient)
  images = jnp.concatenate([episode.support_x, episode.query_x])
  labels = jnp.concatenate([episode.support_y, episode.query_y])
  slope = jax.jit(jax.grad(lambda p: hand_loss(
      p, variables['batch_stats'], None, (images, labels), 0, 0., 1, True)))(
          w_t)
  pull = jax.tree.map(lambda a, b: l2 * (a - b), w, w_t)
  # Adam without momentum ends by going to and fro, about a rate wide.
  assert distance(slope, pull) < 0.1
  doubled = jax.tree.map(lambda p: 2 * p, pull)
  assert distance(slope, doubled) > 0.4, 'another lambda would pass as well'


def test_inner_batches_walk_through_whole_shuffles():
  rows = np.asarray(minibatch_prox.batches(KEY, 10, 4, 5)).ravel()
  assert rows.shape == (20,)
  assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))


@pytest.mark.parametrize('size', [4, 0])
def test_prox_adapts_to_batches_of_the_support_at_test_time(size):
  """Fails if a test's inner steps do not take `test_batch` images."""
  episode, steps = task(), 3
  algorithm = build('minibatch_prox', test_steps=steps, test_batch=size,
                    inner_rate=0.01, l2=0.5)
  variables = start(algorithm, episode)
  w = variables['params']
  ours = jax.jit(algorithm.adapt, static_argnums=4)(
      variables, KEY, episode.support_x, episode.support_y, 3)
  count = len(episode.support_y)
  rows = minibatch_prox.batches(KEY, count, size or count, steps)
  end, adam = w, optax.adam(0.01, b1=0.)
  state = adam.init(w)

  @jax.jit
  def step(end, state, row):
    slope = jax.grad(hand_loss)(end, variables['batch_stats'], None, (
        episode.support_x[row], episode.support_y[row]), 0, 0., 1)
    slope = jax.tree.map(lambda g, p, s: g + 0.5 * (p - s), slope, end, w)
    updates, state = adam.update(slope, state)
    return optax.apply_updates(end, updates), state

  for row in rows:
    assert len(row) == (size or 6)
    end, state = step(end, state, row)
  assert distance(ours.variables['params'], end) < 1e-9


def test_running_apart_trains_on_two_batches():
  """Fails if support and query share BatchNorm statistics in training."""
  episode = task(queries=3)
  algorithm = build('protonet', batch_norm='running_apart')
  variables = start(algorithm, episode)
  value, aux = jax.jit(algorithm.loss)(variables, KEY, episode, 0)
  (support, first), (query, second) = (
      applied(variables, images)
      for images in (episode.support_x, episode.query_x))
  means = support.reshape(3, 2, -1).mean(1)
  logits = -jnp.sum((query[:, None] - means) ** 2, -1)
  np.testing.assert_allclose(value, jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(
          logits, episode.query_y)), rtol=1e-9)
  expected = jax.tree.map(lambda a, b: (a + b) / 2, first['batch_stats'],
                          second['batch_stats'])
  assert distance(aux.batch_stats, expected) < 1e-12


def test_other_query_images_matter_only_where_batch_norm_says_so():
  episode = task(queries=3)
  other = episode.query_x.at[1:].add(2.)
  for how, matters in (('running', False), ('running_apart', False),
                       ('support', False),
                       ('each_query', False), ('transductive', True),
                       ('episode', True)):
    algorithm = build('anil', batch_norm=how)
    variables = start(algorithm, episode)
    predict = jax.jit(lambda query, a=algorithm, v=variables: a.predict(
        a.adapt(v, KEY, episode.support_x, episode.support_y, 3), query)[0])
    gap = np.abs(predict(episode.query_x) - predict(other)).max()
    assert (gap > 1e-6) == matters, how


# Their inner loss is a mean over the support, and 'running' statistics do not
# change where images are repeated.
WEIGHTED = {
    'anil': {'test_steps': 3}, 'maml': {'test_steps': 2}, 'meta_sgd': {},
    'imaml': {'test_steps': 1},
    'minibatch_prox': {'test_steps': 1, 'test_batch': 0, 'inner_rate': 0.1}}


@pytest.mark.parametrize('name', WEIGHTED)
def test_weights_of_the_support_are_repeated_images(name):
  """A small class of `mtl_jax.adapt` would not count as much as the others."""
  algorithm = build(name, batch_norm='running', **WEIGHTED[name])
  episode = task(shots=2)
  variables = start(algorithm, episode)
  rows = jnp.array([0, 2, 3, 4, 5])  # one image of the first class
  more = jnp.array([0, 0, 2, 3, 4, 5])

  @jax.jit
  def logits(rows, weights):
    return algorithm.predict(algorithm.adapt(
        variables, KEY, episode.support_x[rows], episode.support_y[rows], 3,
        example_weights=weights), episode.query_x)

  balance = heads.balance(episode.support_y[rows], 3, jnp.float64)
  weighted = logits(rows, balance)
  np.testing.assert_allclose(weighted, logits(more, None), atol=1e-12)
  assert jnp.abs(weighted - logits(rows, jnp.ones(5))).max() > 1e-3


@pytest.mark.parametrize('name, head, options, batch_norm', [
    ('protonet', centroid, {}, 'episode'),
    ('metaoptnet', ridge, {'regulariser': 50.}, 'running')])
def test_a_fitted_head_gets_the_weights_of_the_support(
    name, head, options, batch_norm):
  extra = {'head': 'ridge'} if name == 'metaoptnet' else {}
  algorithm = build(name, batch_norm=batch_norm, **extra)
  episode = task(shots=2)
  variables = start(algorithm, episode)
  weights = jnp.arange(1., 7.)
  body = network.Body(Small(), batch_norm)

  @jax.jit
  def expected(variables):
    support, query, _ = network.task_pass(
        body, variables, episode.support_x, episode.query_x, network.TEST)
    return head.logits(head.fit(
        support, episode.support_y, 3, **options, example_weights=weights),
        query) * variables['params'].get('scale', 1)

  @jax.jit
  def found(variables):
    return algorithm.predict(algorithm.adapt(
        variables, KEY, episode.support_x, episode.support_y, 3,
        example_weights=weights), episode.query_x)

  np.testing.assert_allclose(found(variables), expected(variables), atol=1e-9)


def test_shots_are_drawn_from_one_to_the_most():
  episode, algorithm = task(shots=1, queries=4), build('r2d2', max_shots=3)
  variables = start(algorithm, episode)
  counts = jax.jit(jax.vmap(lambda key: algorithm.loss(
      variables, key, episode, 0)[1].metrics['accuracy'][1]))(
          jax.random.split(KEY, 60))
  shots, times = np.unique(5 - np.asarray(counts) // 3, return_counts=True)
  assert shots.tolist() == [1, 2, 3] and times.min() > 8


def test_drawn_shots_equal_ridge_on_those_images_alone():
  episode = task(shots=1, queries=4)
  algorithm = build('r2d2', max_shots=3, scale=2., shift=0.1)
  variables = start(algorithm, episode)
  value, aux = jax.jit(algorithm.loss)(variables, KEY, episode, 0)
  images = jnp.concatenate([episode.support_x, episode.query_x])
  features, _ = applied(variables, images)
  support, query = features[:3].reshape(3, 1, -1), features[3:].reshape(
      3, 4, -1)
  by_class = jnp.concatenate([support, query], 1)
  adjust, losses = variables['params']['adjust'], []
  for shots in (1, 2, 3):
    flat = lambda x: x.reshape(-1, x.shape[-1])
    head = jax.jit(lambda x, shots=shots: ridge.fit(
        x, np.repeat(range(3), shots), 3, regulariser=50., target=1.,
        bias=True, average=True))(flat(by_class[:, :shots]))
    logits = adjust['shift'] + adjust['scale'] * ridge.logits(
        head, flat(by_class[:, shots:]))
    losses.append(float(jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.repeat(jnp.arange(3), 5 - shots)))))
  shots = 5 - int(aux.metrics['accuracy'][1]) // 3
  np.testing.assert_allclose(value, losses[shots - 1], rtol=1e-6)


@pytest.mark.parametrize('name, changes, words', [
    ('maml', {'inner_steps': 0}, 'inner_steps is 0: must be at least 1'),
    ('maml', {'adapts': 'head'}, "adapts is 'head'"),
    ('anil', {'inner_rate': 0.}, 'inner_rate is 0.0: must be above 0'),
    ('imaml', {'l2': 0.}, 'l2 is 0.0: must be above 0'),
    ('minibatch_prox', {'inner_batch': 0}, 'inner_batch is 0'),
    ('metaoptnet', {'head': 'logistic'}, "head is 'logistic'"),
    ('r2d2', {'batch_norm': 'support'}, "batch_norm is 'support'"),
    ('protonet', {'distance': 'l1'}, "distance is 'l1'"),
    ('whole_class', {'test_C': -1.}, 'test_C is -1.0'),
])
def test_wrong_options_are_named(name, changes, words):
  with pytest.raises(UserError, match=words):
    build(name, **changes)


@pytest.mark.parametrize('max_shots, fits', [(0, True), (6, True), (7, False)])
def test_drawn_shots_must_leave_a_query(max_shots, fits):
  """Fails if a task has no query, whose loss would be 0 / 0."""
  options = {name: field.default
             for name, field in METHODS['r2d2'].OPTIONS.items()}
  train = base_config().train
  train.shots, train.queries = 3, 4
  options['max_shots'] = max_shots
  if fits:
    algorithms.check('r2d2', options, train)
  else:
    with pytest.raises(UserError, match=r'max_shots is 7: must be below .* 7'):
      algorithms.check('r2d2', options, train)


def test_the_document_shows_the_method_that_is_kept():
  code = (ROOT / 'mtl_jax/algorithms/meta_sgd.py').read_text()
  assert f'```python\n{code}```' in (ROOT / 'docs/methods.md').read_text()
  assert code.count('\n') < 65
