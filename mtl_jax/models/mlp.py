"""A fully connected network in tangent-kernel scaling.

Jacot et al. (NeurIPS 2018): parameters are standard normal and the scale of a
layer is a constant in front of it, so that gradient descent with one rate for
all parameters has a limit as the width grows. With a linear head of standard
normal weights on its features, the limit is `ntk.fully_connected`.
"""

import math

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import check_choice
from mtl_jax.models import layers


class Mlp(nn.Module):
  """Hidden layers of width m, ReLU, weight variance 2, no bias.

  images [B, ..] -> features [B, m], float32. An image is flattened and
  scaled to unit length, x; with standard normal W_l,

    h_1 = sqrt(2) W_1 x,  h_l = sqrt(2 / m) W_l relu(h_{l-1}),
    features = relu(h_depth) / sqrt(m),

  of about unit length at the start. There are no BatchNorm statistics.

  Attributes:
    width: m.
    depth: number of hidden layers.
    dtype: 'float32' or 'bfloat16', of the computation. Parameters and
      features are float32.

  Raises UserError for other values.
  """

  width: int = 1024
  depth: int = 2
  dtype: str = 'float32'

  def __post_init__(self):
    layers.check_count('width', self.width, 'mlp')
    layers.check_count('depth', self.depth, 'mlp')
    check_choice('config.model.dtype', self.dtype, layers.DTYPES)
    super().__post_init__()

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    """Returns features [B, m]; training and testing are the same."""
    del train, own_statistics, tasks_seen
    x = layers.unit_norm(images.reshape(len(images), -1)).astype(self.dtype)
    for i in range(self.depth):
      # The scale of this layer's activation goes into the weights' factor.
      fan_in = 1 if i == 0 else self.width
      kernel = self.param(f'kernel_{i}', nn.initializers.normal(1.),
                          (x.shape[-1], self.width), jnp.float32)
      x = nn.relu(x @ kernel.astype(self.dtype) * math.sqrt(2 / fan_in))
    x = x / math.sqrt(self.width)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
