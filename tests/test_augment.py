"""Augmentation: Pillow's bytes, and draws of the stated distributions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from mtl_jax.config import base_config
from mtl_jax.data import augment, episodes
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.train import step as steps

CHAIN = ('crop', 'jitter', 'flip')
OPTIONS = dict(padding=3, brightness=0.4, contrast=0.4, saturation=0.4)
STILL = dict(brightness=0., contrast=0., saturation=0.)
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast,
             ImageEnhance.Color)
ORDERS = np.array(list(itertools.permutations(range(3))))
RNG = np.random.default_rng
# Compiled once for all tests that give it twelve images of 28x28.
run_chain = jax.jit(lambda key, images: augment.augment(
    key, images, operations=CHAIN, **OPTIONS))


def noise(count, shape=(20, 24, 3)):
  return RNG(0).integers(0, 256, (count, *shape), np.uint8)


def smooth(count, size=84):
  """Returns images of slow colour waves that reach black and white."""
  rng = RNG(1)
  at = np.linspace(0., 1., size)
  waves = 0.
  for _ in range(4):
    fy, fx, phase = rng.uniform(-3., 3., (3, count, 1, 1, 3))
    waves = waves + np.sin(
        2. * np.pi * (fy * at[:, None, None] + fx * at[:, None] + phase))
  return np.clip(127.5 + 60. * waves, 0., 255.).astype(np.uint8)


def on_grid(factors):
  return (np.round(np.asarray(factors) * 2**15) / 2**15).astype(np.float32)


def pillow_jitter(image, factors, order):
  picture = Image.fromarray(image)
  for name in order:
    picture = ENHANCERS[name](picture).enhance(float(factors[name]))
  return np.asarray(picture)


def pillow_crop(image, top, left, padding):
  wide = ImageOps.expand(Image.fromarray(image), padding, fill=0)
  h, w = image.shape[:2]
  return np.asarray(wide.crop((left, top, left + w, top + h)))


def places_of(images, padding):
  """Returns images that tell by their pixels where they were cropped from."""
  coded = np.zeros(images.shape, np.uint8)
  coded[..., 0] = np.arange(1, images.shape[1] + 1)[:, None]
  coded[..., 1] = np.arange(1, images.shape[2] + 1)
  assert min(images.shape[1:3]) > 4 * padding
  return coded


def read_places(coded, padding):
  """Returns top, left and flipped [B] of what became of such images."""
  coded = np.asarray(coded).astype(int)
  h, w = coded.shape[1:3]
  middle = coded[:, h // 2]
  flipped = middle[:, w // 2, 1] > middle[:, w // 2 + 1, 1]
  columns = np.where(flipped[:, None], middle[:, ::-1, 1], middle[:, :, 1])
  top = middle[:, w // 2, 0] - 1 - h // 2 + padding
  return top, columns[:, w // 2] - 1 - w // 2 + padding, flipped


@pytest.fixture
def told_jitter(monkeypatch):
  """Makes jitter write down what it was given instead of doing it."""
  def told(image, factors, order):
    image = image.astype(jnp.float32)
    return image.at[0].set(factors).at[1].set(order)

  monkeypatch.setattr(augment, 'jitter', told)
  return lambda images: (np.asarray(images[:, 0, 0]),
                         np.asarray(images[:, 1, 0]).astype(int))


# The deterministic pieces.


@pytest.mark.parametrize('index, piece', (
    (0, augment.brightness), (1, augment.contrast), (2, augment.saturation)))
@pytest.mark.parametrize('images', (noise(1000), smooth(60)),
                         ids=('noise', 'smooth'))
def test_enhancers_give_pillows_bytes(index, piece, images):
  """Fails if training sees other colours than the published recipe."""
  factors = on_grid(RNG(2).uniform(0.6, 1.4, len(images)))
  # Where Pillow takes short cuts, and where it clips most.
  factors[:6] = (0., 1., 2., 3.5, 0.5, 1.25)
  got = jax.jit(jax.vmap(piece))(images, factors)
  want = [np.asarray(ENHANCERS[index](Image.fromarray(x)).enhance(float(f)))
          for x, f in zip(images, factors, strict=True)]
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('images', (noise(1800), smooth(120)),
                         ids=('noise', 'smooth'))
def test_jitter_gives_pillows_bytes_in_every_order(images):
  """Fails if a step is not quantised, or the order is read the wrong way."""
  factors = on_grid(RNG(3).uniform(0.6, 1.4, (len(images), 3)))
  orders = np.tile(ORDERS, (len(images) // 6, 1))
  got = jax.jit(jax.vmap(augment.jitter))(images, factors, orders)
  want = [pillow_jitter(*each)
          for each in zip(images, factors, orders, strict=True)]
  np.testing.assert_array_equal(got, want)


def test_jitter_off_the_grid_is_nearly_pillows():
  """Fails if the stated bound for arbitrary factors is wrong."""
  images = noise(1800)
  factors = RNG(4).uniform(0.6, 1.4, (len(images), 3)).astype(np.float32)
  orders = np.tile(ORDERS, (len(images) // 6, 1))
  got = jax.jit(jax.vmap(augment.jitter))(images, factors, orders)
  want = [pillow_jitter(*each)
          for each in zip(images, factors, orders, strict=True)]
  apart = np.abs(np.asarray(got) - np.array(want, np.float32))
  assert apart.max() <= 2.
  assert np.mean(apart > 0.) < 1e-4


def test_contrast_rounds_the_mean_half_up():
  """Fails if means of k + 1/2 are rounded to even numbers or down."""
  images = np.zeros((4, 2, 2, 3), np.uint8)
  images[:, 0] = np.arange(1, 8, 2)[:, None, None]  # means 0.5, 1.5, ...
  got = jax.vmap(lambda x: augment.contrast(x, 0.))(images)
  np.testing.assert_array_equal(got[:, 0, 0, 0], [1, 2, 3, 4])


@pytest.mark.parametrize('channels', (1, 3))
def test_crop_gives_pillows_bytes_at_every_place(channels):
  """Fails if the border is not black, or rows and columns are exchanged."""
  image = 1 + noise(1, (9, 12, channels))[0] // 2  # nowhere black itself
  cut = jax.jit(augment.crop, static_argnums=3)
  for top, left in itertools.product(range(5), range(5)):
    want = pillow_crop(np.squeeze(image), top, left, 2)
    np.testing.assert_array_equal(
        cut(image, top, left, 2), want.reshape(image.shape))


@pytest.mark.parametrize('channels', (1, 3))
def test_flip_gives_pillows_bytes(channels):
  """Fails if images are turned upside down, or their channels are reversed."""
  image = noise(1, (9, 12, channels))[0]
  want = ImageOps.mirror(Image.fromarray(np.squeeze(image)))
  np.testing.assert_array_equal(
      augment.flip(image), np.asarray(want).reshape(image.shape))


def test_the_chain_is_pillows_chain(told_jitter, monkeypatch):
  """Fails if the operations are applied in another order than stated."""
  images, key = smooth(12, size=28), jax.random.key(5)
  coded = places_of(images, 3)
  compiled = lambda options: jax.jit(lambda key, images: augment.augment(
      key, images, operations=CHAIN, **options))
  factors, orders = told_jitter(compiled(OPTIONS)(key, images))
  monkeypatch.undo()
  top, left, flipped = read_places(
      compiled({**OPTIONS, **STILL})(key, coded), 3)
  assert 0 < flipped.sum() < 12
  got = run_chain(key, images)
  for i, image in enumerate(images):
    want = pillow_crop(image, top[i], left[i], 3)
    want = pillow_jitter(want, factors[i], orders[i])
    if flipped[i]:
      want = np.asarray(ImageOps.mirror(Image.fromarray(want)))
    np.testing.assert_array_equal(got[i], want)


# The draws.


def assert_uniform(counts):
  assert stats.chisquare(np.ravel(counts)).pvalue > 1e-3


def test_places_and_flips_are_uniform_and_independent():
  """Fails if an offset, such as the last, is drawn too seldom or never."""
  coded = places_of(noise(6000, (9, 9, 2)), 2)
  top, left, flipped = read_places(jax.jit(lambda k, x: augment.augment(
      k, x, operations=('crop', 'flip'), padding=2, **STILL))(
          jax.random.key(0), coded), 2)
  counts = np.zeros((5, 5, 2))
  np.add.at(counts, (top, left, flipped.astype(int)), 1)
  assert counts.sum() == 6000
  assert_uniform(counts)
  # A place must not say where the next image's is.
  pairs = np.zeros((5, 5))
  np.add.at(pairs, (top[:-1], top[1:]), 1)
  assert_uniform(pairs)


def test_factors_and_orders_are_uniform_and_independent(told_jitter):
  """Fails if the jitter is not the published one."""
  images = np.zeros((6000, 2, 1, 3), np.uint8)
  factors, orders = told_jitter(jax.jit(lambda key, images: augment.augment(
      key, images, operations=('jitter',), padding=0, brightness=0.4,
      contrast=0.2, saturation=1.5))(jax.random.key(1), images))
  np.testing.assert_array_equal(factors, on_grid(factors))
  for values, (low, high) in zip(
      factors.T, ((0.6, 1.4), (0.8, 1.2), (0., 2.5)), strict=True):
    assert low - 1e-4 < values.min() and values.max() < high + 1e-4
    assert stats.kstest(
        values, 'uniform', (low, high - low)).pvalue > 1e-3
  number = np.sum(orders * [9, 3, 1], 1)
  kinds, counts = np.unique(number, return_counts=True)
  assert sorted(kinds) == sorted(np.sum(ORDERS * [9, 3, 1], 1))
  assert_uniform(counts)
  cells = np.zeros((6, 4, 4))
  quarter = [np.minimum(4 * stats.rankdata(f) // 6001, 3).astype(int)
             for f in factors.T[:2]]
  np.add.at(cells, (np.searchsorted(kinds, number), *quarter), 1)
  assert_uniform(cells)


def same_images():
  """Returns twelve copies of an image of 28x28."""
  return np.repeat(smooth(1, size=28), 12, 0)


def test_each_image_has_its_own_draws():
  """Fails if all images of a task move together."""
  augmented = np.asarray(run_chain(jax.random.key(0), same_images()))
  assert len(np.unique(augmented.reshape(12, -1), axis=0)) == 12


def test_the_key_decides_the_draws():
  images = same_images()
  first, again, other = (
      run_chain(jax.random.key(seed), images) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_the_draws_of_an_image_do_not_depend_on_the_others():
  """Fails if pixels or the number of the other images count."""
  key, images = jax.random.key(0), same_images()
  augmented = np.asarray(run_chain(key, images))
  changed = np.concatenate([images[:5], 255 - images[5:]])
  np.testing.assert_array_equal(augmented[:5], run_chain(key, changed)[:5])
  np.testing.assert_array_equal(augmented[:5], run_chain(key, images[:5]))


def test_an_operation_may_come_twice_with_draws_of_its_own():
  """Fails if two operations of a chain share their random numbers."""
  coded = places_of(noise(64, (9, 9, 2)), 2)
  _, _, flipped = read_places(jax.jit(lambda key, images: augment.augment(
      key, images, operations=('flip', 'flip'), **OPTIONS))(
          jax.random.key(0), coded), 2)
  assert 10 < flipped.sum() < 54


def test_tasks_under_vmap_and_jit_are_tasks_alone():
  """Fails if a task's images depend on the other tasks of its device."""
  images = smooth(24, size=28).reshape(2, 12, 28, 28, 3)
  keys = jax.random.split(jax.random.key(7), 2)
  together = jax.vmap(run_chain)(keys, images)
  assert together.dtype == jnp.float32 and together.shape == images.shape
  np.testing.assert_array_equal(together, np.round(together))
  assert together.min() >= 0. and together.max() <= 255.
  for i in range(2):
    np.testing.assert_array_equal(together[i], run_chain(keys[i], images[i]))


def test_grey_images_are_cropped_and_flipped():
  """Fails if data sets of 28x28x1 cannot be augmented."""
  images = noise(6, (28, 28, 1))
  got = jax.jit(lambda key, images: augment.augment(
      key, images, operations=('crop', 'flip'), **OPTIONS))(
          jax.random.key(0), images)
  assert got.shape == images.shape and (np.asarray(got) != images).any()


def test_no_operation_changes_nothing():
  """Fails if images change without augmentation."""
  images = noise(3)
  got = augment.augment(jax.random.key(0), images, operations=(), **OPTIONS)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, images)
  np.testing.assert_array_equal(augment.normalise(got, 0.4, 0.2),
                                augment.normalise(images, 0.4, 0.2))


@pytest.mark.parametrize('operations, shape, message', (
    (('crop', 'rotate'), (8, 8, 3), "operations is 'rotate': allowed are crop"),
    (('jitter',), (8, 8, 1), 'operations has jitter: .* these have 1'),
))
def test_what_cannot_be_done_is_named(operations, shape, message):
  """Fails if a wrong setting ends in a traceback or does nothing."""
  with pytest.raises(UserError, match='config.augment.' + message):
    augment.augment(jax.random.key(0), noise(2, shape),
                    operations=operations, **OPTIONS)


def test_jitter_of_grey_images_is_refused_before_it_is_traced():
  augment.check(('crop', 'jitter'), 3)
  augment.check(('crop', 'flip'), 1)
  with pytest.raises(UserError, match='operations has jitter.* have 1'):
    augment.check(('crop', 'jitter'), 1)


# Classes of a task, turned as a whole.


def test_classes_are_turned_as_numpy_turns_them():
  """Fails if an angle, a direction or an image of a class is wrong."""
  images = RNG(5).integers(0, 256, (40, 3, 6, 6, 2), np.uint8)
  turn = jax.jit(augment.turn_classes)
  found = np.asarray(turn(jax.random.key(3), images))
  by_turn = np.stack([np.rot90(images, k, axes=(2, 3)) for k in range(4)])
  equal = (found == by_turn).all((2, 3, 4, 5))  # [4, 40]
  assert (equal.sum(0) == 1).all() and (equal.sum(1) > 3).all()
  turns = jax.random.randint(jax.random.key(3), (40, 1, 1, 1, 1), 0, 4)
  np.testing.assert_array_equal(equal.argmax(0), np.ravel(turns))
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(turn(jax.random.key(3), images), found)
  assert (np.asarray(turn(jax.random.key(4), images)) != found).any()


def test_turns_are_equally_likely_and_drawn_for_each_class():
  images = np.zeros((2, 1, 2, 2, 1), np.uint8)
  images[:, 0, 0, 0] = 1
  found = jax.jit(jax.vmap(lambda key: augment.turn_classes(key, images)))(
      jax.random.split(jax.random.key(0), 4000))
  corner = np.asarray(found).reshape(4000, 2, 4).argmax(-1)
  counts = np.histogram2d(*corner.T, bins=4)[0]  # of pairs of turns
  np.testing.assert_allclose(counts, 250, atol=5 * 250 ** 0.5)


def test_a_training_task_has_its_classes_turned_and_its_own_images():
  """On the device and from the host; other draws stay as they were."""
  store = stores.load('glyphs/tiny', 'train')
  c = base_config()
  c.train.update({'ways': 4, 'shots': 2, 'queries': 1})
  key = jax.random.key(9)
  device = stores.arrays(store)
  ids = np.asarray(episodes.draw_ids(device.offsets, key, c.train)[1])

  @jax.jit
  def drawn(pixels):
    tasks = []
    for turned, arrays, given in (
        (False, device, None), (True, device, None),
        (True, device._replace(images=None), pixels)):
      c.train.turn_classes = turned
      task = steps.draw_episode(arrays, given, key, train=c.train,
                                augmentation=c.augment,
                                image_shape=store.images.shape[1:])
      tasks.append([x.reshape(4, -1, *x.shape[1:])
                    for x in (task.support_x, task.query_x)])
    return tasks

  upright, turned, from_host = (
      np.concatenate(task, axis=1) for task in drawn(store.images[ids]))
  np.testing.assert_array_equal(turned, from_host)
  angles = [next(k for k in range(4) if (
      np.rot90(a, k, axes=(1, 2)) == b).all())
            for a, b in zip(upright, turned, strict=True)]
  assert len(set(angles)) > 1


@pytest.mark.parametrize('name, shape, line', [
    ('Greek/character03/rot090', (28, 28, 1), 'turned already .*upright'),
    ('Greek/character03', (28, 20, 1), 'are 28x20: .*squares'),
    ('Greek/rot090', (28, 28, 1), 'turned already')])
def test_classes_that_cannot_be_turned_are_refused(name, shape, line):
  store = stores.load('glyphs/tiny', 'train')._replace(
      class_names=('Greek/character02', name), images=np.zeros((1, *shape)))
  with pytest.raises(UserError, match=f'turn_classes is True, but .*{line}'):
    augment.check_turns(store)
