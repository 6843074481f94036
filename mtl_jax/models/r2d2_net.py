"""The network of R2D2 (Bertinetto et al., ICLR 2019, section 4.2 and code).

Wider than conv4 towards the end, and the head sees the last two blocks. Biases
in front of BatchNorm are left out, as in conv4, and BatchNorm's scale starts
at one, where the PyTorch of the time drew it from U(0, 1).
"""

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import check_choice
from mtl_jax.models import drop, layers

WIDTHS = (96, 192, 384, 512)
SLOPE = 0.1  # of LeakyReLU below zero
SMALLEST = 16  # two pixels are left for the pools of stride 1


class R2d2Net(nn.Module):
  """Four blocks of convolution, BatchNorm, 2x2 max pool and LeakyReLU.

  images [B, h, w, c] with h, w >= 16 -> features [B, D], float32: the third
  block's map, pooled again, followed by the fourth's, both by pools of stride
  1; D = (h // 8 - 1) (w // 8 - 1) (widths[2] + widths[3]),
  72,576 at 84x84. Training draws from the rng collection 'dropout' unless
  `drop_rate` is 0.

  Attributes:
    widths: channels of the four blocks; the published small one is 64 each.
    drop_rate: of the dropout after blocks 3 and 4: 0.1 on mini-ImageNet, 0.4
      on CIFAR-FS, 0 on Omniglot.
    dtype: 'float32' or 'bfloat16', of the computation. Parameters, BatchNorm
      statistics and features are float32.

  Raises UserError for other values and for smaller images.
  """

  widths: tuple[int, ...] = WIDTHS
  drop_rate: float = 0.1
  dtype: str = 'float32'

  def __post_init__(self):
    self.widths = layers.check_widths(self.widths, WIDTHS, 'r2d2_net')
    layers.check_rate('drop_rate', self.drop_rate)
    check_choice('config.model.dtype', self.dtype, layers.DTYPES)
    super().__post_init__()

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    """Returns features [B, D]; the keywords as in `models`."""
    del tasks_seen  # nothing changes in the course of training
    layers.check_images(images, SMALLEST, 'r2d2_net')
    own = train if own_statistics is None else own_statistics
    short_pool = lambda x: nn.max_pool(x, (2, 2), (1, 1))
    x, seen = images, []
    for i, width in enumerate(self.widths):
      x = layers.Conv3x3(width, self.dtype, name=f'conv_{i}')(x)
      norm = layers.BatchNorm(name=f'norm_{i}')
      x = nn.leaky_relu(
          layers.max_pool_sum(norm(x, own, parts=True)).astype(x.dtype)
          if i < 3 else short_pool(norm(x, own)), SLOPE)
      if i > 1:
        if train and self.drop_rate:
          x = drop.dropout(self.make_rng('dropout'), x, self.drop_rate)
        seen.append(short_pool(x) if i == 2 else x)
    flat = jnp.concatenate([x.reshape(len(x), -1) for x in seen], -1)
    return flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
