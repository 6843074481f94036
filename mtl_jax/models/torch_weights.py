"""Convert published ResNet-12 weights from PyTorch's names and layouts.

RFS, MetaOptNet and MTL name the entries of their networks alike and wrap
them differently. This file does not need PyTorch; reading the weights does.
"""

import collections.abc
import re

import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models import resnet12

_ENTRY = re.compile(r'(|.*\.)(layer\d+\.\d+\..+)')
_EXAMPLE = 'layer1.0.conv1.weight'


def from_torch(state_dict, *, widths=resnet12.WIDTHS, channels=3):
  """Returns the variables of `Resnet12` with PyTorch's weights.

      checkpoint = torch.load(path, map_location='cpu')
      variables = models.from_torch(checkpoint)
      features = model.apply(variables, images, train=False)

  The features are PyTorch's up to rounding; those of pool 'flat' in the
  order row, column, channel instead of its channel, row, column.

  Args:
    state_dict: mapping of names to tensors or arrays, as `torch.load` gives
      it: bare, with prefixes ('module.', 'features.'), or below other keys
      ('model', 'embedding', 'state_dict'). Heads, classifiers and all else
      beside the network are left out.
    widths: as in the model's options.
    channels: of the images.

  Returns:
    {'params': .., 'batch_stats': ..} of numpy arrays, float32.

  Raises UserError that names the entry which is missing, has another shape,
  is not finite, or belongs to another network.
  """
  entries = _network(state_dict)
  params, stats = {}, {}
  for i, width in enumerate(widths):
    block = _block(entries, f'layer{i + 1}.0.', channels, width)
    params[f'block_{i}'], stats[f'block_{i}'] = block
    channels = width
  unknown = [k for k in entries if not k.endswith('.num_batches_tracked')]
  if unknown:
    raise UserError(f'state_dict has {unknown[0]}: it belongs to another '
                    'network than ResNet-12')
  return {'params': params, 'batch_stats': stats}


def _network(state_dict):
  """Returns {name: value} of the one network in the mapping, unwrapped."""
  networks = {}
  for name, value in _leaves(state_dict):
    match = _ENTRY.fullmatch(name)
    if match:
      networks.setdefault(match[1], {})[match[2]] = value
  if not networks:
    raise UserError(f'state_dict has no {_EXAMPLE}: it is not of a ResNet-12 '
                    'of RFS, MetaOptNet or MTL')
  # Lightning modules hold one network under several names.
  (first, network), *others = networks.items()
  for prefix, other in others:
    if not _same(network, other):
      raise UserError(f'state_dict has two networks, {first}{_EXAMPLE} and '
                      f'{prefix}{_EXAMPLE}: pass the part of one')
  return network


def _leaves(tree, prefix=''):
  """Yields (dotted name, value) of nested mappings."""
  for key, value in tree.items():
    if isinstance(value, collections.abc.Mapping):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _same(network, other):
  return network.keys() == other.keys() and all(
      np.array_equal(_array(network[k]), _array(other[k])) for k in network)


def _array(value):
  # The methods of a tensor, which may be on a GPU, trainable or bfloat16.
  if hasattr(value, 'detach'):
    value = value.detach().cpu().float()
  return np.asarray(value, np.float32)


def _block(entries, layer, channels, width):
  """Takes a block's entries; returns its parameters and statistics."""
  parts = [(f'conv{j + 1}', f'bn{j + 1}', f'conv_{j}', f'norm_{j}',
            (width, width if j else channels, 3, 3)) for j in range(3)]
  parts.append(('downsample.0', 'downsample.1', 'short_conv', 'short_norm',
                (width, channels, 1, 1)))
  params, stats = {}, {}
  for conv, norm, our_conv, our_norm, shape in parts:
    kernel = _take(entries, f'{layer}{conv}.weight', shape)
    kernel = kernel.transpose(2, 3, 1, 0)
    params[our_conv] = {'kernel': kernel if shape[-1] == 3 else kernel[0, 0]}
    params[our_norm] = {
        'scale': _take(entries, f'{layer}{norm}.weight', (width,)),
        'bias': _take(entries, f'{layer}{norm}.bias', (width,))}
    stats[our_norm] = {
        'mean': _take(entries, f'{layer}{norm}.running_mean', (width,)),
        'var': _take(entries, f'{layer}{norm}.running_var', (width,))}
  return params, stats


def _take(entries, name, shape):
  """Removes the entry from the mapping and returns it, float32."""
  if name not in entries:
    raise UserError(f'state_dict has no {name}, which ResNet-12 needs')
  value = _array(entries.pop(name))
  if value.shape != shape:
    raise UserError(f'state_dict: {name} has the shape {value.shape}, '
                    f'ResNet-12 needs {shape}')
  if not np.isfinite(value).all():
    raise UserError(f'state_dict: {name} has values that are not finite')
  return value
