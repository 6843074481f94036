"""Convert published weights between PyTorch's names and layouts and ours.

LAYOUTS holds the layouts of ResNet-12 and of CNN-4 that are known; their
sources stand in docs/weights.md. This file does not need PyTorch.
"""

import collections.abc
import os
from typing import Any, NamedTuple

import numpy as np

from mtl_jax import weight_files
from mtl_jax.errors import UserError

TITLES = {'resnet12': 'ResNet-12', 'conv4': 'CNN-4'}
_NORM = ('weight', 'bias', 'running_mean', 'running_var')
_COUNT = 'num_batches_tracked'


class Layout(NamedTuple):
  """Names of a network's modules, after a prefix that any file may choose.

  pairs: of each block the names of (convolution, BatchNorm), in the order of
    `_ours`.
  roots: how all other names of a block would begin.
  """

  pairs: tuple[tuple[tuple[str, str], ...], ...]
  roots: tuple[str, ...] = ()

  @property
  def first(self):
    """The name of the first kernel."""
    return f'{self.pairs[0][0][0]}.weight'


def _resnet12(block, conv, norm):
  numbers = range(1, 5)
  of_block = lambda i: tuple(
      (f'{block}.{a}'.format(i), f'{block}.{b}'.format(i)) for a, b in (
          *((f'{conv}{j}', f'{norm}{j}') for j in (1, 2, 3)),
          ('downsample.0', 'downsample.1')))
  return Layout(tuple(map(of_block, numbers)),
                tuple(f'layer{i}.' for i in numbers))


def _conv4(start, conv, norm):
  numbers = range(start, start + 4)
  return Layout(tuple(((f'{i}.{conv}', f'{i}.{norm}'),) for i in numbers),
                tuple(f'{i}.' for i in numbers))


LAYOUTS = {
    'resnet12': tuple(
        _resnet12(block, conv, norm)
        for conv, norm in (('conv', 'bn'), ('conv', 'norm'), ('C', 'BN'))
        for block in ('layer{}.0', 'layer{}')),
    'conv4': (
        *(_conv4(start, conv, norm) for start in (0, 1) for conv, norm in (
            ('0', '1'), ('conv', 'norm'), ('conv', 'bn'),
            ('conv', 'normalize'), ('C', 'BN'), ('block.0', 'block.1'),
            ('layers.0', 'layers.1'), ('layers.Conv', 'layers.BatchNorm'))),
        Layout(tuple(((f'conv{i}', f'bn{i}'),) for i in range(1, 5))),
        # One nn.Sequential of convolutions, BatchNorms, ReLUs and pools.
        Layout(tuple(((f'{i}', f'{i + 1}'),) for i in range(0, 16, 4))))}
# What `to_torch` writes: of RFS, and of ProtoNet with its biases.
_WRITTEN = {'resnet12': ('', LAYOUTS['resnet12'][0]),
            'conv4': ('encoder.', LAYOUTS['conv4'][0])}


class Found(NamedTuple):
  """A network that a mapping of names to arrays holds.

  first: the name of its first kernel.
  widths: channels of its blocks.
  channels: of its images.
  variables: {'params': .., 'batch_stats': ..} of numpy arrays, float32.
  left_out: names of what is not of the network, such as a classifier.
  """

  first: str
  widths: tuple[int, ...]
  channels: int
  variables: dict[str, Any]
  left_out: tuple[str, ...]


def from_torch(weights, network='resnet12', *, widths=None, channels=None):
  """Returns the variables of a backbone with PyTorch's weights.

      variables = models.from_torch('resnet12.pth')
      features = model.apply(variables, images, train=False)

  The features are PyTorch's up to rounding; those of pool 'flat' in the order
  row, column, channel instead of its channel, row, column.

  Args:
    weights: a file, as weight_files.read takes it, or a mapping of names to
      tensors or arrays, as `torch.load` gives it: bare, with prefixes
      ('module.', 'features.'), or below other keys ('model', 'state_dict').
      Heads, classifiers and all else beside the network are left out.
    network: 'resnet12' or 'conv4'.
    widths: channels of the blocks; None: those of the weights.
    channels: of the images; None: those of the weights.

  Returns:
    {'params': .., 'batch_stats': ..} of numpy arrays, float32.

  Raises UserError that names the entry which is missing, has another shape,
  is not finite, or belongs to another network.
  """
  where = 'state_dict'
  if isinstance(weights, str | os.PathLike):
    where, weights = str(weights), weight_files.read(weights).arrays
  found = find(weights, network, where)
  for what, wanted, there in (('widths', widths, found.widths),
                              ('channels', channels, found.channels)):
    if wanted is not None and tuple(np.ravel(wanted)) != tuple(np.ravel(there)):
      raise UserError(f'{where}: the {TITLES[network]} has the {what} {there}, '
                      f'not {wanted}')
  return found.variables


def find(weights, network, where):
  """Returns the network that a mapping holds, as Found.

  Args:
    weights: nested mapping of names to arrays or tensors.
    network: of LAYOUTS.
    where: what the mapping is, for messages.

  Raises:
    UserError: as `from_torch`.
  """
  entries = dict(_leaves(weights))
  layout, prefix = _place(entries, network, where)
  read = _Reading({name.removeprefix(prefix): value
                   for name, value in entries.items()
                   if name.startswith(prefix)},
                  {}, f'{where}: {prefix}', TITLES[network])
  shapes = [read.kernel_shape(pairs[0][0]) for pairs in layout.pairs]
  channels, widths = shapes[0][1], tuple(shape[0] for shape in shapes)
  variables = {'params': {}, 'batch_stats': {}}
  for i, pairs in enumerate(layout.pairs):
    inputs = widths[i - 1] if i else channels
    for pair, ours in zip(pairs, _ours(network, i), strict=True):
      shape = (widths[i], inputs if ours.of_input else widths[i],
               ours.side, ours.side)
      _put(variables, ours, *_read_pair(read, pair, shape))
  _check_rest(read, layout)
  left_out = [name for name in entries if not (
      name.startswith(prefix) and name.removeprefix(prefix) in read.taken)]
  return Found(prefix + layout.first, widths, channels, variables,
               tuple(left_out))


def to_torch(variables, network):
  """Returns {PyTorch's name: array} of the variables of a backbone.

  `load_state_dict` of the published networks takes them: of ResNet-12 in RFS,
  MetaOptNet and FEAT, of CNN-4 as `encoder` in ProtoNet. CNN-4's convolutions
  have biases there, which are zero.

  Args:
    variables: {'params': .., 'batch_stats': ..}.
    network: 'resnet12' or 'conv4'.
  """
  prefix, layout = _WRITTEN[network]
  arrays = {}
  for i, pairs in enumerate(layout.pairs):
    for (conv, norm), ours in zip(pairs, _ours(network, i), strict=True):
      params, stats = (_at(variables[name], ours.block)
                       for name in ('params', 'batch_stats'))
      kernel = np.asarray(params[ours.conv]['kernel'])
      kernel = kernel if ours.side > 1 else kernel[None, None]
      arrays[f'{prefix}{conv}.weight'] = kernel.transpose(3, 2, 0, 1)
      if network == 'conv4':
        arrays[f'{prefix}{conv}.bias'] = np.zeros(kernel.shape[-1], np.float32)
      for name, value in zip(_NORM, (
          params[ours.norm]['scale'], params[ours.norm]['bias'],
          stats[ours.norm]['mean'], stats[ours.norm]['var']), strict=True):
        arrays[f'{prefix}{norm}.{name}'] = np.asarray(value)
      arrays[f'{prefix}{norm}.{_COUNT}'] = np.zeros((), np.int64)
  return arrays


class _Pair(NamedTuple):
  """A convolution and its BatchNorm in our trees."""

  block: str  # '' where the network's tree has no blocks
  conv: str
  norm: str
  side: int  # of the kernel
  of_input: bool  # whether it sees the block's input


def _ours(network, i):
  """Returns the _Pairs of block i, in the order of the layouts."""
  if network == 'conv4':
    return [_Pair('', f'conv_{i}', f'norm_{i}', 3, True)]
  return [*(_Pair(f'block_{i}', f'conv_{j}', f'norm_{j}', 3, not j)
            for j in range(3)),
          _Pair(f'block_{i}', 'short_conv', 'short_norm', 1, True)]


def _at(tree, block):
  return tree[block] if block else tree


def _put(variables, ours, kernel, norm, stats):
  """Sets what `_read_pair` returned in our trees."""
  if ours.block:
    variables = {name: tree.setdefault(ours.block, {})
                 for name, tree in variables.items()}
  variables['params'][ours.conv] = {'kernel': kernel}
  variables['params'][ours.norm] = norm
  variables['batch_stats'][ours.norm] = stats


def _leaves(tree, prefix=''):
  """Yields (dotted name, tensor or array) of nested mappings."""
  for key, value in tree.items():
    if isinstance(value, collections.abc.Mapping):
      yield from _leaves(value, f'{prefix}{key}.')
    elif hasattr(value, 'shape'):
      yield f'{prefix}{key}', value


def _place(entries, network, where):
  """Returns (layout, prefix) of the one network among the entries."""
  nearest = []  # (number of missing entries, the first of them)
  for layout in LAYOUTS[network]:
    whole = []
    for prefix in _prefixes(entries, layout):
      missing = [name for name in _needed(layout)
                 if prefix + name not in entries]
      if missing:
        nearest.append((len(missing), prefix + missing[0]))
      else:
        whole.append(prefix)
    # Lightning modules hold one network under several names.
    for other in whole[1:]:
      if not _same(entries, layout, whole[0], other):
        raise UserError(
            f'{where} has two networks, {whole[0]}{layout.first} and '
            f'{other}{layout.first}: pass the part of one')
    if whole:
      return layout, whole[0]
  title = TITLES[network]
  if nearest:
    raise UserError(f'{where} has no {min(nearest)[1]}, which {title} needs')
  raise UserError(
      f'{where} has no {LAYOUTS[network][0].first}: it is not of a {title} in '
      'a layout of docs/weights.md; its first entries are '
      + (ascii(', '.join(list(entries)[:3]))[1:-1][:120] or 'none'))


def _prefixes(entries, layout):
  """Returns what stands before the first kernel's name, wherever it occurs."""
  prefixes = [name.removesuffix(layout.first) for name in entries
              if name.endswith(layout.first)]
  # The second digit of 'block.11' is not the number of a block.
  return [prefix for prefix in prefixes if not prefix[-1:].isdigit()]


def _needed(layout):
  """Returns the names of all entries that a network cannot do without."""
  return [name for pairs in layout.pairs for conv, norm in pairs
          for name in (f'{conv}.weight', *(f'{norm}.{n}' for n in _NORM))]


def _same(entries, layout, prefix, other):
  return all(np.array_equal(_array(entries[prefix + name]),
                            _array(entries[other + name]))
             for name in _needed(layout))


def _array(value):
  # The methods of a tensor, which may be on a GPU, trainable or bfloat16.
  if hasattr(value, 'detach'):
    value = value.detach().cpu().float()
  with np.errstate(over='ignore'):  # infinite numbers are refused
    return np.asarray(value, np.float32)


class _Reading(NamedTuple):
  """The entries of one network, while they are read.

  entries: name -> those that are not taken yet.
  taken: name -> those that are, float32.
  where: begins a message that names an entry.
  title: of the network.
  """

  entries: dict[str, Any]
  taken: dict[str, Any]
  where: str
  title: str

  def kernel_shape(self, conv):
    """Returns the shape of a convolution's kernel."""
    shape = tuple(self.entries[f'{conv}.weight'].shape)
    if len(shape) != 4:
      raise UserError(f'{self.where}{conv}.weight has the shape {shape}, '
                      f'{self.title} needs a kernel (outputs, inputs, 3, 3)')
    return shape

  def take(self, name, shape):
    """Takes an entry that must have a shape; returns it, float32."""
    value = self.entries.pop(name)
    if tuple(value.shape) != shape:
      raise UserError(f'{self.where}{name} has the shape {tuple(value.shape)}, '
                      f'{self.title} needs {shape}')
    if 'float' not in str(value.dtype):  # of NumPy, JAX or PyTorch
      raise UserError(f'{self.where}{name} is of type {value.dtype}, '
                      f'{self.title} needs floating-point numbers')
    array = _array(value)
    if not np.isfinite(array).all():
      raise UserError(f'{self.where}{name} has values that are not finite')
    self.taken[name] = array
    return array


def _read_pair(read, pair, shape):
  """Takes a convolution and its BatchNorm; returns them as in our trees.

  Args:
    read: _Reading.
    pair: their names.
    shape: of PyTorch's kernel [d, c, side, side].

  Returns:
    The kernel [side, side, c, d] or [c, d], {'scale', 'bias'} [d] and
    {'mean', 'var'} [d].
  """
  conv, norm = pair
  kernel = read.take(f'{conv}.weight', shape).transpose(2, 3, 1, 0)
  scale, shift, mean, var = (read.take(f'{norm}.{name}', shape[:1])
                             for name in _NORM)
  if (var < 0).any():
    raise UserError(f'{read.where}{norm}.running_var has negative values')
  if f'{conv}.bias' in read.entries:
    # BatchNorm subtracts what a bias adds: from the running mean here, and
    # from that of a batch without more.
    mean = mean - read.take(f'{conv}.bias', shape[:1])
  if f'{norm}.{_COUNT}' in read.entries:
    read.taken[f'{norm}.{_COUNT}'] = read.entries.pop(f'{norm}.{_COUNT}')
  return (kernel if shape[-1] > 1 else kernel[0, 0],
          {'scale': scale, 'bias': shift}, {'mean': mean, 'var': var})


def _check_rest(read, layout):
  """Raises UserError for what the network does not have, beside its heads.

  That is all else in its blocks, and every further kernel.
  """
  for name, value in read.entries.items():
    inside = any(name.startswith(root) for root in layout.roots)
    if name.endswith(_COUNT) or not inside and len(value.shape) < 3:
      continue
    # Closer Look's blocks name each of their modules twice.
    if not any(x.shape == value.shape and np.may_share_memory(x, _array(value))
               for x in read.taken.values()):
      raise UserError(f'{read.where}{name} belongs to another network than '
                      f'{read.title}')
