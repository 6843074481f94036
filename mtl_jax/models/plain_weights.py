"""Names of the arrays of any backbone, for files of weights.

A name is the path in the tree of variables, such as
'params.block_0.conv_0.kernel' or 'batch_stats.block_0.norm_0.mean'.
"""

import numpy as np
from flax import traverse_util

from mtl_jax.errors import UserError

_ROOTS = ('params', 'batch_stats')


def to_arrays(variables):
  """Returns {name: array} of variables {'params': .., 'batch_stats': ..}."""
  return {name: np.asarray(value) for name, value in
          traverse_util.flatten_dict(variables, sep='.').items()}


def are_plain(arrays):
  """Returns whether arrays have names of `to_arrays`."""
  return any(name.partition('.')[0] in _ROOTS for name in arrays)


def from_arrays(arrays, like, where):
  """Returns the variables of {name: array}.

  Args:
    arrays: of `to_arrays`.
    like: variables whose structure, shapes and types they must have.
    where: what the arrays are, for messages.

  Raises:
    UserError: names what is missing, further, of another shape or not finite.
  """
  wanted = traverse_util.flatten_dict(like, sep='.')
  for name in (*wanted, *arrays):
    if name not in arrays:
      raise UserError(f'{where} has no {name}, which the network needs')
    if name not in wanted:
      raise UserError(f'{where}: {name} belongs to another network')
    if arrays[name].shape != wanted[name].shape:
      raise UserError(f'{where}: {name} has the shape {arrays[name].shape}, '
                      f'the network needs {wanted[name].shape}')
    with np.errstate(over='ignore'):
      arrays = arrays | {name: arrays[name].astype(wanted[name].dtype)}
    if not np.isfinite(arrays[name]).all():
      raise UserError(f'{where}: {name} has values that are not finite')
    if name.startswith('batch_stats.') and name.endswith('.var') and (
        arrays[name] < 0).any():
      raise UserError(f'{where}: {name} has variances below 0')
  tree = traverse_util.unflatten_dict(arrays, sep='.')
  return {root: tree.get(root, {}) for root in like}
