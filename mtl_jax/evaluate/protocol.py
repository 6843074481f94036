"""Which tasks are measured, and how: a Protocol and the tasks it draws."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data import episodes


class Protocol(NamedTuple):
  """Which tasks are measured, and how."""

  key: Any  # a fixed key draws fixed tasks
  num_tasks: int
  ways: int
  shots: int
  queries: int
  normalise_features: bool
  batch_size: int  # images of a forward pass
  tasks_at_once: int  # tasks whose heads are fitted in one call
  # Heads are fitted to this many augmented copies of each support image, and
  # not to the image itself (RFS: 5). 0: to the image.
  support_copies: int = 0
  augmentation: Mapping[str, Any] | None = None  # keywords of augment.augment
  progress: bool = False  # whether a terminal shows how far the tasks are


class Tasks(NamedTuple):
  """Tasks of one protocol, as numbers of images of a store.

  key: of the protocol; `fold_in(key, number)` is the key of a task.
  numbers: int [T], of the tasks within the protocol.
  ways: N.
  support: int [T, N K], class by class.
  query: int [T, N Q], class by class.
  support_y, query_y: int32 [N K] and [N Q], the labels of every task.
  """

  key: Any
  numbers: np.ndarray
  ways: int
  support: np.ndarray
  query: np.ndarray
  support_y: jax.Array
  query_y: jax.Array


def draw(protocol, offsets):
  """Draws the images of all tasks of a protocol: int32 [T, N, K + Q].

  Args:
    protocol: Protocol.
    offsets: of the store, int32 [M + 1].
  """
  sample = jax.jit(jax.vmap(lambda key: episodes.sample(
      key, jnp.asarray(offsets), ways=protocol.ways,
      images_per_class=protocol.shots + protocol.queries)[1]))
  return np.asarray(sample(episodes.task_keys(protocol.key, 0,
                                              protocol.num_tasks)))


def tasks(protocol, image_ids):
  """Returns the Tasks of a protocol whose images are int [T, N, K + Q]."""
  flat = lambda ids: ids.reshape(len(ids), -1)
  return Tasks(
      key=protocol.key, numbers=np.arange(len(image_ids), dtype=np.int32),
      ways=protocol.ways,
      support=flat(image_ids[:, :, :protocol.shots]),
      query=flat(image_ids[:, :, protocol.shots:]),
      support_y=episodes.labels(protocol.ways, protocol.shots),
      query_y=episodes.labels(protocol.ways, protocol.queries))


def some(tasks, rows):
  """Returns the tasks of these rows."""
  return tasks._replace(numbers=tasks.numbers[rows],
                        support=tasks.support[rows], query=tasks.query[rows])


def chunks(count, size):
  """Yields rows of one shape, and how many of them count.

  The last rows are filled up with repetitions.
  """
  size = min(size, count)
  for start in range(0, count, size):
    rows = np.arange(start, min(start + size, count))
    yield np.pad(rows, (0, size - len(rows)), mode='edge'), len(rows)
