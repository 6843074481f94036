"""The twelve-layer residual network of few-shot learning.

TADAM's network (Oreshkin et al., 2018) with the widths and the DropBlock of
MetaOptNet (Lee et al., 2019, section 4.1), from which RFS (Tian et al.,
2020) and MTL (Wang et al., 2021) took it. `models.from_torch` reads their
weights.
"""

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import check_choice
from mtl_jax.models import drop, layers

POOLS = ('global', 'flat')
WIDTHS = (64, 160, 320, 640)
SMALLEST = 2 ** len(WIDTHS)  # one pixel is left
SLOPE = 0.1  # of LeakyReLU below zero


class Block(nn.Module):
  """Three 3x3 convolutions and a 1x1 shortcut, then a 2x2 max pool."""

  width: int
  dtype: str

  @nn.compact
  def __call__(self, x, own):
    """Returns [B, h // 2, w // 2, width] of x [B, h, w, c]."""
    y = x
    for i in range(3):
      y = layers.Conv3x3(self.width, self.dtype, name=f'conv_{i}')(y)
      y = layers.BatchNorm(name=f'norm_{i}')(y, own, parts=i == 2)
      if i < 2:
        y = nn.leaky_relu(y, SLOPE)
    short = layers.Conv1x1(self.width, self.dtype, name='short_conv')(x)
    short = layers.BatchNorm(name='short_norm')(short, own, parts=True)
    # Pooling and LeakyReLU commute; this order touches fewer values.
    return nn.leaky_relu(
        layers.max_pool_sum(y, short).astype(self.dtype), SLOPE)


class Resnet12(nn.Module):
  """Four residual blocks; 12,424,320 parameters with three input channels.

  images [B, h, w, c] with h, w >= 16 -> features [B, D], float32. Training
  draws from the rng collection 'dropout' unless `drop_rate` is 0.

  Attributes:
    widths: channels of the four blocks.
    drop_rate: of the dropout after blocks 1 and 2, and the final rate of the
      DropBlock after blocks 3 and 4; 0 <= drop_rate < 1.
    drop_block: side of DropBlock's blocks; published are 5 for 84-pixel
      images and 2 for 32-pixel ones.
    ramp_tasks: training tasks over which DropBlock's rate rises from 0.
    pool: 'global' averages the last map, D = widths[3]; 'flat' keeps it, in
      the order row, column, channel, D = (h // 16) (w // 16) widths[3].
      PyTorch's order is channel, row, column: the same values, permuted.
    dtype: 'float32' or 'bfloat16', of the computation. Parameters, BatchNorm
      statistics and features are float32.

  Raises UserError for other values and for smaller images.
  """

  widths: tuple[int, ...] = WIDTHS
  drop_rate: float = 0.1
  drop_block: int = 5
  ramp_tasks: int = 40000
  pool: str = 'global'
  dtype: str = 'float32'

  def __post_init__(self):
    self.widths = layers.check_widths(self.widths, WIDTHS, 'resnet12')
    layers.check_count('drop_block', self.drop_block, 'resnet12')
    layers.check_count('ramp_tasks', self.ramp_tasks, 'resnet12')
    layers.check_rate('drop_rate', self.drop_rate)
    check_choice('config.model.pool', self.pool, POOLS)
    check_choice('config.model.dtype', self.dtype, layers.DTYPES)
    super().__post_init__()

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    """Returns features [B, D].

    Args:
      images: [B, h, w, c], of one episode in training.
      train: whether values are dropped.
      own_statistics: as in `models`.
      tasks_seen: [] int32 or int, training tasks before this step.
    """
    layers.check_images(images, SMALLEST, 'resnet12')
    own = train if own_statistics is None else own_statistics
    x = images
    for i, width in enumerate(self.widths):
      x = Block(width, self.dtype, name=f'block_{i}')(x, own)
      if not train or not self.drop_rate:
        continue
      key = self.make_rng('dropout')
      if i < 2:
        x = drop.dropout(key, x, self.drop_rate)
      else:
        rate = drop.ramp(self.drop_rate, tasks_seen, self.ramp_tasks)
        x = drop.drop_block(key, x, rate, self.drop_block)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.pool == 'global':
      return jnp.mean(x, axis=(1, 2))
    return x.reshape(len(x), -1)
