"""3x3 convolutions by Winograd's algorithm F(2x2, 3x3) (Lavin & Gray, 2016).

A tile of 2x2 values of a convolution is made of 4x4 pixels: 36 products of
pixels and weights per channel and feature. Where pixels, weights and values are
transformed first, it is made of 16, one for each place of the transformed tile.
So a convolution is 16 products of matrices [P, c] [c, d], where P is the number
of tiles, with 2.25 times fewer multiplications.

The transforms add, subtract and halve, so float32 stays exact to its round-off.
In bfloat16 the sums of pixels would be rounded.
"""

import jax.numpy as jnp
from jax import lax


def conv(images, kernel, turned=False):
  """Returns the 3x3 convolution, stride 1, zero padding 'SAME'.

  Args:
    images: [B, h, w, c].
    kernel: [3, 3, c, d], or [3, 3, d, c] if turned.
    turned: whether the convolution is the gradient of another one's images,
      whose kernel this is.

  Returns:
    [B, h, w, d].
  """
  batch, height, width, _ = images.shape
  weights = _both(_of_weights, [list(row) for row in kernel])
  if turned:
    # A kernel from its end has the first and last place exchanged. It is not
    # transposed: the products sum over its other axis.
    weights = [[row[i] for i in (3, 1, 2, 0)]
               for row in (weights[i] for i in (3, 1, 2, 0))]
  sums_over = (((1,), (1 if turned else 0,)), ((), ()))
  products = [[lax.dot_general(*factors, sums_over)
               for factors in zip(*rows, strict=True)]
              for rows in zip(_in_tiles(images), weights, strict=True)]
  tiles = _both(_to_values, products)
  features = tiles[0][0].shape[-1]
  tiles = jnp.stack([jnp.stack([value.reshape(
      batch, -(-height // 2), -(-width // 2), features) for value in row], 3)
                     for row in tiles], 2)
  values = tiles.reshape(batch, 2 * tiles.shape[1], -1, features)
  return values[:, :height, :width]


def kernel_gradient(images, grads):
  """Returns sum over images and pixels p of images[p + shift] grads[p]^T.

  Args:
    images: [B, h, w, c].
    grads: [B, h, w, d], the gradient of the convolution's value.

  Returns:
    [3, 3, c, d], the gradient of the kernel.
  """
  # As conv pads them for the gradient of the images, so that both read one
  # array.
  corners = [row[1:3] for row in _places(grads)[1:3]]
  products = [[pixels.T @ grad for pixels, grad in zip(*rows, strict=True)]
              for rows in zip(_in_tiles(images), _both(_of_values, corners),
                              strict=True)]
  return jnp.stack([jnp.stack(row) for row in _both(_to_kernel, products)])


def _both(transform, tile):
  """Applies a transform to rows and columns of a list of lists."""
  columns = [transform(*column) for column in zip(*tile, strict=True)]
  return [transform(*row) for row in zip(*columns, strict=True)]


def _in_tiles(images):
  """Returns 4x4 arrays [P, c]: the transformed places of all tiles."""
  return _both(_of_pixels, _places(images))


def _places(images):
  """Returns 4x4 arrays [P, c]: the places of all tiles, zero outside."""
  _, height, width, channels = images.shape
  padded = jnp.pad(images, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2),
                            (0, 0)))
  return [[padded[:, i:i + height:2, j:j + width:2].reshape(-1, channels)
           for j in range(4)] for i in range(4)]


# The four transforms of Lavin & Gray, of one dimension: B^T, G, A^T, and A and
# G^T for the kernel's gradient.
def _of_pixels(a, b, c, d):
  return a - c, b + c, c - b, b - d


def _of_weights(a, b, c):
  outer, inner = 0.5 * (a + c), 0.5 * b
  return a, outer + inner, outer - inner, c


def _to_values(a, b, c, d):
  return a + b + c, b - c - d


def _of_values(a, b):
  return a, a + b, a - b, -b


def _to_kernel(a, b, c, d):
  outer = 0.5 * (b + c)
  return a + outer, 0.5 * (b - c), outer + d
