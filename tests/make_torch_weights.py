"""Writes tests/data/torch_weights.zip: files of weights that PyTorch wrote.

    python tests/make_torch_weights.py

Only this needs PyTorch. Beside the files it writes the features that PyTorch's
networks have of `images`.
"""

import argparse
import io
import pathlib
import zipfile

import make_resnet12_torch
import numpy as np

PATH = pathlib.Path(__file__).parent / 'data' / 'torch_weights.zip'
WIDTHS = {'cnn4.pth': (3,) * 4, 'resnet12.pth.tar': (2, 3, 4, 5)}
SHAPE = (3, 3, 33, 37)


def images():
  """Returns images [B, c, h, w], float32."""
  return np.random.RandomState(2).normal(size=SHAPE).astype(np.float32)


def cnn4(width):
  """Returns ProtoNet's network, with biases, and a classifier beside it."""
  from torch import nn
  block = lambda depth: nn.Sequential(
      nn.Conv2d(depth, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
      nn.MaxPool2d(2))
  module = nn.Sequential()
  module.add_module('encoder', nn.Sequential(
      block(3), block(width), block(width), block(width), nn.Flatten()))
  module.add_module('classifier', nn.Linear(width * 4, 7))
  return module


def resnet12(widths):
  """Returns the network of Meta-Baseline: blocks without a Sequential."""
  from torch import nn
  encoder = nn.Sequential()
  for i, (depth, width) in enumerate(zip((3, *widths), widths, strict=False)):
    encoder.add_module(f'layer{i + 1}', make_resnet12_torch.block(depth, width))
  encoder.add_module('pool', nn.AdaptiveAvgPool2d(1))
  encoder.add_module('flatten', nn.Flatten())
  return nn.Sequential().append(encoder)


def shaken(module, seed):
  """Returns a module whose statistics and BatchNorms are random too."""
  import torch
  torch.manual_seed(seed)
  for part in module.modules():
    if isinstance(part, torch.nn.BatchNorm2d):
      with torch.no_grad():
        part.weight.uniform_(0.5, 1.5)
        part.bias.normal_(0., 0.3)
        part.running_mean.normal_(0., 0.5)
        part.running_var.uniform_(0.5, 3.)
        part.num_batches_tracked.fill_(9)
  return module.eval()


def main():
  """Writes the file."""
  import torch
  torch.manual_seed(2)
  small = shaken(cnn4(WIDTHS['cnn4.pth'][0]), 0)
  residual = shaken(resnet12(WIDTHS['resnet12.pth.tar']), 1)
  state = small.state_dict()
  module = lambda prefix, entries: {
      f'{prefix}{name}': value for name, value in entries.items()}
  contents = {
      'cnn4.pth': {
          'opt': argparse.Namespace(rate=0.1, gpu='0'), 'epoch': 3,
          'best': np.float64(0.5), 'model': module('module.', state),
          'optimizer': torch.optim.Adam(small.parameters()).state_dict()},
      'resnet12.pth.tar': residual.state_dict(),
      'bfloat16.pt': {k: v.bfloat16() if v.is_floating_point() else v
                      for k, v in state.items()},
      'half.pt': {k: v.half() if v.is_floating_point() else v
                  for k, v in state.items()},
      'parameters.pt': dict(small.named_parameters()),
      'transposed.pt': {'x': torch.arange(6.).reshape(2, 3).T[1:]},
      'a module.pt': torch.nn.Sequential(torch.nn.ReLU()),
      'a list.pt': [torch.zeros(2)]}
  files = {}
  for name, content in contents.items():
    torch.save(content, file := io.BytesIO())
    files[name] = file.getvalue()
  torch.save({'x': torch.zeros(2)}, file := io.BytesIO(),
             _use_new_zipfile_serialization=False)
  files['of old.pth'] = file.getvalue()
  torch.jit.save(torch.jit.script(torch.nn.ReLU()), file := io.BytesIO())
  files['a script.pt'] = file.getvalue()
  features = {}
  with torch.no_grad():
    x = torch.tensor(images())
    features['cnn4.pth'] = small.encoder(x).numpy()
    features['resnet12.pth.tar'] = residual(x).numpy()
  np.savez(file := io.BytesIO(), **features)
  files['features.npz'] = file.getvalue()
  with zipfile.ZipFile(PATH, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      entry = zipfile.ZipInfo(name)  # without the time
      archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)


if __name__ == '__main__':
  main()
