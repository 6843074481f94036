"""Episodes: valid, uniform, and a function of (seed, stream, step, task)."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.data import episodes
from mtl_jax.data.store import Store
from mtl_jax.errors import UserError

SIZES = np.array([7, 20, 9, 600, 7, 8])
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int32)


def draw(count, *, ways=4, images_per_class=7, seed=0):
  keys = episodes.task_keys(
      episodes.stream_key(seed, episodes.Stream.TRAIN), 0, count)
  return jax.jit(jax.vmap(lambda key: episodes.sample(
      key, jnp.asarray(OFFSETS), ways=ways,
      images_per_class=images_per_class)))(keys)


def test_no_class_and_no_image_twice_and_images_belong_to_their_class():
  class_ids, image_ids = jax.device_get(draw(500))
  for classes, images in zip(class_ids, image_ids, strict=True):
    assert len(set(classes)) == 4
    assert len(set(images.ravel())) == images.size
    for c, ids in zip(classes, images, strict=True):
      assert (ids >= OFFSETS[c]).all() and (ids < OFFSETS[c + 1]).all()


def test_every_ordered_choice_is_equally_likely():
  keys = jax.random.split(jax.random.key(3), 24_000)
  drawn = jax.jit(jax.vmap(lambda k: episodes.distinct(k, 4, 3)))(keys)
  counts = collections.Counter(map(tuple, jax.device_get(drawn).tolist()))
  assert set(counts) == set(itertools.permutations(range(4), 3))
  # 24 cells of 1000: chi-square with 23 degrees of freedom is below 50 but
  # in one of a thousand cases.
  assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 50


def test_large_classes_are_drawn_from_evenly():
  ids = jax.device_get(draw(2000, ways=6, images_per_class=7)[1]).reshape(-1)
  big = ids[(ids >= OFFSETS[3]) & (ids < OFFSETS[4])] - OFFSETS[3]
  assert len(np.unique(big)) == 600
  assert abs(big.mean() - 299.5) < 5 * 173.2 / len(big) ** 0.5


def test_tasks_do_not_depend_on_how_many_are_drawn_together():
  whole = jax.device_get(draw(8)[1])
  keys = episodes.task_keys(
      episodes.stream_key(0, episodes.Stream.TRAIN), 5, 2)
  part = jax.vmap(lambda key: episodes.sample(
      key, jnp.asarray(OFFSETS), ways=4, images_per_class=7))(keys)[1]
  np.testing.assert_array_equal(whole[5:7], part)


def test_seeds_streams_and_tasks_differ():
  keys = [jax.random.key_data(episodes.stream_key(seed, stream)).tolist()
          for seed in range(3) for stream in episodes.Stream]
  assert len(set(map(tuple, keys))) == len(keys)
  assert not np.array_equal(draw(4, seed=0)[1], draw(4, seed=1)[1])


def test_split_is_class_major_and_keeps_support_and_query_apart():
  images = jnp.arange(3 * 5).reshape(3, 5, 1, 1, 1)
  episode = episodes.split(images, jnp.array([9, 2, 4]), shots=2)
  assert episode.support_x.ravel().tolist() == [0, 1, 5, 6, 10, 11]
  assert episode.support_y.tolist() == [0, 0, 1, 1, 2, 2]
  assert episode.query_x.ravel().tolist() == [2, 3, 4, 7, 8, 9, 12, 13, 14]
  assert episode.query_y.tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_joined_images_keep_their_labels():
  images = jnp.arange(3 * 5).reshape(3, 5, 1, 1, 1)
  episode = episodes.split(images, jnp.array([9, 2, 4]), shots=2)
  x, y = episodes.joined(episode)
  assert (x.ravel() // 5).tolist() == y.tolist()


@pytest.mark.parametrize('asked, line', [
    ({'ways': 7, 'images_per_class': 2}, 'config.train.ways is 7'),
    ({'ways': 2, 'images_per_class': 8}, 'class a has 7 images|class a of'),
])
def test_a_store_that_is_too_small_is_named(asked, line):
  store = Store(images=None, offsets=OFFSETS, class_names=tuple('abcdef'),
                mean=None, std=None, name='d', split='train')
  with pytest.raises(UserError, match=line):
    episodes.check(store, field='train', **asked)
