"""Ways to adapt to unseen tasks, all behind one signature.

  new_heads    new heads on frozen features
  own_head     the method's own head on frozen features
  own          the method's own adaptation
  all_layers   every layer, from class centroids ('tune_all')

'own' in config.eval.heads is `own_head` of a method that adapts nothing below
its head, and otherwise `own`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from mtl_jax import devices, heads, processes
from mtl_jax.data import augment, episodes
from mtl_jax.evaluate import features, tune_all

OWN = 'own'  # the method's own adaptation in place of a head
_PIXELS = 2**27  # bytes of the raw pixels of the tasks in one call
_FEATURES = 2**31  # bytes; beyond them the features of one call are held


class Answers(NamedTuple):
  """What a head or a method says on t tasks."""

  logits: Any  # [t, Q, N]
  convergence: dict  # of heads.convergence, [t] each; {} if nothing is solved


class Adapter(NamedTuple):
  """Adapts to tasks and classifies their queries.

  answers(variables, tasks) -> for each of `tasks` in turn that is this
    process' (processes.mine), a dictionary of label -> Answers. `tasks` is a
    list of protocol.Tasks of one store, each of `at_once` tasks (t), or of all
    tasks of a protocol where there are fewer. What they share is computed once;
    results come one at a time, so that those of all tasks need not be held.
  at_once: tasks in one call; the result of a task does not depend on it.
  """

  answers: Callable
  at_once: int


def is_head(name):
  """Returns whether a name of config.eval.heads is that of a new head."""
  return name not in (OWN, tune_all.NAME)


def make(algorithm, store, protocol, scored, fewest):
  """Returns the adapters that answer for all labels of `scored`.

  Args:
    algorithm: whose features or adaptation are taken.
    store: the split that the tasks are of.
    protocol: Protocol, read for how tasks are measured.
    scored: label -> (head name, 'own' or 'tune_all'; its options).
    fewest: tasks of the smallest protocol; no more devices are used.

  Returns:
    List of Adapters.
  """
  new = {label: how for label, how in scored.items() if is_head(how[0])}
  adapters = [new_heads(algorithm, store, protocol, new)] if new else []
  for label, (name, options) in scored.items():
    if name == OWN and algorithm.from_features:
      adapters.append(own_head(algorithm, store, protocol, label))
    elif name == OWN:
      adapters.append(own(algorithm, store, label, fewest))
    elif name == tune_all.NAME:
      adapters.append(all_layers(algorithm, store, label, **options))
  return adapters


def new_heads(algorithm, store, protocol, scored):
  """Adapts by new heads on frozen features.

  Args:
    algorithm, store: as in `make`.
    protocol: read for `normalise_features`, `batch_size`, `tasks_at_once`,
      `support_copies` and `augmentation`.
    scored: label -> (head name, options).

  Returns:
    Adapter.
  """
  return _on_features(algorithm, store, protocol, {
      label: functools.partial(_of_head, heads.find(name), options)
      for label, (name, options) in scored.items()})


def own_head(algorithm, store, protocol, label):
  """Adapts by a method's `from_features`.

  Args:
    algorithm, store: as in `make`.
    protocol: read for `batch_size` and `tasks_at_once`.
    label: of the answers.

  Returns:
    Adapter.
  """
  def learn(variables, ways, support, labels, query):
    logits, convergence = algorithm.from_features(
        variables, support, labels, ways, query)
    return Answers(logits, convergence if algorithm.convergence else {})

  return _on_features(algorithm, store, protocol._replace(
      normalise_features=False, support_copies=0), {label: learn})


def _on_features(algorithm, store, protocol, learners):
  """Adapts on frozen features.

  The network sees every image of all tasks once; a task is then a gather of
  features, and the heads of many tasks are fitted in one call, divided among
  the devices of this process. Where all features are more than _FEATURES, it
  sees every image of one call once. Raw pixels are more numbers than features:
  those of a few tasks are held at a time, on one device.

  Args:
    algorithm, store, protocol: as in `new_heads`.
    learners: label -> (variables, ways, support [S, D], labels [S],
      query [Q, D]) -> Answers of a task.

  Returns:
    Adapter.
  """
  network = features.make(algorithm, store, protocol.normalise_features)
  pixels = features.are_pixels(algorithm)
  fit = _fit_tasks(learners, network.mesh)

  @jax.jit
  def of_copies(variables, key, number, images):
    key = jax.random.fold_in(jax.random.fold_in(key, number),
                             episodes.Use.COPIES)
    images = jnp.tile(images, (protocol.support_copies, 1, 1, 1))
    return network.of_batch(variables, augment.augment(
        key, images, **protocol.augmentation))

  def answers(variables, tasks):
    apart = pixels or _are_many(network, variables, store, tasks)
    everywhere = functools.partial(devices.everywhere, mesh=network.mesh)
    copies = everywhere(variables)

    def of_tasks(tasks):
      used, seen = features.of_tasks(
          network, variables, store, tasks, protocol.batch_size,
          protocol.progress and not apart, shared=not apart)
      return used, everywhere(seen)

    def learned(part, used, seen):
      labels, known = part.support_y, seen
      rows = np.searchsorted(used, part.support)
      if protocol.support_copies:
        labels = jnp.tile(labels, protocol.support_copies)
        known = everywhere(jnp.concatenate([
            of_copies(variables, part.key, number, store.images[ids])
            for number, ids in zip(part.numbers, part.support, strict=True)]))
        rows = np.arange(len(known)).reshape(len(rows), -1)
      return fit(part.ways, copies, known, rows, labels, seen,
                 np.searchsorted(used, part.query))

    # At once: the time of the first answer is not that of all features.
    shared = None if apart else of_tasks(tasks)
    return (learned(part, *(shared or of_tasks([part])))
            for part in processes.mine(tasks))

  return Adapter(answers, min(protocol.tasks_at_once, _tasks_of_pixels(
      store, protocol)) if pixels else protocol.tasks_at_once)


def _are_many(network, variables, store, tasks):
  """Returns whether the features of the tasks exceed _FEATURES."""
  of_one = jax.eval_shape(network.of_batch, variables, store.images[:1])
  images = len(features.used_by(tasks))
  return images * of_one.size * of_one.dtype.itemsize > _FEATURES


def _fit_tasks(learners, mesh):
  """Returns what fits heads to many tasks, on several devices.

  Args:
    learners: as in `_on_features`.
    mesh: of the devices that the tasks are divided among.

  Returns:
    fit(ways, variables, known [I, D], support_rows [t, S], labels [S],
    seen [J, D], query_rows [t, Q]) -> label -> Answers of t tasks, on one
    device. Each device holds a copy of `variables`, `known` and `seen`
    (devices.everywhere).
  """
  divided = P(devices.AXIS)

  @functools.partial(jax.jit, static_argnames='ways')
  def fit_evenly(ways, variables, known, support_rows, labels, seen,
                 query_rows):
    # A head never learns which classes of the split it sees.
    def of_tasks(variables, known, support_rows, seen, query_rows):
      of_task = lambda support, query: {
          label: learn(variables, ways, support, labels, query)
          for label, learn in learners.items()}
      return jax.vmap(of_task)(known[support_rows], seen[query_rows])

    return jax.shard_map(
        of_tasks, mesh=mesh, in_specs=(P(), P(), divided, P(), divided),
        out_specs=divided, check_vma=False)(
            variables, known, support_rows, seen, query_rows)

  def fit(ways, variables, known, support_rows, labels, seen, query_rows):
    count = len(support_rows)
    # As many tasks on each device; the last one is repeated.
    fill = lambda rows: np.pad(rows, ((0, -count % mesh.size), (0, 0)), 'edge')
    found = fit_evenly(ways, variables, known, fill(support_rows), labels,
                       seen, fill(query_rows))
    # On one device again: other programs would divide the tasks too.
    return jax.tree.map(
        lambda x: jax.device_put(x, mesh.devices.flat[0])[:count], found)

  return fit


def _of_head(head, options, variables, ways, support, labels, query):
  """Returns the Answers of a new head on one task's features."""
  del variables  # nothing of a new head is trained
  params = head.fit(support, labels, ways, **options)
  return Answers(head.logits(params, query), heads.convergence(
      head.diagnostics(params, support, labels, **options)))


def _tasks_of_pixels(store, protocol):
  """Returns the number of tasks whose pixels in float32 take _PIXELS bytes."""
  images = protocol.ways * (protocol.shots + protocol.queries)
  return max(1, _PIXELS // (4 * images * math.prod(store.images.shape[1:])))


def own(algorithm, store, label, at_most):
  """Adapts by the method's own `adapt` and `predict`.

  A task's network holds its images and gradients, so a device takes one task
  at a time.

  Args:
    algorithm, store: as in `make`.
    label: of the answers.
    at_most: tasks in one call.

  Returns:
    Adapter.
  """
  mesh = devices.mesh_of_tasks(at_most)
  divided = P(devices.AXIS)

  @functools.partial(jax.jit, static_argnames='ways')
  def adapt(ways, variables, key, numbers, labels, support, query):
    def of_task(variables, key, numbers, labels, support, query):
      support, query = (augment.normalise(x[0], store.mean, store.std)
                        for x in (support, query))
      key = jax.random.fold_in(key, numbers[0])
      adapted = algorithm.adapt(variables, key, support, labels, ways)
      convergence = {}
      if algorithm.convergence:
        convergence = algorithm.convergence(adapted, query)
      return jax.tree.map(lambda x: x[None], Answers(
          algorithm.predict(adapted, query), convergence))

    return jax.shard_map(
        of_task, mesh=mesh, out_specs=divided, check_vma=False,
        in_specs=(P(), P(), divided, P(), divided, divided))(
            variables, key, numbers, labels, support, query)

  def answers(variables, tasks):
    everywhere = devices.everywhere(variables, mesh)
    for part in processes.mine(tasks):
      # Waits for the result: the host holds the pixels of one call only.
      yield {label: jax.device_get(adapt(
          part.ways, everywhere, part.key, part.numbers, part.support_y,
          store.images[part.support], store.images[part.query]))}

  return Adapter(answers, mesh.size)


def all_layers(algorithm, store, label, *, steps, learning_rate,
               tasks_at_once):
  """Adapts every layer, see evaluate/tune_all.py.

  Args:
    algorithm, store: as in `make`.
    label: of the answers.
    steps, learning_rate, tasks_at_once: of tune_all.OPTIONS.

  Returns:
    Adapter.
  """
  tune = tune_all.make(algorithm, steps=steps, learning_rate=learning_rate)
  images = lambda ids: augment.normalise(store.images[ids], store.mean,
                                         store.std)

  def answers(variables, tasks):
    for part in processes.mine(tasks):
      yield {label: Answers(tune(
          variables, images(part.support), part.support_y, images(part.query),
          part.ways), {})}

  return Adapter(answers, tasks_at_once)
