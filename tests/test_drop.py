"""Dropout and DropBlock, against counting and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import models
from mtl_jax.algorithms import network
from mtl_jax.models import drop


def uniform(*shape):
  """Returns values in [1, 2), none of them zero."""
  return jnp.asarray(np.random.default_rng(0).uniform(1., 2., shape),
                     jnp.float32)


# Sides f of the map and b of the block; the last map is smaller than b.
MAPS = [((10, 10), 5), ((5, 5), 5), ((4, 4), 2), ((7, 4), 3), ((3, 6), 5)]
dropped = jax.jit(drop.drop_block, static_argnums=3)


@pytest.mark.parametrize('sides, block', MAPS)
def test_drop_block_blanks_whole_blocks_at_the_rate(sides, block):
  """Fails if parts of blocks are blanked, or gamma or the scale is wrong."""
  batch, width, rate = 40, 60, 0.2
  x = uniform(batch, *sides, width)
  out = np.asarray(dropped(jax.random.key(2), x, rate, block))
  blank = out == 0.
  rows, columns = (min(block, side) for side in sides)
  covered, chances = np.zeros(blank.shape, bool), np.zeros(sides)
  for i in range(sides[0] - rows + 1):
    for j in range(sides[1] - columns + 1):
      window = (slice(None), slice(i, i + rows), slice(j, j + columns))
      covered[window] |= blank[window].all((1, 2), keepdims=True)
      chances[window[1:]] += 1.
  np.testing.assert_array_equal(blank, covered)
  scale = blank.size / (~blank).sum()
  np.testing.assert_allclose(out, np.where(blank, 0., x * scale), rtol=1e-5)
  # Independent draws: a pixel is kept if none of its blocks was drawn.
  gamma = (rate / (rows * columns) * sides[0] * sides[1]
           / ((sides[0] - rows + 1) * (sides[1] - columns + 1)))
  expected = 1. - np.mean((1. - gamma) ** chances)
  assert 0.8 * rate < expected <= rate + 1e-9
  # One of batch x width draws is a map, whose spread is at most this.
  error = abs(blank.mean() - expected) / np.sqrt(
      expected * (1. - expected) / (batch * width))
  assert error < 4.
  assert len(np.unique(blank.any((1, 2)), axis=0)) == batch


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_drop_block_keeps_the_mean_and_is_linear(dtype):
  """Fails if values are counted in 8 bits, or the counting has a gradient."""
  x = jnp.ones((50, 10, 10, 32), dtype)
  mask = dropped(jax.random.key(0), x, 0.1, 5)
  assert mask.dtype == x.dtype
  assert np.mean(np.float32(mask)) == pytest.approx(1., rel=5e-3)
  grad = jax.grad(lambda x: jnp.sum(jnp.float32(dropped(
      jax.random.key(0), x, 0.1, 5))))(3. * x)
  np.testing.assert_array_equal(np.float32(grad), np.float32(mask))
  assert np.isfinite(np.float32(dropped(
      jax.random.key(0), x[:1, :5, :5, :1], 0.999, 5))).all()


def test_drop_block_mapped_over_tasks():
  """Fails if all tasks share one scale or the same blocks."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = uniform(3, 2, 4, 4, 5)
  mapped = jax.jit(jax.vmap(lambda k, x: drop.drop_block(k, x, 0.3, 2)))(
      keys, x)
  alone = [dropped(keys[t], x[t], 0.3, 2) for t in range(3)]
  np.testing.assert_allclose(mapped, np.stack(alone), rtol=1e-6)
  assert len(np.unique((mapped == 0.).reshape(3, -1), axis=0)) == 3


def test_dropout_blanks_values_at_the_rate():
  """Fails if whole channels are blanked, or the others are not rescaled."""
  x = uniform(10, 8, 8, 50)
  out = np.asarray(drop.dropout(jax.random.key(0), x, 0.1))
  blank = out == 0.
  np.testing.assert_allclose(out, np.where(blank, 0., x / 0.9), rtol=1e-6)
  assert abs(blank.mean() - 0.1) < 4. * np.sqrt(0.09 / blank.size)
  # Of 500 channels of 64 values none is blanked or kept as a whole.
  assert 0. < blank.mean((1, 2)).min() and blank.mean((1, 2)).max() < 0.5
  assert drop.dropout(jax.random.key(0), x.astype('bfloat16'),
                      0.1).dtype == 'bfloat16'


@pytest.mark.parametrize('how', [
    'running', 'running_apart', 'support', 'each_query', 'transductive',
    'episode'])
def test_no_two_images_of_a_task_drop_the_same(how):
  """Fails if query images have the noise of the support, or of each other."""
  backbone = models.create('resnet12', widths=(4, 4, 4, 4), drop_rate=0.5,
                           drop_block=1, ramp_tasks=1)
  images = jnp.repeat(jax.random.normal(jax.random.key(0), (1, 16, 16, 3)), 4,
                      axis=0)
  variables, *_ = network.init(backbone, jax.random.key(1), images)
  body = network.Body(backbone, how)
  support, query, _ = jax.jit(lambda key: network.task_pass(
      body, variables, images, images, network.Mode(True, key, 2)))(
          jax.random.key(2))
  both = np.concatenate([support, query])
  assert len(np.unique(both.round(5), axis=0)) == 8
