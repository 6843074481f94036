"""The training step: on one device and on many, whole and in chunks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_backbone
from etils import epath

from mtl_jax import algorithms, devices
from mtl_jax.algorithms import METHODS, base
from mtl_jax.config import base_config, set_method
from mtl_jax.config.check import build_method, validate
from mtl_jax.data import episodes, feed
from mtl_jax.data import store as stores
from mtl_jax.run import checkpoint
from mtl_jax.train import optimizer as optimizers
from mtl_jax.train import step as steps

METHOD_NAMES = sorted(METHODS)
META_BATCH = 8
# Short inner loops, compiled as loops: what is tested is around them.
SHORT = {'method.inner_steps': 1, 'method.cg_steps': 2,
         'method.unroll': False, 'method.inner_batch': 10,
         'parallel.tasks_at_once': 0, 'parallel.unroll_passes': False}


# Whatever the recipes have.
INNER_RATES = {'anil': 0.1, 'maml': 0.4, 'meta_sgd': 0.4, 'imaml': 0.4,
               'minibatch_prox': 3e-3}


def small_config(method, **changes):
  c = base_config()
  c.data.name = 'glyphs/tiny'
  set_method(c, method, benchmark='glyphs', shots=5, scale='cpu')
  c.model.width, c.model.pool = 8, 'global'
  c.train.ways, c.train.shots, c.train.queries = 5, 2, 2
  c.train.meta_batch = META_BATCH
  # Adam would divide round-off by its own size where a gradient is zero.
  c.optimizer.name, c.optimizer.learning_rate = 'sgd', 0.1
  c.update_from_flattened_dict({
      k: v for k, v in SHORT.items()
      if k.partition('.')[0] != 'method' or k[len('method.'):] in c.method})
  if method in INNER_RATES:
    c.method.inner_rate = INNER_RATES[method]
  c.update_from_flattened_dict(changes)
  validate(c)
  return c


def make(config, num_devices, how='jit', build=build_method,
         draw=steps.draw_episode):
  """Returns (compiled step, state, arrays, key) of the tiny glyphs."""
  store = stores.load(config.data.name, 'train')
  algorithm = build(config.to_dict(), store.num_classes)
  optimizer = optimizers.build(config.optimizer)
  state = jax.jit(lambda key: steps.init_state(
      algorithm, optimizer, key, jnp.zeros((2, 28, 28, 1))))(
          episodes.stream_key(0, episodes.Stream.INIT))
  mesh = devices.mesh(num_devices, META_BATCH)
  step = steps.make_step(
      algorithm, optimizer, optimizers.schedule(
          config.optimizer,
          steps.steps_per_epoch(config.train.epoch_tasks, META_BATCH)),
      functools.partial(draw, train=config.train, augmentation=config.augment,
                        image_shape=store.images.shape[1:]), META_BATCH,
      tasks_at_once=config.parallel.tasks_at_once,
      unroll_passes=config.parallel.unroll_passes)
  compiled = devices.compile(step, mesh, how)
  key = episodes.stream_key(0, episodes.Stream.TRAIN)
  arrays = compiled.share(stores.arrays(store, config.data.store))
  return compiled, compiled.put(state), arrays, compiled.put(key)


def run(compiled, state, arrays, key, batches):
  history = []
  for pixels in batches:
    state, metrics = compiled.step(state, arrays, key, pixels)
    history.append(metrics)
  return jax.device_get((compiled.get(state), compiled.get(history)))


@pytest.fixture(scope='module')
def reference():
  """MTL; the other methods go through the same functions below."""
  return 'mtl', run(*make(small_config('mtl'), num_devices=1), [None] * 3)


def test_eight_pmapped_devices_do_what_one_does(reference):
  method, (state, history) = reference
  other, other_history = run(*make(small_config(method), 8, 'pmap'),
                             [None] * 3)
  assert_same(state.variables, other.variables)
  assert_same(history, other_history)
  assert int(other.step) == 3


def test_pmap_on_one_device_is_jit(reference):
  method, (state, _) = reference
  other, _ = run(*make(small_config(method), 1, 'pmap'), [None] * 3)
  assert_same(state.variables, other.variables)


@pytest.mark.parametrize('num_devices, how', [(1, 'jit'), (8, 'jit'),
                                              (8, 'pmap')])
def test_pixels_from_the_host_are_the_same_episodes(
    reference, num_devices, how):
  _, (state, history) = reference
  other, other_history = from_host(num_devices, how)
  assert_same(state.variables, other.variables)
  assert_same(history, other_history)


def from_host(num_devices, how):
  """Returns what `run` does of three steps of MTL with pixels of the host."""
  config = small_config('mtl', **{'data.store': 'host'})
  store = stores.load(config.data.name, 'train')
  compiled, start, arrays, key = make(config, num_devices, how)
  assert arrays.images is None
  mesh = devices.mesh(num_devices, META_BATCH)
  batches = feed.make(
      store, episodes.stream_key(0, episodes.Stream.TRAIN), config.train,
      devices.own_tasks(mesh, META_BATCH), compiled.divide)(range(3))
  return run(compiled, start, arrays, key, batches)


def test_a_failure_of_the_feeding_thread_reaches_the_run():
  config = small_config('mtl')
  store = stores.load(config.data.name, 'train')

  def full(pixels):
    raise MemoryError(f'no room for {pixels.nbytes} bytes')
  with pytest.raises(MemoryError, match='no room'):
    list(feed.make(store, jax.random.key(0), config.train,
                   range(2), full)(range(5)))


@pytest.mark.parametrize('devices, unroll', [(1, False), (2, False),
                                             (2, True)])
def test_chunks_of_tasks_give_the_same_step(reference, devices, unroll):
  method, (state, history) = reference
  config = small_config(method, **{'parallel.tasks_at_once': 2,
                                   'parallel.unroll_passes': unroll})
  other, other_history = run(*make(config, devices), [None] * 3)
  assert_same(state.variables, other.variables)
  assert_same(history, other_history)


# Rates at which 30 steps show that the loss falls.
RATES = {'imaml': {'method.damping': 0., 'optimizer.learning_rate': 0.2},
         'maml': {'method.inner_steps': 2}}


def assert_same(a, b):
  """To float32 round-off of sums that are taken in another order."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-4, atol=1e-5), a, b)


class Behaviour(NamedTuple):
  """What a method does in 30 steps on eight devices."""

  after_three: Any  # state
  resumed: Any  # state of step 3, from the saved state of step 1
  losses: list[float]  # from step 2 on
  late_compiles: list[str]


@pytest.fixture(scope='module', params=METHOD_NAMES)
def behaviour(request, tmp_path_factory):
  """Returns the Behaviour of each method."""
  config = small_config(request.param, **RATES.get(request.param, {}))
  # Eight: one task on each runs fastest where tasks have their own kernels.
  compiled, state, arrays, key = make(config, 8)
  start = jax.tree.map(jnp.copy, state)
  compiles = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda name, *_, **__: compiles.append(name)
      if name.endswith('backend_compile_duration') else None)
  first = jax.block_until_ready(compiled.step(state, arrays, key, None))
  state, compiles[:] = first[0], []
  manager = checkpoint.manager(
      epath.Path(tmp_path_factory.mktemp('states')), 'latest')
  checkpoint.save(manager, 1, compiled.get(jax.tree.map(jnp.copy, state)))
  losses, third = [], None
  for step in range(1, 30):
    state, metrics = compiled.step(state, arrays, key, None)
    losses.append(metrics['loss'])
    if step == 2:
      third = jax.device_get(state)
  late = list(compiles)
  losses = [float(s) / float(n) for s, n in jax.device_get(losses)]
  again = compiled.put(checkpoint.restore(manager, compiled.get(start)))
  again, _ = run(compiled, again, arrays, key, [None] * 2)
  return Behaviour(third, again, losses, late)


def test_a_step_of_every_method_is_compiled_once(behaviour):
  """Fails if a later step compiles again, which looks like a slow step."""
  assert not behaviour.late_compiles


def test_the_loss_of_every_method_falls(behaviour):
  losses = behaviour.losses
  assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:4]), losses


def test_a_saved_state_of_every_method_continues_to_the_bit(behaviour):
  jax.tree.map(np.testing.assert_array_equal, behaviour.resumed,
               behaviour.after_three)


@pytest.mark.parametrize('method', METHOD_NAMES)
def test_eight_devices_do_what_one_does_for_every_method(method):
  """Fails if a device's tasks, keys or sums are not those of one device.

  In float64: a ReLU or a pool within round-off of its other side moves the
  gradient through an inner loop by a jump, and in float32 one start in six has
  one.
  """
  config = small_config(method, **RATES.get(method, {}))
  with jax.enable_x64(True):
    eight = in_float64(config, 8)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-9, atol=1e-10), one_in_float64(method).variables,
               eight.variables)


@functools.cache
def one_in_float64(method):
  """Returns `in_float64` of one device."""
  config = small_config(method, **RATES.get(method, {}))
  with jax.enable_x64(True):
    return in_float64(config, 1)


def test_padded_images_give_the_same_task():
  """Fails if an accelerator, which pads images, trained on other pixels."""
  store = stores.load('glyphs/tiny', 'train')
  config = small_config('mtl')
  arrays, key = stores.arrays(store), jax.random.key(3)
  draw = functools.partial(
      steps.draw_episode, pixels=None, task_key=key, train=config.train,
      augmentation=config.augment, image_shape=store.images.shape[1:])
  padded = arrays._replace(
      images=jnp.asarray(stores.padded(store.images)))
  assert padded.images.shape[1:] == (8, 128)  # 28x28 is 784 of 1,024 bytes
  jax.tree.map(np.testing.assert_array_equal, draw(padded), draw(arrays))


def in_float64(config, num_devices):
  """Returns the state after a step of CNN-4 in float64."""
  def build(config, num_classes):
    options = dict(config['method'])
    return algorithms.create(
        options.pop('name'), small_backbone.Conv4(width=8, pool='global'),
        num_classes, config['train']['ways'], **options)

  def draw(*args, **keywords):
    # Pixels are normalised in float32, to round-off. On this grid they are the
    # same from every program.
    episode = steps.draw_episode(*args, **keywords)
    grid = lambda x: jnp.round(x.astype(jnp.float64) * 2**12) / 2**12
    return episode.replace(support_x=grid(episode.support_x),
                           query_x=grid(episode.query_x))
  compiled, state, arrays, key = make(config, num_devices, build=build,
                                      draw=draw)
  state = compiled.put(small_backbone.widen(compiled.get(state)))
  return run(compiled, state, arrays, key, [None])[0]


def test_gradient_is_the_mean_over_tasks_of_their_own_batches():
  """Fails if tasks share a BatchNorm batch, or are weighted."""
  config = small_config('mtl', **{
      'optimizer.name': 'sgd', 'optimizer.schedule': 'constant',
      'optimizer.momentum': 0., 'optimizer.learning_rate': 1.})
  compiled, state, arrays, key = make(config, 1)
  store = stores.load(config.data.name, 'train')
  algorithm = build_method(config.to_dict(), store.num_classes)
  start = jax.device_get(compiled.get(state))

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient_of(params, loss_key, episode):
    return algorithm.loss({**start.variables, 'params': params}, loss_key,
                          episode, 0)
  draw = jax.jit(lambda key: steps.draw_episode(
      stores.arrays(store), None, key, train=config.train,
      augmentation=config.augment, image_shape=store.images.shape[1:]))
  grads, statistics = [], []
  for task in range(META_BATCH):
    task_key = jax.random.fold_in(jax.random.fold_in(key, 0), task)
    gradient, aux = gradient_of(
        start.variables['params'],
        jax.random.fold_in(task_key, episodes.Use.LOSS),
        draw(task_key))
    grads.append(gradient)
    statistics.append(aux.batch_stats)
  mean = lambda trees: jax.tree.map(lambda *x: sum(x) / len(x), *trees)
  end, _ = run(compiled, state, arrays, key, [None])
  expected = jax.tree.map(lambda p, g: p - g, start.variables['params'],
                          mean(grads))
  assert_same(expected, end.variables['params'])
  keep = 0.9 ** META_BATCH
  expected = jax.tree.map(lambda r, b: keep * r + (1 - keep) * b,
                          start.variables['batch_stats'], mean(statistics))
  assert_same(expected, end.variables['batch_stats'])


def test_a_loss_draws_by_the_key_of_its_task_and_step():
  """Fails if all tasks, or all steps, drop the same values."""
  def build(config, num_classes):
    def loss(variables, key, episode, tasks_seen):
      nothing = 0. * sum(map(jnp.sum, jax.tree.leaves(variables['params'])))
      return nothing, base.Aux(variables['batch_stats'], {
          'loss': (jax.random.uniform(key), jnp.float32(1))})
    return build_method(config, num_classes)._replace(loss=loss)

  _, history = run(*make(small_config('mtl'), 8, build=build), [None] * 2)
  key = episodes.stream_key(0, episodes.Stream.TRAIN)
  for step, found in enumerate(history):
    keys = episodes.task_keys(jax.random.fold_in(key, step), 0, META_BATCH)
    wanted = sum(jax.random.uniform(jax.random.fold_in(
        k, episodes.Use.LOSS)) for k in keys)
    np.testing.assert_allclose(found['loss'][0], wanted, rtol=1e-5)


def test_merged_statistics_equal_one_after_another_for_equal_tasks():
  running, batch = np.float64(1.), np.float64(3.)
  one_by_one = running
  for _ in range(6):
    one_by_one = 0.9 * one_by_one + 0.1 * batch
  np.testing.assert_allclose(
      steps.merge_statistics(running, batch, 6), one_by_one, rtol=1e-12)
