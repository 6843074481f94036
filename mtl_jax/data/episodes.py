"""Draw episodes: which classes and which images, never the pixels.

Everything random in a run is a function of (seed, stream, step, task). The
order of the data does not depend on what ran before, so a resumed run equals
one that never stopped.
"""

import enum

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError


class Stream(enum.IntEnum):
  """Names what a key is for; the numbers are part of a run's identity."""

  INIT = 0
  TRAIN = 1
  VALIDATION = 2
  TEST = 3


class Use(enum.IntEnum):
  """Names what a task's key is folded with, for each use.

  In a test the key itself draws the images, and is split in two for this, which
  takes the numbers 0 and 1.
  """

  IDS = 0
  AUGMENT = 1
  LOSS = 2
  TURN = 3
  COPIES = 4  # of the support, in a test


@chex.dataclass(frozen=True)
class Episode:
  """One task; images normalised, class-major order, labels in 0..N-1."""

  support_x: chex.Array  # [S, h, w, c], S = N K
  support_y: chex.Array  # int32 [S]
  query_x: chex.Array  # [N Q, h, w, c]
  query_y: chex.Array  # int32 [N Q]
  class_ids: chex.Array  # int32 [N], classes of the split that was drawn from


def stream_key(seed, stream):
  """Returns the key of one stream of a run."""
  return jax.random.fold_in(jax.random.key(seed), int(stream))


def task_keys(key, first, count):
  """Returns the keys of the tasks `first` to `first + count - 1`: [count]."""
  return jax.vmap(lambda task: jax.random.fold_in(key, task))(
      first + jnp.arange(count))


def distinct(key, size, count):
  """Draws `count` different integers below `size`, in random order.

  Robert Floyd's sampling (Bentley & Floyd, CACM 1987): the j-th draw is at most
  size - count + j; a number that was drawn before is replaced by this limit.
  The cost does not depend on `size`, which may be traced, so classes of unequal
  size are no special case under vmap.

  Returns:
    int32 [count]; every ordered choice is equally likely.
  """
  order_key, draw_key = jax.random.split(key)

  def draw(chosen, j):
    limit = size - count + j
    value = jax.random.randint(jax.random.fold_in(draw_key, j), (), 0,
                               limit + 1, jnp.int32)
    value = jnp.where(jnp.any(chosen == value), limit, value)
    return chosen.at[j].set(value), None

  start = jnp.full((count,), -1, jnp.int32)
  chosen, _ = jax.lax.scan(draw, start, jnp.arange(count, dtype=jnp.int32))
  return jax.random.permutation(order_key, chosen)


def sample(key, offsets, *, ways, images_per_class):
  """Draws the classes and images of one task.

  Args:
    key: the task's key.
    offsets: int32 [M + 1]; class m owns the images offsets[m]:offsets[m + 1].
    ways: N, at most M.
    images_per_class: n = K + Q, at most the size of the smallest class.

  Returns:
    class_ids int32 [N] and image_ids int32 [N, n]; no class and no image
    twice.
  """
  class_key, image_key = jax.random.split(key)
  class_ids = distinct(class_key, offsets.shape[0] - 1, ways)
  starts = offsets[class_ids]
  sizes = offsets[class_ids + 1] - starts
  draw = jax.vmap(lambda k, size: distinct(k, size, images_per_class))
  within = draw(jax.random.split(image_key, ways), sizes)
  return class_ids, starts[:, None] + within


def draw_ids(offsets, task_key, c):
  """Draws the classes [N] and images [N, K + Q] of one training task.

  data/feed.py, which gathers pixels on the host, calls it too.

  Args:
    offsets: int32 [M + 1], as in `sample`.
    task_key: the task's key.
    c: section `train` of a config.
  """
  key = jax.random.fold_in(task_key, Use.IDS)
  return sample(key, offsets, ways=c.ways,
                images_per_class=c.shots + c.queries)


def labels(ways, per_class):
  """Returns the labels of a class-major batch: int32 [ways * per_class]."""
  return jnp.repeat(jnp.arange(ways, dtype=jnp.int32), per_class)


def split(images, class_ids, shots):
  """Splits images [N, K + Q, h, w, c]: the first K form the support."""
  ways, per_class = images.shape[:2]
  flat = lambda x: x.reshape((-1,) + x.shape[2:])
  return Episode(
      support_x=flat(images[:, :shots]), support_y=labels(ways, shots),
      query_x=flat(images[:, shots:]),
      query_y=labels(ways, per_class - shots), class_ids=class_ids)


def joined(episode):
  """Returns the images and labels of support and query together, in this order.

  For methods that train on all images of a task.
  """
  return (jnp.concatenate([episode.support_x, episode.query_x]),
          jnp.concatenate([episode.support_y, episode.query_y]))


def check(store, *, ways, images_per_class, field):
  """Raises UserError where `store` is too small for such tasks.

  Args:
    store: the split that tasks are drawn from.
    ways: N.
    images_per_class: K + Q.
    field: config section that sets these numbers, such as 'train'.
  """
  sizes = np.diff(store.offsets)
  if ways > len(sizes):
    raise UserError(
        f'config.{field}.ways is {ways}, but the {store.split} split of '
        f'{store.name} has {len(sizes)} classes: at most {len(sizes)}')
  small = int(np.argmin(sizes))
  if images_per_class > sizes[small]:
    raise UserError(
        f'config.{field}.shots + config.{field}.queries is '
        f'{images_per_class}, but class {store.class_names[small]} of '
        f'{store.name} has {sizes[small]} images: at most {sizes[small]}')
