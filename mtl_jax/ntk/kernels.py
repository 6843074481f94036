"""Kernels of infinitely wide networks, and of finite ones.

Networks are in tangent-kernel scaling,

  h_1 = sqrt(w) W_1 x + sqrt(b) B_1
  h_l = sqrt(w / m) W_l phi(h_{l-1}) + sqrt(b) B_l,  l = 2 .. depth
  f   = sqrt(1 / m) W phi(h_depth),

with standard normal W and B, width m to infinity, weight variance w and bias
variance b (Jacot et al., NeurIPS 2018). `nngp` is K, the covariance of f; it
is also the read-out's part of the tangent kernel. `ntk` is Theta, the tangent
kernel of all layers. Inputs of unit length give K = 1 and Theta = depth + 1 on
the diagonal of a ReLU network.

`dtype='float64'` computes in float64 whatever jax is set to. Convert such a
result with `numpy.asarray` before you compute with it outside of
`jax.enable_x64`.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError, check_choice
from mtl_jax.ntk import layers
from mtl_jax.ntk.precision import as_floats, precision
from mtl_jax.ntk.tiles import fill

# Tiles with at most so many numbers in their differences need no product.
_DIRECT = 2 ** 20
_CONV_TILE = 2 ** 21  # pairs of pixels in a tile, unless a block is given
POOLS = ('global', 'flat')  # of convolutional networks
# Versines below this are computed again without cancellation.
_NEAR = {'float32': 1e-2, 'float64': 1e-6}


class Kernels(NamedTuple):
  """Kernels between points [n, ..] and [m, ..], each [n, m]."""

  nngp: jax.Array
  ntk: jax.Array

  @property
  def body(self):
    """The tangent kernel of the layers below the read-out."""
    return self.ntk - self.nngp


def fully_connected(x, z=None, *, depth, activation='relu',
                    weight_variance=None, bias_variance=0., block=512,
                    dtype=None):
  """Returns the kernels of a fully connected network.

  Args:
    x: points [n, d].
    z: points [m, d]; None for x itself, at half the work.
    depth: number L of hidden layers, 1 or more.
    activation: 'relu' or 'erf'.
    weight_variance: w; None for 2 (relu, keeps the diagonal) or 1 (erf).
    bias_variance: b, of all layers but the read-out.
    block: side of the tiles in which the kernels are computed.
    dtype: 'float32' or 'float64'; None for that of x.

  Returns:
    Kernels, each [n, m].

  Raises:
    UserError: an argument is outside of what is stated here.
  """
  w = _check(depth, activation, weight_variance, bias_variance)
  with precision(dtype):
    x, z = as_floats(dtype, x, z)
    _check_points(x, z, 2)
    return _fully_connected(x, z, depth, activation, w, float(bias_variance),
                            block)


def convolutional(x, z=None, *, depth, activation='relu',
                  weight_variance=None, bias_variance=0., filter_size=3,
                  pool='global', block=None, dtype=None):
  """Returns the kernels of a convolutional network.

  They are those of Arora et al. (NeurIPS 2019). Layers are convolutions of
  stride 1 with zero padding ('SAME'), without BatchNorm and max pooling, for
  which there is no such closed form. Each of the filter_size^2 weights of a
  channel has the variance w / filter_size^2.

  With pool 'global' the mean over all pixels of the last layer is read out.
  The kernels then need every pair of pixels: work and memory per pair of
  images grow with (height width)^2, which is meant for small images. With pool
  'flat' each pixel has read-out weights of its own, of variance
  1 / (height width). Only pairs of a pixel and itself are needed then: a pixel
  reads the neighbours at the same offsets in both images.

  Args:
    x: images [n, h, w, c].
    z: images [m, h, w, c]; None for x itself.
    depth: number of convolutions, 1 or more.
    activation: 'relu' or 'erf'.
    weight_variance: w; None for 2 (relu) or 1 (erf).
    bias_variance: b, of all layers but the read-out.
    filter_size: odd.
    pool: 'global' or 'flat', of POOLS.
    block: side of the tiles, in images; None for what fits 100 MB.
    dtype: 'float32' or 'float64'; None for that of x.

  Returns:
    Kernels, each [n, m].

  Raises:
    UserError: an argument is outside of what is stated here.
  """
  w = _check(depth, activation, weight_variance, bias_variance)
  check_choice('pool', pool, POOLS)
  if filter_size < 1 or filter_size % 2 == 0:
    raise UserError(f'filter_size: {filter_size} is not an odd number')
  with precision(dtype):
    x, z = as_floats(dtype, x, z)
    _check_points(x, z, 4)
    pixels = x.shape[1] * x.shape[2]
    pairs = pixels ** 2 if pool == 'global' else pixels  # of pixels
    block = block or max(1, math.isqrt(_CONV_TILE // pairs))
    return _convolutional(x, z, depth, activation, w, float(bias_variance),
                          filter_size, pool, block)


def empirical(apply_fn, params, x, z=None, *, head='head', block=32):
  """Returns the tangent kernels of a finite network at `params`.

  They are means over the network's outputs. In a wide network all outputs
  have the same kernel and do not mix.

  Args:
    apply_fn: (params, inputs [B, ..]) -> outputs [B] or [B, k]. An output may
      depend on its own input only: BatchNorm with running statistics, no
      dropout.
    params: tree of parameters, as Flax has them.
    x: inputs [n, ..].
    z: inputs [m, ..]; None for x itself, at half the work.
    head: name of the read-out's entry, anywhere in the tree.
    block: inputs whose gradients are held at a time, twice: memory is
      2 * block * k * (number of parameters).

  Returns:
    Kernels, each [n, m]: `nngp` is the read-out's share (it tends to K),
    `ntk` that of all parameters, `body` that of the other parameters.

  Raises:
    UserError: no parameter is named `head`.
  """
  in_head = tuple(
      any(getattr(key, 'key', None) == head for key in path)
      for path, _ in jax.tree_util.tree_leaves_with_path(params))
  if not any(in_head):
    raise UserError(f'head: no parameter is named {head!r}: the tree has '
                    + ', '.join(map(str, params)))
  symmetric = z is None
  z = x if symmetric else z
  rows = []
  for i in range(0, len(x), block):
    of_x = _gradients(apply_fn, params, x[i:i + block])
    row = []
    for j in range(0, len(z), block):
      if symmetric and j < i:
        row.append([k.T for k in rows[j // block][i // block]])
        continue
      of_z = (of_x if symmetric and i == j
              else _gradients(apply_fn, params, z[j:j + block]))
      row.append(_products(of_x, of_z, in_head))
    rows.append(row)
  return Kernels(*(jnp.block([[tile[part] for tile in row] for row in rows])
                   for part in range(2)))


@functools.partial(jax.jit, static_argnums=0)
def _gradients(apply_fn, params, x):
  """Returns the gradients of every output, a list of [B, k, size]."""
  outputs = lambda params, point: jnp.ravel(apply_fn(params, point[None]))
  gradients = jax.vmap(jax.jacrev(outputs), (None, 0))(params, x)
  return [g.reshape(*g.shape[:2], -1) for g in jax.tree.leaves(gradients)]


@functools.partial(jax.jit, static_argnums=2)
def _products(of_x, of_z, in_head):
  """Returns the head's and the total kernel [n, m], mean over outputs."""
  shares = [jnp.einsum('aop,bop->ab', a, b, precision='highest') / a.shape[1]
            for a, b in zip(of_x, of_z, strict=True)]
  head = sum(s for s, inside in zip(shares, in_head, strict=True) if inside)
  return Kernels(head, sum(shares))


@functools.partial(jax.jit, static_argnums=range(2, 7))
def _fully_connected(x, z, depth, activation, w, b, block):
  symmetric = z is None
  z = x if symmetric else z
  x, q_x = _directions(x)
  z, q_z = _directions(z)
  centre = jnp.mean(z, 0)  # the shared part of images cancels badly
  as_is = [lambda array, _: array]

  def tile(i, j, rows, columns):
    part_x = jax.lax.dynamic_slice_in_dim(x, i, rows)
    part_z = jax.lax.dynamic_slice_in_dim(z, j, columns)
    same = None
    if symmetric:
      same = i + jnp.arange(rows)[:, None] == j + jnp.arange(columns)
    near, far = _versines(part_x, part_z, centre, same)
    pair = layers.Pair(
        jax.lax.dynamic_slice_in_dim(q_x, i, rows)[:, None],
        jax.lax.dynamic_slice_in_dim(q_z, j, columns), near, far, None)
    pair = layers.propagate(pair, depth, activation, w, b, as_is)
    return pair.nngp, pair.ntk

  return Kernels(*fill(tile, len(x), len(z), block, symmetric, x.dtype))


@functools.partial(jax.jit, static_argnums=range(2, 9))
def _convolutional(x, z, depth, activation, w, b, filter_size, pool, block):
  symmetric = z is None
  z = x if symmetric else z
  reach = range(-(filter_size // 2), filter_size // 2 + 1)
  # Axes of the rows and columns of pixels of x and of z, after [n, m].
  axes = {'global': {'x': (2, 3), 'z': (4, 5), 'xz': (2, 3, 4, 5)},
          'flat': dict.fromkeys(('x', 'z', 'xz'), (2, 3))}[pool]
  shifts = [functools.partial(_shift, axes, (down, right))
            for down in reach for right in reach]

  def tile(i, j, rows, columns):
    part_x = jax.lax.dynamic_slice_in_dim(x, i, rows)[:, None]
    part_z = jax.lax.dynamic_slice_in_dim(z, j, columns)[None]
    if pool == 'global':  # every pair of pixels
      part_x = part_x[:, :, :, :, None, None]
      part_z = part_z[:, :, None, None]
    part_x, q_x = _directions(part_x)
    part_z, q_z = _directions(part_z)
    near = jnp.sum((part_x - part_z) ** 2, -1) / 2
    far = jnp.sum((part_x + part_z) ** 2, -1) / 2
    pair = layers.Pair(q_x, q_z, near, far, None)
    pair = layers.propagate(pair, depth, activation, w, b, shifts)
    return jnp.mean(pair.nngp, axes['xz']), jnp.mean(pair.ntk, axes['xz'])

  return Kernels(*fill(tile, len(x), len(z), block, symmetric, x.dtype))


def _shift(axes, by, array, of):
  """Returns an array of pixels at (row + by[0], column + by[1]), 0 outside.

  Args:
    axes: points -> axes of their rows and columns.
    by: (down, right).
    array: [n, m, ..].
    of: the points that are shifted, 'x', 'z' or 'xz'.
  """
  pads = [(0, 0)] * array.ndim
  slices = [slice(None)] * array.ndim
  for i, axis in enumerate(axes[of]):
    step = by[i % 2]
    pads[axis] = (max(-step, 0), max(step, 0))
    start = max(step, 0)
    slices[axis] = slice(start, start + array.shape[axis])
  return jnp.pad(array, pads)[tuple(slices)]


def _directions(x):
  """Returns points as unit vectors (0 stays) and their squared lengths."""
  squares = jnp.sum(x ** 2, -1)
  length = jnp.sqrt(squares)[..., None]
  return x / jnp.where(length > 0, length, 1), squares


def _versines(x, z, centre, same):
  """Returns |x - z|^2 / 2 and |x + z|^2 / 2 of unit vectors, each [n, m].

  Large tiles come from a matrix product. It cancels for points that nearly
  coincide or are nearly opposite: their whole column is computed again from
  the differences. `same` marks pairs that are known to coincide.
  """
  if len(x) * z.size <= _DIRECT:
    chord = lambda sign: jnp.sum((x[:, None] + sign * z) ** 2, -1) / 2
    return chord(-1), chord(1)
  from_x, from_z = x - centre, z - centre
  scale = (jnp.sum(from_x ** 2, -1)[:, None] + jnp.sum(from_z ** 2, -1)) / 2
  near = scale - jnp.matmul(from_x, from_z.T, precision='highest')
  if same is not None:
    near = jnp.where(same, 0, near)
  threshold = _NEAR[near.dtype.name]
  doubtful = (near < threshold * scale) | (2 - near < threshold)
  if same is not None:
    doubtful &= ~same
  columns = jnp.any(doubtful, 0)
  order = jnp.nonzero(columns, size=len(z), fill_value=0)[0]

  def redo(k, versines):
    j = order[k]
    column = jax.lax.dynamic_index_in_dim(z, j, keepdims=False)
    chords = (jnp.sum((x - column) ** 2, -1) / 2,
              jnp.sum((x + column) ** 2, -1) / 2)
    return tuple(
        jax.lax.dynamic_update_index_in_dim(versine, chord, j, 1)
        for versine, chord in zip(versines, chords, strict=True))

  return jax.lax.fori_loop(0, jnp.sum(columns), redo, (near, 2 - near))


def _check(depth, activation, weight_variance, bias_variance):
  """Returns the weight variance; raises UserError."""
  if depth < 1:
    raise UserError(f'depth: {depth} hidden layers; use 1 or more')
  check_choice('activation', activation, layers.ACTIVATIONS)
  if bias_variance < 0:
    raise UserError(f'bias_variance: {bias_variance} is negative')
  if weight_variance is None:
    return layers.ACTIVATIONS[activation][1]
  if weight_variance <= 0:
    raise UserError(f'weight_variance: {weight_variance} is not positive')
  return float(weight_variance)


def _check_points(x, z, ndim):
  for name, points in (('x', x), ('z', x if z is None else z)):
    fits = (points.ndim, points.shape[1:]) == (ndim, x.shape[1:])
    if not fits or not len(points):
      raise UserError(f'{name}: shape {points.shape} does not fit x with '
                      f'{x.shape} or has not {ndim} axes')
