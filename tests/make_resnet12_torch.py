"""Writes tests/data/resnet12_torch.npz: features of PyTorch's ResNet-12.

    python tests/make_resnet12_torch.py

Only this needs PyTorch. The weights are not in the file: `state_dict` draws
them again, from a generator whose values NumPy keeps for ever.
"""

import math
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parent / 'data' / 'resnet12_torch.npz'
PUBLISHED = (64, 160, 320, 640)
SMALL = (8, 12, 16, 20)
# Per entry of the file: widths, images [B, c, h, w], pool.
CASES = {'published': (PUBLISHED, (2, 3, 32, 32), 'global'),
         'small': (SMALL, (3, 3, 35, 50), 'flat')}


def images(shape, seed=1):
  """Returns images [B, c, h, w], float32."""
  return np.random.RandomState(seed).normal(size=shape).astype(np.float32)


def state_dict(widths, channels=3, seed=0):
  """Returns {PyTorch's name: array}, statistics far from 0 and 1."""
  rng, entries = np.random.RandomState(seed), {}

  def add(layer, conv, norm, width, depth, side):
    shape = (width, depth, side, side)
    std = math.sqrt(2. / (side * side * depth))
    entries[f'{layer}.{conv}.weight'] = std * rng.normal(size=shape)
    for name, values in (('weight', rng.uniform(.5, 1.5, width)),
                         ('bias', rng.normal(0., .3, width)),
                         ('running_mean', rng.normal(0., .5, width)),
                         ('running_var', rng.uniform(.5, 3., width))):
      entries[f'{layer}.{norm}.{name}'] = values

  for i, width in enumerate(widths):
    for j in range(3):
      add(f'layer{i + 1}.0', f'conv{j + 1}', f'bn{j + 1}', width,
          width if j else channels, 3)
    add(f'layer{i + 1}.0', 'downsample.0', 'downsample.1', width, channels, 1)
    channels = width
  entries = {k: v.astype(np.float32) for k, v in entries.items()}
  counts = {k.replace('running_var', 'num_batches_tracked'): np.array(7)
            for k in entries if k.endswith('running_var')}
  return {**entries, **counts}


def block(depth, width):
  """Returns PyTorch's module of a block, named as published."""
  from torch import nn

  class Block(nn.Module):
    def __init__(self, depth, width):
      super().__init__()
      for i in (1, 2, 3):
        conv = nn.Conv2d(depth if i == 1 else width, width, 3, padding=1,
                         bias=False)
        setattr(self, f'conv{i}', conv)
        setattr(self, f'bn{i}', nn.BatchNorm2d(width))
      self.downsample = nn.Sequential(
          nn.Conv2d(depth, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
      act = lambda y: nn.functional.leaky_relu(y, 0.1)
      y = act(self.bn1(self.conv1(x)))
      y = act(self.bn2(self.conv2(y)))
      y = act(self.bn3(self.conv3(y)) + self.downsample(x))
      return nn.functional.max_pool2d(y, 2)

  return Block(depth, width)


def network(widths, pool, channels=3):
  """Returns the PyTorch module, named as published, without dropping."""
  import torch
  from torch import nn

  module = nn.Sequential()
  for i, width in enumerate(widths):
    module.add_module(f'layer{i + 1}', nn.Sequential(block(channels, width)))
    channels = width
  if pool == 'global':
    module.add_module('avgpool', nn.AdaptiveAvgPool2d(1))
  module.add_module('flatten', nn.Flatten())
  entries = state_dict(widths, next(module.parameters()).shape[1])
  module.load_state_dict({k: torch.tensor(v) for k, v in entries.items()})
  return module.eval()


def main():
  """Writes the file."""
  import torch
  features = {}
  for name, (widths, shape, pool) in CASES.items():
    with torch.no_grad():
      values = network(widths, pool)(torch.tensor(images(shape)))
    features[name] = values.numpy()
  PATH.parent.mkdir(exist_ok=True)
  np.savez_compressed(PATH, **features)


if __name__ == '__main__':
  main()
