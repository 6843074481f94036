"""Meta-test: adapt to unseen tasks and measure.

A frozen backbone sees every image that some task uses once; a task is then a
gather of features, and the heads of many tasks are fitted in one batched call.
Methods that adapt more than the head go through their own `adapt`, task by
task.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtl_jax import heads
from mtl_jax.data import augment, episodes
from mtl_jax.evaluate import tune_all
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
  # Heads are fitted on so many augmented copies of each support image and not
  # on the image itself (RFS: 5); 0: on the image.
  support_copies: int = 0
  augmentation: Mapping[str, Any] | None = None  # keywords of augment.augment


def meta_test(algorithm, variables, store, protocol, scored):
  """Measures the accuracy of new heads on unseen tasks.

  Args:
    algorithm: whose features or adaptation are measured.
    variables: of the algorithm; not changed.
    store: the split the tasks are drawn from.
    protocol: Protocol.
    scored: label -> (head name, 'own' or 'tune_all'; its options).

  Returns:
    Label -> accuracy of each task, float64 [num_tasks].
  """
  return make_meta_test(algorithm, store, (protocol,), scored)(variables)[0]


def make_meta_test(algorithm, store, protocols, scored, image_ids=None):
  """Returns variables -> [result of `meta_test`, ..], one a protocol.

  Compiled once; the features are shared by all protocols.

  Args:
    algorithm, store, scored: as in `meta_test`.
    protocols: which agree in `normalise_features` and `batch_size`.
    image_ids: tasks to take in place of those drawn, for each protocol int
      [num_tasks, N, K + Q].
  """
  if image_ids is None:
    image_ids = [task_images(p, store.offsets) for p in protocols]
  used = np.unique(np.concatenate([ids.ravel() for ids in image_ids]))
  batch_size = protocols[0].batch_size
  batch_features = _feature_function(algorithm, store,
                                     protocols[0].normalise_features)
  measures = [
      _make_measure(algorithm, store, protocol, scored, ids,
                    np.searchsorted(used, ids), batch_features)
      for protocol, ids in zip(protocols, image_ids, strict=True)]

  def run(variables):
    features = None
    if any(name in heads.HEADS for name, _ in scored.values()):
      # Pixels stay on the host: each is looked at once, and a device has the
      # training split to hold.
      features = jnp.concatenate(list(_in_batches(
          batch_features, variables, store, used, batch_size)))
    return [measure(variables, features) for measure in measures]

  return run


def split_features(algorithm, variables, store, normalise_features,
                   batch_size):
  """Returns the features of all images of a store: float32 [I, D]."""
  batch_features = _feature_function(algorithm, store, normalise_features)
  ids = np.arange(len(store.images))
  return np.concatenate([np.asarray(part) for part in _in_batches(
      batch_features, variables, store, ids, batch_size)])


def _in_batches(batch_features, variables, store, ids, batch_size):
  """Yields the features of the images `ids`, a batch at a time."""
  for rows, count in _chunks(len(ids), batch_size):
    yield batch_features(variables, store.images[ids[rows]])[:count]


def _feature_function(algorithm, store, normalise_features):
  """Returns the jitted (variables, uint8 images) -> features."""
  def batch_features(variables, images):
    features = algorithm.features(variables, augment.normalise(
        images, store.mean, store.std))
    return layers.unit_norm(features) if normalise_features else features

  return jax.jit(batch_features)


def _make_measure(algorithm, store, protocol, scored, image_ids, rows,
                  batch_features):
  """Returns (variables, features) -> label -> accuracies, of one protocol."""
  keys = episodes.task_keys(protocol.key, 0, len(image_ids))
  support_y = episodes.labels(protocol.ways, protocol.shots)
  query_y = episodes.labels(protocol.ways, protocol.queries)
  fitted_y = jnp.tile(support_y, protocol.support_copies or 1)
  support_ids, query_ids = _halves(image_ids, protocol.shots)
  support_rows, query_rows = _halves(rows, protocol.shots)
  hits = lambda logits: jnp.mean(jnp.argmax(logits, -1) == query_y)
  by_head = {label: how for label, how in scored.items()
             if how[0] in heads.HEADS}

  @jax.jit
  def head_hits(support, features, query_rows):
    # A head never learns which classes of the split it sees.
    def one(support, query):
      return {label: hits(heads.HEADS[name].logits(
          heads.HEADS[name].fit(support, fitted_y, protocol.ways, **options),
          query)) for label, (name, options) in by_head.items()}
    return jax.vmap(one)(support, features[query_rows])

  @jax.jit
  def copies(variables, key, images):
    images = jnp.tile(images, (protocol.support_copies, 1, 1, 1))
    return batch_features(variables, augment.augment(
        jax.random.fold_in(key, episodes.Use.AUGMENT), images,
        **protocol.augmentation))

  def supports(variables, features, tasks):
    if not protocol.support_copies:
      return features[support_rows[tasks]]
    return jnp.stack([copies(variables, keys[task],
                             store.images[support_ids[task]])
                      for task in tasks])

  def tune_all_hits(variables, options):
    at_once = options['tasks_at_once']
    tune = tune_all.make(algorithm, protocol.ways, steps=options['steps'],
                         learning_rate=options['learning_rate'])
    images = lambda ids: augment.normalise(store.images[ids], store.mean,
                                           store.std)
    for tasks, count in _chunks(len(rows), at_once):
      logits = tune(variables, images(support_ids[tasks]), support_y,
                    images(query_ids[tasks]))
      yield jnp.mean(jnp.argmax(logits, -1) == query_y, -1)[:count]

  # A task's network holds its images and gradients: one task on each device.
  devices = jax.local_devices()[:len(rows)]
  mesh = Mesh(np.array(devices), ('task',))

  @jax.jit
  @functools.partial(
      jax.shard_map, mesh=mesh,
      in_specs=(P(), P('task'), P('task'), P('task')), out_specs=P('task'),
      check_vma=False)
  def own_hits(variables, keys, support, query):
    support, query = (augment.normalise(x[0], store.mean, store.std)
                      for x in (support, query))
    return hits(algorithm.predict(
        algorithm.adapt(variables, keys[0], support, support_y,
                        protocol.ways), query))[None]

  def measure(variables, features):
    found = {label: [] for label in scored}
    if by_head:
      for tasks, count in _chunks(len(rows), protocol.tasks_at_once):
        scores = head_hits(supports(variables, features, tasks), features,
                           query_rows[tasks])
        for label, values in scores.items():
          found[label].append(values[:count])
    for label, (name, options) in scored.items():
      if name == tune_all.NAME:
        found[label] = list(tune_all_hits(variables, options))
      elif name == OWN:
        everywhere = jax.device_put(variables, NamedSharding(mesh, P()))
        found[label] = [
            np.asarray(own_hits(
                everywhere, keys[tasks], store.images[support_ids[tasks]],
                store.images[query_ids[tasks]]))[:count]
            for tasks, count in _chunks(len(rows), len(devices))]
    return {label: np.concatenate(values, dtype=np.float64)
            for label, values in found.items()}

  return measure


def _halves(ids, shots):
  """Parts [T, N, K + Q] into support [T, N K] and query [T, N Q]."""
  return [part.reshape(len(ids), -1)
          for part in (ids[:, :, :shots], ids[:, :, shots:])]


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


