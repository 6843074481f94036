"""Dropout, DropBlock and the schedule of its rate."""

import math

import jax
import jax.numpy as jnp
from jax import lax


def ramp(rate, tasks_seen, ramp_tasks):
  """Returns `rate` times the share of the ramp that has passed, [] float32."""
  part = jnp.asarray(tasks_seen, jnp.float32) / ramp_tasks
  return rate * jnp.clip(part, 0., 1.)


def dropout(key, x, rate):
  """Blanks single values of x with probability rate < 1, scales the others."""
  return jnp.where(_draw(key, 1. - rate, x.shape), x / (1. - rate), 0.)


def _draw(key, probability, shape):
  """Returns `shape` booleans."""
  # In one dimension for the reason given in layers.kernel_init.
  return jax.random.bernoulli(key, probability,
                              (math.prod(shape),)).reshape(shape)


def drop_block(key, x, rate, block):
  """Blanks square blocks of single channels (Ghiasi et al., 2018).

  A Bernoulli draw per place where a whole block fits decides whether the
  block is blanked, with probability
  gamma = rate / b^2 f^2 / (f - b + 1)^2, b the block's side and f the map's:
  about `rate` of the values are blanked, fewer where blocks overlap. What is
  kept is scaled by the number of all values over that of the kept ones,
  counted over the whole of x: the images of one episode.

  The published code of RFS, MetaOptNet and MTL draws the same places but
  mixes up its indices, and mostly blanks a part of each block only: .07 to
  .08 instead of nearly .1 of the values. That is not copied.

  Args:
    key: of the draws.
    x: [B, h, w, c].
    rate: [] float32 or float, 0 <= rate < 1.
    block: b; a shorter side of the map takes its place.

  Returns:
    [B, h, w, c], of x's dtype; the counting is float32. Linear in x.
  """
  sides = x.shape[1:3]
  blocks = [min(block, side) for side in sides]
  places = [side - b + 1 for side, b in zip(sides, blocks, strict=True)]
  gamma = (rate * sides[0] * sides[1]
           / (blocks[0] * blocks[1] * places[0] * places[1]))
  corners = _draw(key, gamma, (len(x), *places, x.shape[3]))
  kept = ~_blocks(corners, blocks)
  # A whole tensor can be blanked where it is tiny.
  scale = kept.size / jnp.maximum(jnp.sum(kept, dtype=jnp.float32), 1.)
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return jnp.where(kept, wide * scale, 0.).astype(x.dtype)


def _blocks(corners, blocks):
  """Returns [B, h, w, c], true in the block below and right of a corner."""
  pads = [(0, 0), *((b - 1, b - 1) for b in blocks), (0, 0)]
  return lax.reduce_window(corners, False, lax.bitwise_or, (1, *blocks, 1),
                           (1, 1, 1, 1), pads)
