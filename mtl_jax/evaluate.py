"""Meta-test: adapt to unseen tasks and measure.

A frozen backbone sees every image that some task uses once; a task is then a
gather of features, and the heads of many tasks are fitted in one batched call.
Methods that adapt more than the head go through their own `adapt`, task by
task.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import heads
from mtl_jax.data import augment, episodes
from mtl_jax.models import layers

OWN = 'own'  # the method's own adaptation in place of a head


class Protocol(NamedTuple):
  """Which tasks are measured, and how."""

  key: Any  # of the tasks: fixed tasks for a fixed key
  num_tasks: int
  ways: int
  shots: int
  queries: int
  normalise_features: bool
  batch_size: int  # images of a forward pass
  tasks_at_once: int


def meta_test(algorithm, variables, store, protocol, head_options):
  """Measures the accuracy of new heads on unseen tasks.

  Args:
    algorithm: whose features or adaptation are measured.
    variables: of the algorithm; not changed.
    store: the split the tasks are drawn from.
    protocol: Protocol.
    head_options: head name, or 'own' -> its options.

  Returns:
    Head name -> accuracy of each task, float64 [num_tasks].
  """
  return make_meta_test(algorithm, store, protocol, head_options)(variables)


def make_meta_test(algorithm, store, protocol, head_options):
  """Returns variables -> result of `meta_test`, compiled once."""
  keys = episodes.task_keys(protocol.key, 0, protocol.num_tasks)
  image_ids = task_images(protocol, store.offsets)
  used, rows = np.unique(image_ids, return_inverse=True)
  rows = rows.reshape(image_ids.shape)  # of the features of `used`
  support_y = episodes.labels(protocol.ways, protocol.shots)
  query_y = episodes.labels(protocol.ways, protocol.queries)
  hits = lambda logits: jnp.mean(jnp.argmax(logits, -1) == query_y)
  normalised = lambda images: augment.normalise(images, store.mean, store.std)

  def halves(rows):
    """Parts [N, K + Q, ..] into support [N K, ..] and query [N Q, ..]."""
    parts = rows[:, :protocol.shots], rows[:, protocol.shots:]
    return [part.reshape((-1,) + part.shape[2:]) for part in parts]

  @jax.jit
  def batch_features(variables, images):
    features = algorithm.features(variables, normalised(images))
    return (layers.unit_norm(features) if protocol.normalise_features
            else features)

  @jax.jit
  def head_hits(features, rows):
    def one(rows):
      # A head never learns which classes of the split it sees.
      support, query = halves(rows)
      return {name: hits(heads.HEADS[name].logits(
          heads.HEADS[name].fit(features[support], support_y, protocol.ways,
                                **options), features[query]))
              for name, options in head_options.items() if name != OWN}
    return jax.vmap(one)(rows)

  @jax.jit
  def own_hits(variables, key, images):
    support, query = halves(normalised(images))
    return {OWN: hits(algorithm.predict(
        algorithm.adapt(variables, key, support, support_y), query))}

  def run(variables):
    # Pixels stay on the host: each is looked at once, and a device has the
    # training split to hold.
    parts = []
    if set(head_options) != {OWN}:
      features = jnp.concatenate([
          batch_features(variables, store.images[used[ids]])[:count]
          for ids, count in _chunks(len(used), protocol.batch_size)])
      parts += [jax.tree.map(lambda x, n=count: x[:n],
                             head_hits(features, rows[tasks]))
                for tasks, count in _chunks(protocol.num_tasks,
                                            protocol.tasks_at_once)]
    if OWN in head_options:
      # Adaptation of a network holds a task's images: one at a time.
      parts += [own_hits(variables, keys[task],
                         store.images[image_ids[task]])
                for task in range(protocol.num_tasks)]
    return {name: np.concatenate(
        [np.atleast_1d(part[name]) for part in parts if name in part],
        dtype=np.float64) for name in head_options}

  return run


def task_images(protocol, offsets):
  """Returns the images of all tasks of a protocol: int32 [T, N, K + Q]."""
  draw = jax.jit(jax.vmap(lambda key: episodes.sample(
      key, jnp.asarray(offsets), ways=protocol.ways,
      images_per_class=protocol.shots + protocol.queries)[1]))
  return np.asarray(draw(episodes.task_keys(protocol.key, 0,
                                            protocol.num_tasks)))


def _chunks(count, size):
  """Yields (numbers of one shape, how many count); the last is filled up."""
  size = min(size, count)
  for start in range(0, count, size):
    chunk = np.arange(start, min(start + size, count))
    yield np.pad(chunk, (0, size - len(chunk)), mode='edge'), len(chunk)


def pixels(algorithm):
  """Returns an algorithm whose features are the pixels themselves."""
  return algorithm._replace(
      features=lambda variables, images: images.reshape(len(images), -1))


def summary(accuracies: np.ndarray) -> Mapping[str, float]:
  """Returns the mean and the half-width of its 95% interval.

  Normal approximation over tasks, 1.96 s / sqrt(n) with the unbiased s.
  """
  count = len(accuracies)
  spread = float(np.std(accuracies, ddof=1)) if count > 1 else float('nan')
  return {'accuracy': float(np.mean(accuracies)),
          'ci95': 1.96 * spread / count ** 0.5}
