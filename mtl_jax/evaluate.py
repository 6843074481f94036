"""Meta-test: adapt to unseen tasks and measure.

A frozen backbone sees every image once; a task is then a gather of features,
and the heads of many tasks are fitted in one batched call. Methods that adapt
more than the head go through their own `adapt`, task by task.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import heads
from mtl_jax.data import augment, episodes
from mtl_jax.data import store as stores
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
  arrays = stores.arrays(store)
  normalised = lambda ids: augment.normalise(arrays.images[ids], arrays.mean,
                                             arrays.std)

  @jax.jit
  def batch_features(variables, ids):
    features = algorithm.features(variables, normalised(ids))
    return (layers.unit_norm(features) if protocol.normalise_features
            else features)

  def task_hits(variables, features, key):
    class_ids, image_ids = episodes.sample(
        key, arrays.offsets, ways=protocol.ways,
        images_per_class=protocol.shots + protocol.queries)
    support, query = (image_ids[:, :protocol.shots].ravel(),
                      image_ids[:, protocol.shots:].ravel())
    del class_ids  # a head never learns which classes of the split it sees
    support_y = episodes.labels(protocol.ways, protocol.shots)
    query_y = episodes.labels(protocol.ways, protocol.queries)
    hits = {}
    for name, options in head_options.items():
      if name == OWN:
        adapted = algorithm.adapt(variables, key, normalised(support),
                                  support_y)
        logits = algorithm.predict(adapted, normalised(query))
      else:
        head = heads.HEADS[name]
        fitted = head.fit(features[support], support_y, protocol.ways,
                          **options)
        logits = head.logits(fitted, features[query])
      hits[name] = jnp.mean(jnp.argmax(logits, -1) == query_y)
    return hits

  @jax.jit
  def chunk_hits(variables, features, keys):
    one = lambda key: task_hits(variables, features, key)
    # Adaptation of a network holds a task's images: one at a time.
    return jax.lax.map(one, keys) if OWN in head_options else jax.vmap(one)(
        keys)

  def run(variables):
    ids = np.arange(len(store.images), dtype=np.int32)
    features = None
    if set(head_options) != {OWN}:
      features = jnp.concatenate([
          batch_features(variables, chunk)[:count]
          for chunk, count in _chunks(ids, protocol.batch_size)])
    keys = episodes.task_keys(protocol.key, 0, protocol.num_tasks)
    parts = [(chunk_hits(variables, features, keys[chunk]), count)
             for chunk, count in _chunks(np.arange(protocol.num_tasks),
                                         protocol.tasks_at_once)]
    return {name: np.concatenate([hits[name][:count] for hits, count in parts],
                                 dtype=np.float64) for name in head_options}

  return run


def _chunks(ids, size):
  """Yields (ids of one shape, how many count); the last is filled up."""
  size = min(size, len(ids))
  for start in range(0, len(ids), size):
    chunk = ids[start:start + size]
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
