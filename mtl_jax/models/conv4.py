"""The four-block convolutional network of few-shot learning.

Vinyals et al. (2016), and with it MAML (Finn et al., 2017) and ProtoNet
(Snell et al., 2017). Their convolutions have a bias; ours do not, like
MetaOptNet's. BatchNorm subtracts what a bias adds, so a bias changes no output
and its true gradient is zero. An adaptive optimizer such as Adam would amplify
the rounding errors of that gradient.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import check_choice
from mtl_jax.models import layers

POOLS = ('flat', 'global')
EDGES = ('valid', 'same')
BLOCKS = 4
SMALLEST = 2 ** BLOCKS  # one pixel is left


class Conv4(nn.Module):
  """Four blocks of convolution, BatchNorm, ReLU and 2x2 max pool.

  images [B, h, w, c] with h, w >= 16 -> features [B, D], float32.

  Attributes:
    width: channels of every block.
    pool: 'flat' keeps the last map, D = width (h // 16) (w // 16); 'global'
      averages it, D = width.
    pool_edges: what the max pool does with an odd last row or column: 'valid'
      leaves it out; 'same' pools it alone (TensorFlow's padding of that name),
      so that D = width ceil(h / 16) ceil(w / 16) for 'flat'.
    dtype: 'float32' or 'bfloat16', of the computation. Parameters, BatchNorm
      statistics and features are float32.

  Raises UserError for other values and for smaller images.
  """

  width: int = 64
  pool: str = 'flat'
  dtype: str = 'float32'
  pool_edges: str = 'valid'

  blocks = BLOCKS  # no option: a subclass may have another number

  def __post_init__(self):
    layers.check_count('width', self.width, 'conv4')
    check_choice('config.model.pool', self.pool, POOLS)
    check_choice('config.model.pool_edges', self.pool_edges, EDGES)
    check_choice('config.model.dtype', self.dtype, layers.DTYPES)
    super().__post_init__()

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    """Returns features [B, D]; the keywords as in `models`."""
    del tasks_seen  # nothing changes in the course of training
    own = train if own_statistics is None else own_statistics
    layers.check_images(images, SMALLEST, 'conv4')
    x = images
    for i in range(self.blocks):
      x = layers.Conv3x3(self.width, self.dtype, name=f'conv_{i}')(x)
      norm = layers.BatchNorm(name=f'norm_{i}')
      # Pooling and ReLU commute; this order touches a quarter of the values.
      x = nn.relu(
          layers.max_pool_sum(norm(x, own, parts=True)).astype(x.dtype)
          if self.pool_edges == 'valid'
          else layers.max_pool(_even(norm(x, own))))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.pool == 'global':
      return jnp.mean(x, axis=(1, 2))
    return x.reshape(len(x), -1)


def _even(x):
  """Repeats an odd last row or column, which changes no maximum."""
  for axis in (1, 2):
    if x.shape[axis] % 2:
      last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
      x = jnp.concatenate([x, last], axis)
  return x
