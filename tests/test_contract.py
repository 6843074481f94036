"""A network of the user's own that no method can use is refused."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

from mtl_jax.errors import UserError
from mtl_jax.models import contract, layers

SHAPE = (8, 8, 1)


class Network(nn.Module):
  """A dense layer and what `norm` names, features of what `last` makes."""

  norm: str = ''
  last: str = ''

  @nn.compact
  def __call__(self, images, *, train, own_statistics=None, tasks_seen=0):
    del tasks_seen
    own = train if own_statistics is None else own_statistics
    x = nn.Dense(4)(images.reshape(len(images), -1))
    if self.norm == 'flax':
      x = nn.BatchNorm(use_running_average=not train)(x)
    elif self.norm == 'flax, own_statistics':
      x = nn.BatchNorm(use_running_average=not own)(x)
    elif self.norm == 'never stored':
      x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    elif self.norm == 'stored, and not used':
      layers.BatchNorm()(x, own)
    elif self.norm == 'train for own':
      x = layers.BatchNorm()(x, train)
    elif self.norm == 'layer':
      x = nn.LayerNorm()(x)
    elif self.norm == 'ours':
      x = layers.BatchNorm()(x, own)
    if self.last == 'wrong size':
      x = x @ jnp.ones((5, 2))
    return {'half': x.astype(jnp.bfloat16), 'map': x[:, None]}.get(
        self.last, x)


@pytest.mark.parametrize('norm', ['', 'layer', 'ours'])
def test_a_network_that_keeps_the_contract_is_taken(norm):
  contract.check('mine.py', Network(norm), SHAPE)


@pytest.mark.parametrize('norm, last, line', [
    ('flax', '', 'mine.py writes running BatchNorm statistics in training'),
    ('flax, own_statistics', '', 'writes running BatchNorm statistics'),
    ('never stored', '', 'by the statistics of the batch under own_stat'),
    ('stored, and not used', '', 'ignores the stored BatchNorm statistics'),
    ('train for own', '', 'BatchNorm statistics under own_statistics=True'),
    ('', 'half', r'maps 3 images to bfloat16 \(3, 4\): .* float32 \[B, D\]'),
    ('', 'map', r'maps 3 images to float32 \(3, 1, 4\)'),
    ('', 'wrong size', r'cannot be used on images \(8, 8, 1\) \(TypeError'),
])
def test_a_network_that_breaks_it_is_refused(norm, last, line):
  """Fails if it is tested on nearly initial statistics, without a word."""
  with pytest.raises(UserError, match=line):
    contract.check('mine.py', Network(norm, last), SHAPE)
