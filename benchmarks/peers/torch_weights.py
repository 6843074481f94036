"""PyTorch's side of `benchmarks/torch_weights.py`; shares no code with it.

    ENV/bin/python benchmarks/peers/torch_weights.py write NETWORK FOLDER
    ENV/bin/python benchmarks/peers/torch_weights.py read NETWORK FOLDER FILE

`write` draws a network with random weights and statistics, saves it by
torch.save to FOLDER/weights.pth, and its features of FOLDER/images.npy
[B, c, h, w] to FOLDER/features.npy. `read` loads FILE, a safetensors file, into
the network by a strict load_state_dict, and writes its features likewise. ENV
has torch, and for `read` safetensors.
"""

import pathlib
import sys

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
  """Three convolutions beside a 1x1 one; LeakyReLU, pool."""

  def __init__(self, depth, width):
    super().__init__()
    for i in (1, 2, 3):
      setattr(self, f'conv{i}', nn.Conv2d(
          depth if i == 1 else width, width, 3, padding=1, bias=False))
      setattr(self, f'bn{i}', nn.BatchNorm2d(width))
    self.downsample = nn.Sequential(
        nn.Conv2d(depth, width, 1, bias=False), nn.BatchNorm2d(width))

  def forward(self, x):
    """Returns [B, width, h // 2, w // 2]."""
    act = nn.LeakyReLU(0.1)
    y = act(self.bn1(self.conv1(x)))
    y = act(self.bn2(self.conv2(y)))
    y = act(self.bn3(self.conv3(y)) + self.downsample(x))
    return nn.MaxPool2d(2)(y)


def resnet12(channels, widths, as_in_rfs):
  """Returns ResNet-12, with the names of RFS or those of Meta-Baseline."""
  wrap = nn.Sequential if as_in_rfs else lambda block: block
  module, depths = nn.Sequential(), (channels, *widths)
  for i, (depth, width) in enumerate(zip(depths, widths, strict=False)):
    module.add_module(f'layer{i + 1}', wrap(Block(depth, width)))
  return module.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())


def cnn4(channels, width):
  """Returns CNN-4 as `encoder` of a ProtoNet."""
  block = lambda depth: nn.Sequential(
      nn.Conv2d(depth, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
      nn.MaxPool2d(2))
  module = nn.Sequential()
  module.add_module('encoder', nn.Sequential(
      block(channels), *(block(width) for _ in range(3)), nn.Flatten()))
  return module


NETWORKS = {
    'resnet12': lambda c, read: resnet12(c, (64, 160, 320, 640), True),
    'resnet12_narrow': lambda c, read: resnet12(c, (64, 128, 256, 512), read),
    'conv4': lambda c, read: cnn4(c, 64),
    'conv4_32': lambda c, read: cnn4(c, 32)}


def shake(module):
  """Draws all weights and statistics, away from special values."""
  torch.manual_seed(0)
  with torch.no_grad():
    for part in module.modules():
      if isinstance(part, nn.Conv2d):
        nn.init.kaiming_normal_(part.weight)
        if part.bias is not None:
          part.bias.normal_(0., 0.3)
      elif isinstance(part, nn.BatchNorm2d):
        part.weight.uniform_(0.5, 1.5)
        part.bias.normal_(0., 0.3)
        part.running_mean.normal_(0., 0.5)
        part.running_var.uniform_(0.5, 3.)


def main(argv):
  """Runs the command line."""
  task, network, folder, *file = argv
  folder = pathlib.Path(folder)
  images = torch.tensor(np.load(folder / 'images.npy'))
  # What --mode=export writes has the names of RFS.
  module = NETWORKS[network](images.shape[1], task == 'read')
  if task == 'write':
    shake(module)
    torch.save({'epoch': 1, 'state_dict': {
        f'module.{name}': value for name, value in module.state_dict().items()
    }}, folder / 'weights.pth')
  else:
    from safetensors.torch import load_file
    module.load_state_dict(load_file(file[0]), strict=True)
  with torch.no_grad():
    features = module.eval()(images)
  np.save(folder / 'features.npy', features.numpy())


if __name__ == '__main__':
  main(sys.argv[1:])
