"""The training step: one pure function for every method and every device.

A step draws its tasks, maps the method's loss over them, averages gradients
and BatchNorm statistics over all tasks of all devices, and updates. It runs
under a named axis AXIS of devices (one device is the axis of length one);
`devices.compile` provides it. Each device computes its share of the tasks, by
their numbers, so the result does not depend on the number of devices.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from mtl_jax.data import augment, episodes
from mtl_jax.devices import AXIS
from mtl_jax.solvers import inner_loop
from mtl_jax.train import optimizer as optimizers

# Running BatchNorm statistics keep this share at every task.
STATISTICS_DECAY = 0.9


@chex.dataclass(frozen=True)
class TrainState:
  """All that a run carries from step to step; all of it is checkpointed."""

  step: chex.Array  # [] int32
  variables: Any  # 'params', 'batch_stats' and the method's own
  opt_state: Any
  plateau: optimizers.Plateau
  best_score: chex.Array  # [] float32, best validation accuracy so far, or -inf
  epochs_without_gain: chex.Array  # [] int32


def init_state(algorithm, optimizer, key, images):
  """Returns the state before the first step; jit it.

  Under jit no leaf is a weakly typed host value, which would make the first
  step compile twice.
  """
  variables = algorithm.init(key, images)
  return TrainState(
      step=jnp.int32(0), variables=variables,
      opt_state=optimizer.init(variables['params']),
      plateau=optimizers.init_plateau(), best_score=jnp.float32(-jnp.inf),
      epochs_without_gain=jnp.int32(0))


def steps_per_epoch(epoch_tasks, meta_batch):
  """Returns the steps of an epoch."""
  return -(-epoch_tasks // meta_batch)


def draw_episode(arrays, pixels, task_key, *, train, augmentation,
                 image_shape):
  """Makes one training task.

  Args:
    arrays: of the training store.
    pixels: uint8 [N, K + Q, h, w, c] of the task's images where the host
      gathers them; None where `arrays` holds all.
    task_key: the task's key.
    train: with `ways`, `shots`, `queries` and `turn_classes`.
    augmentation: keywords of augment.augment.
    image_shape: (h, w, c); the images of `arrays` may be padded rows of bytes
      (data/store.py).
  """
  class_ids, image_ids = episodes.draw_ids(arrays.offsets, task_key, train)
  if pixels is None:
    pixels = arrays.images[image_ids]
    flat = pixels.reshape(*image_ids.shape, -1)
    pixels = flat[..., :math.prod(image_shape)].reshape(
        *image_ids.shape, *image_shape)
  if train.turn_classes:
    pixels = augment.turn_classes(
        jax.random.fold_in(task_key, episodes.Use.TURN), pixels)
  flat = pixels.reshape((-1,) + pixels.shape[2:])
  flat = augment.augment(
      jax.random.fold_in(task_key, episodes.Use.AUGMENT), flat,
      **augmentation)
  images = augment.normalise(flat, arrays.mean, arrays.std)
  return episodes.split(images.reshape(pixels.shape), class_ids, train.shots)


def merge_statistics(running, batch, num_tasks):
  """Moves running statistics towards the mean of a step's tasks.

  The old statistics keep the share 0.9^T, as if those of every task had entered
  in turn, but the order of the tasks does not matter.
  """
  keep = STATISTICS_DECAY ** num_tasks
  return jax.tree.map(lambda r, b: keep * r + (1. - keep) * b, running, batch)


def make_step(algorithm, optimizer, rate, draw, meta_batch, *,
              tasks_at_once=0, unroll_passes=False):
  """Returns step(state, arrays, key, pixels) -> (state, metrics), pure.

  Args:
    algorithm: the method, see algorithms/base.py.
    optimizer: optax transformation without a rate (train/optimizer.py).
    rate: (step [], Plateau) -> learning rate [], of train/optimizer.py.
    draw: (arrays, pixels, task_key) -> Episode, see `draw_episode`.
    meta_batch: T, tasks of all devices; the axis' length must divide it.
    tasks_at_once, unroll_passes: as in `accumulate`.

  The step's `arrays` is the training store's arrays, `key` the key of the
  run's training stream, the same at every step. `pixels` is None, or this
  device's share [T / devices, N, K + Q, h, w, c] of what the host gathered.
  Metrics are (sum, count).
  """
  def step(state, arrays, key, pixels):
    local = meta_batch // jax.lax.axis_size(AXIS)
    first = jax.lax.axis_index(AXIS) * local
    keys = episodes.task_keys(jax.random.fold_in(key, state.step), first,
                              local)

    def mean_loss(params, tasks):
      variables = {**state.variables, 'params': params}

      def task_loss(task):
        key, pixels = task
        return algorithm.loss(
            variables, jax.random.fold_in(key, episodes.Use.LOSS),
            draw(arrays, pixels, key), state.step * meta_batch)

      losses, aux = each_task(task_loss, tasks)
      return jnp.mean(losses), aux

    grads, aux = accumulate(
        jax.grad(mean_loss, has_aux=True), state.variables['params'],
        (keys, pixels), tasks_at_once, unroll_passes)
    grads, batch_stats = jax.lax.pmean((grads, aux.batch_stats), AXIS)
    metrics = jax.lax.psum(aux.metrics, AXIS)
    learning_rate = jnp.float32(rate(state.step, state.plateau))
    variables, opt_state = update(state, optimizer, grads, learning_rate)
    variables['batch_stats'] = merge_statistics(
        state.variables['batch_stats'], batch_stats, meta_batch)
    one = jnp.float32(1)
    metrics = {**metrics, 'gradient_norm': (optax.tree.norm(grads), one),
               'learning_rate': (learning_rate, one)}
    return state.replace(step=state.step + 1, variables=variables,
                         opt_state=opt_state), metrics

  return step


def update(state, optimizer, grads, learning_rate):
  """Returns variables and optimizer's state after a step."""
  params = state.variables['params']
  updates, opt_state = optimizer.update(grads, state.opt_state, params)
  updates = jax.tree.map(lambda u: -learning_rate * u, updates)
  variables = {**state.variables,
               'params': optax.apply_updates(params, updates)}
  return variables, opt_state


def each_task(function, tasks):
  """Maps over tasks; without vmap where there is only one.

  A mapped convolution with a kernel for each task becomes a grouped one, which
  is slow even with one group.
  """
  if len(jax.tree.leaves(tasks)[0]) > 1:
    return jax.vmap(function)(tasks)
  result = function(jax.tree.map(lambda x: x[0], tasks))
  return jax.tree.map(lambda x: jnp.asarray(x)[None], result)


def accumulate(grad_fn, params, tasks, tasks_at_once, unroll=False):
  """Averages gradients over tasks, a chunk at a time.

  Args:
    grad_fn: (params, tasks [t]) -> (mean gradient, Aux with leading axis t).
    params: what is differentiated.
    tasks: tree of arrays [T, ..], what makes each task.
    tasks_at_once: t; memory grows with it, the result does not. 0 is all.
    unroll: whether the loop over the chunks is unrolled.

  Returns:
    The mean gradient, and Aux with statistics averaged and metrics summed
    over the tasks.
  """
  def reduced(tasks):
    grads, aux = grad_fn(params, tasks)
    return grads, aux._replace(
        batch_stats=jax.tree.map(lambda s: jnp.mean(s, 0), aux.batch_stats),
        metrics=jax.tree.map(lambda m: jnp.sum(m, 0), aux.metrics))

  count = len(jax.tree.leaves(tasks)[0])
  num_chunks = count // (tasks_at_once or count)
  if num_chunks <= 1:
    return reduced(tasks)
  chunks = jax.tree.map(
      lambda x: x.reshape((num_chunks, tasks_at_once) + x.shape[1:]), tasks)
  zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(reduced, jax.tree.map(lambda x: x[0], chunks)))
  add = lambda total, tasks: (
      jax.tree.map(jnp.add, total, reduced(tasks)), None)
  (grads, aux), _ = inner_loop.loop(add, zeros, chunks, unroll)
  mean = lambda tree: jax.tree.map(lambda x: x / num_chunks, tree)
  return mean(grads), aux._replace(batch_stats=mean(aux.batch_stats))
