"""Layers that backbones are made of.

BatchNorm's contract in this library: one episode is one batch. In training,
and where a method wants a task's own statistics (`own`), a layer normalises
with the statistics of its batch and writes exactly those to the collection
'batch_stats' ('mean' and 'var', float32, [c]); it never averages over time.
The training step does that: it merges the T tasks of a step into the running
statistics at once (decay 0.9^T), which depends neither on the order of the
tasks nor on the number of devices. Otherwise the stored statistics are read.

Convolution and pooling compute what Flax's layers compute. They are stated
differently because XLA's own gradients of both are slow on a CPU;
`benchmarks/layers.py` measures the difference.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mtl_jax.errors import UserError
from mtl_jax.models import winograd

EPSILON = 1e-5  # added to BatchNorm's variance
DTYPES = ('float32', 'bfloat16')
# Patches that stay in a core's cache, in numbers; pixels that a block should
# have.
_BLOCK, _PIXELS = 2 ** 20, 512
# From so many channels times features and pixels of a batch on, Winograd's
# algorithm is faster: fewer pixels do not pay for transforming the kernel.
_WIDE, _MANY = 10 ** 4, 256


def kernel_init(key, shape, dtype=jnp.float32):
  """Draws a kernel [k, k, c, d] or [c, d]: normal, std sqrt(2 / (k^2 d)).

  He et al. (2015), fan out, gain sqrt(2): the initial values of MTL,
  MetaOptNet and RFS.
  """
  std = math.sqrt(2. * shape[-2] / math.prod(shape))
  # Drawing in one dimension compiles six times as fast on a CPU, and gives
  # the same values.
  values = jax.random.normal(key, (math.prod(shape),), dtype)
  return (std * values).reshape(shape)


def unit_norm(x):
  """Returns x / |x| along the last axis; zero (gradient too) where x is."""
  squares = jnp.sum(x ** 2, axis=-1, keepdims=True)
  # The inner `where` keeps the unused branch from a division by zero.
  safe = jnp.where(squares > 0, squares, 1.)
  return jnp.where(squares > 0, x * lax.rsqrt(safe), 0.)


def conv3x3(images, kernel):
  """Returns the 3x3 convolution, stride 1, zero padding 'SAME'.

  Args:
    images: [B, h, w, c].
    kernel: [3, 3, c, d], of the same dtype.

  Returns:
    [B, h, w, d]. Differentiable in reverse mode any number of times, and
    batchable along either argument; forward mode (jax.jvp, jax.jacfwd,
    jax.hessian) is not available: take Hessian products by jax.vjp of
    jax.grad.
  """
  # The choice surrounds the convolution rather than its gradient, so that
  # on accelerators vmap and grad see a plain one, and the gradient of a
  # kernel that mapped tasks share stays a single convolution.
  return lax.platform_dependent(images, kernel, cpu=_conv_by_products,
                                default=_conv)


def _conv(images, kernel):
  return lax.conv_general_dilated(
      images, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO',
                                                         'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_by_products(images, kernel, turned=False):
  """As _conv, or the gradient of its images if turned; see winograd.conv."""
  if _by_winograd(images, math.prod(kernel.shape[2:])):
    return winograd.conv(images, kernel, turned)
  return _conv(images, _turned(kernel) if turned else kernel)


def _by_winograd(images, width):
  """Returns whether Winograd's algorithm is exact, and faster."""
  return (images.dtype != jnp.bfloat16 and width >= _WIDE
          and math.prod(images.shape[:3]) >= _MANY)


@jax.custom_vjp
def _kernel_gradient(images, grads):
  """As winograd.kernel_gradient, by patches where these are faster."""
  batch, height, width, channels = images.shape
  features = grads.shape[-1]
  if _by_winograd(images, channels * features):
    return winograd.kernel_gradient(images, grads)
  count, rows = _blocks(batch, height, width, channels)
  parts = -(-batch // count)
  # Images of zeros, which add nothing, fill the last block.
  rest = ((0, parts * count - batch),)
  padded = jnp.pad(images, (*rest, (1, 1), (1, 1), (0, 0)))
  grads = jnp.pad(grads, (*rest, (0, 0), (0, 0), (0, 0)))
  dtype = jnp.promote_types(grads.dtype, jnp.float32)
  # A product is fastest with the longer rows on its right.
  order = (lambda *pair: pair) if features <= 9 * channels else (
      lambda *pair: pair[::-1])

  def of_block(block):
    image, row = (block // (height // rows) * count,
                  block % (height // rows) * rows)
    part = lax.dynamic_slice(padded, (image, row, 0, 0),
                             (count, rows + 2, width + 2, channels))
    # Without its axis, one image is put together a sixth faster.
    part = part[0] if count == 1 else part
    patches = jnp.concatenate([part[..., i:i + rows, j:j + width, :]
                               for i in range(3) for j in range(3)], axis=-1)
    grad = lax.dynamic_slice(grads, (image, row, 0, 0),
                             (count, rows, width, features))
    left, right = order(grad.reshape(-1, features),
                        patches.reshape(-1, 9 * channels))
    return jnp.dot(left.T, right, preferred_element_type=dtype)

  blocks = parts * (height // rows)
  if blocks == 1:
    total = of_block(0)
  else:
    total, _ = lax.scan(lambda total, block: (total + of_block(block), None),
                        jnp.zeros(order(features, 9 * channels), dtype),
                        jnp.arange(blocks))
  total = total if features > 9 * channels else total.T
  return total.reshape(3, 3, channels, features).astype(grads.dtype)


def _blocks(batch, height, width, channels):
  """Returns (images, rows) of a block of patches.

  A block stays in the cache where it can: all patches at once would go through
  memory nine times. But it has some hundred pixels at least, since the sum over
  blocks, as large as the kernel, is read and written with each of them.
  """
  if height * width < _PIXELS:
    blocks = -(-batch // (_PIXELS // (height * width)))
    return -(-batch // blocks), height
  most = max(_BLOCK // (9 * channels), _PIXELS) // width
  return 1, max(rows for rows in range(1, height + 1)
                if height % rows == 0 and rows <= max(most, 1))


def _turned(kernel):
  return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


# The value is bilinear, so these two functions are all derivatives. The forward
# rule is differentiated too, in a gradient of a gradient: were it the plain
# convolution, its kernel's gradient there would be XLA's.
_conv_by_products.defvjp(
    lambda images, kernel, turned: (
        _conv_by_products(images, kernel, turned), (images, kernel)),
    lambda turned, saved, grads: (
        _conv_by_products(grads, saved[1], not turned),
        _kernel_gradient(grads, saved[0]) if turned
        else _kernel_gradient(saved[0], grads)))
_kernel_gradient.defvjp(
    lambda images, grads: (_kernel_gradient(images, grads), (images, grads)),
    lambda saved, kernel: (_conv_by_products(saved[1], kernel, True),
                           _conv_by_products(saved[0], kernel)))


def max_pool(images):
  """Returns the 2x2 max pool, stride 2; an odd last row or column is left out.

  Args:
    images: [B, h, w, c].

  Returns:
    [B, h // 2, w // 2, c]. Among equal values the first in row-major order
    gets the whole gradient, as in PyTorch; a NaN stays. Differentiable in
    reverse mode any number of times.
  """
  images = _in_pairs(images)
  return _pick(images, _argmax(lax.stop_gradient(images)))


def max_pool_sum(*terms):
  """Returns max_pool of a sum of Normalised; only the maxima are normalised.

  That saves passes over the values, in the gradient above all: what goes back
  through BatchNorm's scale and shift is read from the maxima.

  Args:
    *terms: Normalised, of values [B, h, w, c].

  Returns:
    [B, h // 2, w // 2, c], float32.
  """
  return lax.platform_dependent(*terms, tpu=_max_of_sum,
                                default=_sum_at_maxima)


def _sum_at_maxima(*terms):
  """As max_pool_sum; each term is picked at the place of the maximum."""
  place = _argmax(lax.stop_gradient(_in_pairs(sum(t.whole() for t in terms))))
  return sum(t._replace(values=_pick(_in_pairs(t.values), place)).whole()
             for t in terms)


def _max_of_sum(*terms):
  """As max_pool_sum; the sum itself is picked.

  A TPU writes the sum to memory in any case, to bfloat16 in half of the time.
  There the gradient of a pool is written, too: this way it is one for all
  terms, and reductions over all values are a part of the convolution before.
  """
  whole = sum(t.whole() for t in terms)
  return max_pool(whole.astype(terms[0].values.dtype)).astype(whole.dtype)


def _in_pairs(images):
  """Leaves out an odd last row or column."""
  return images[:, :images.shape[1] // 2 * 2, :images.shape[2] // 2 * 2]


def _corners(images):
  return [images[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def _argmax(images):
  """Returns the place 0..3 of each window's first maximum, int8."""
  best, *others = _corners(images)
  place = jnp.zeros(best.shape, jnp.int8)
  for i, other in enumerate(others, 1):
    # The second comparison lets a NaN win, the third keeps the first one.
    wins = ((other > best) | (other != other)) & (best == best)
    best = jnp.where(wins, other, best)
    place = jnp.where(wins, jnp.int8(i), place)
  return lax.platform_dependent(place, cpu=_kept, default=lambda place: place)


def _kept(place):
  """Returns place by way of a root, whose value XLA keeps.

  What is cheap, XLA computes anew wherever it is read. Here that would be all
  four values of a window for each of its pixels. A root is not cheap to it.
  """
  # A quarter more, so that no round-off takes the root below the place.
  return lax.sqrt(place * place + jnp.float32(0.25)).astype(jnp.int8)


@jax.custom_vjp
def _pick(images, place):
  """Returns the value at `place` of each window, [B, h/2, w/2, c]."""
  picked, *others = _corners(images)
  for i, other in enumerate(others, 1):
    picked = jnp.where(place == i, other, picked)
  return picked


@jax.custom_vjp
def _spread(values, place):
  """Returns images [B, h, w, c] with each value at its place, else zero."""
  def repeat(x):
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None],
                            (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)

  places = repeat(place)
  row = lax.broadcasted_iota(jnp.int8, places.shape, 1) % 2
  column = lax.broadcasted_iota(jnp.int8, places.shape, 2) % 2
  return jnp.where(places == 2 * row + column, repeat(values), 0.)


# Both are linear, and each is the other's transpose. That takes one comparison
# per pixel; the gradient of slices would be four padded sums.
_pick.defvjp(lambda images, place: (_pick(images, place), place),
             lambda place, grads: (_spread(grads, place), None))
_spread.defvjp(lambda values, place: (_spread(values, place), place),
               lambda place, grads: (_pick(grads, place), None))


class Conv3x3(nn.Module):
  """3x3 convolution [B, h, w, c] -> [B, h, w, width], without bias."""

  width: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images):
    """Returns the convolution of images [B, h, w, c], in `dtype`."""
    kernel = self.param('kernel', kernel_init,
                        (3, 3, images.shape[-1], self.width), jnp.float32)
    return conv3x3(images.astype(self.dtype), kernel.astype(self.dtype))


class Conv1x1(nn.Module):
  """1x1 convolution [B, h, w, c] -> [B, h, w, width], without bias."""

  width: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, images):
    """Returns the convolution of images [B, h, w, c], in `dtype`."""
    kernel = self.param('kernel', kernel_init,
                        (images.shape[-1], self.width), jnp.float32)
    return lax.platform_dependent(
        images.astype(self.dtype), kernel.astype(self.dtype),
        cpu=_product, default=lambda images, kernel: _conv(
            images, kernel[None, None]))


def _product(images, kernel):
  """Returns [B, h, w, c] times [c, d]; in two dimensions, fast on a CPU."""
  *batch, channels = images.shape
  return (images.reshape(-1, channels) @ kernel).reshape(
      *batch, kernel.shape[-1])


class Normalised(NamedTuple):
  """values * factor + shift, not computed yet; float32."""

  values: Any  # [.., c]
  factor: Any  # [c]
  shift: Any  # [c]

  def whole(self):
    """Returns the normalised values."""
    dtype = jnp.promote_types(self.values.dtype, jnp.float32)
    return self.values.astype(dtype) * self.factor + self.shift


class BatchNorm(nn.Module):
  """Batch normalisation (Ioffe & Szegedy, 2015), see the contract above.

  The variance is the biased one, of the values as they are (PyTorch stores
  the unbiased one). Statistics and normalisation are float32; the result
  has the dtype of the input.
  """

  @nn.compact
  def __call__(self, x, own, parts=False):
    """Returns x [.., c] normalised by its own or the stored statistics.

    Args:
      x: values.
      own: whether statistics are its own.
      parts: whether to return Normalised, for max_pool_sum.
    """
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    stored = (
        self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32),
        self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32))
    values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if own:
      mean, var = batch_statistics(values)
      if not self.is_initializing():
        stored[0].value, stored[1].value = mean, var
    else:
      mean, var = stored[0].value, stored[1].value
    # One multiplication and one addition per value.
    factor = scale * lax.rsqrt(var + EPSILON)
    found = Normalised(x, factor, bias - mean * factor)
    return found if parts else found.whole().astype(x.dtype)


def batch_statistics(x):
  """Returns mean and biased variance [c] of [.., c], in one pass over x."""
  axes = tuple(range(x.ndim - 1))
  mean = jnp.mean(x, axes)
  return mean, jnp.maximum(jnp.mean(x * x, axes) - mean * mean, 0.)


def check_images(images, smallest, model):
  """Raises UserError for images that a model's pooling would use up."""
  if min(images.shape[1:3]) < smallest:
    raise UserError(
        f'images are {images.shape[1]}x{images.shape[2]}: config.model.name '
        f'{model!r} needs at least {smallest}x{smallest}')


def check_widths(widths, published, model):
  """Returns config.model.widths as a tuple; raises UserError for other ones."""
  if not isinstance(widths, tuple | list) or len(widths) != len(published):
    raise UserError(f'config.model.widths is {widths!r}: {model} needs '
                    f'{len(published)} of them, such as {published}')
  for width in widths:
    check_count('widths', width, model)
  return tuple(widths)


def check_rate(field, value):
  """Raises UserError unless config.model.<field> is a number in [0, 1)."""
  if (isinstance(value, bool) or not isinstance(value, float | int)
      or not 0 <= value < 1):
    raise UserError(f'config.model.{field} is {value!r}: must be at least 0 '
                    'and below 1')


def check_count(field, value, model):
  """Raises UserError unless config.model.<field> is a whole number >= 1."""
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise UserError(f'config.model.{field} is {value!r}: {model} needs a '
                    'whole number of at least 1')
