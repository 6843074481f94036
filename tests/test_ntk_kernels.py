"""Kernels of wide networks: closed forms, quadrature, and real networks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from mtl_jax import ntk
from mtl_jax.errors import UserError
from mtl_jax.ntk import kernels as implementation

exact = functools.partial(ntk.fully_connected, dtype='float64')
exact_conv = functools.partial(ntk.convolutional, dtype='float64')


def sphere(seed, n, d=10):
  x = np.random.default_rng(seed).normal(size=(n, d))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def images(seed, n, size=8, channels=2):
  """Unit length per pixel on average; one is blank in a corner."""
  x = np.random.default_rng(seed).normal(size=(n, size, size, channels))
  x[0, :4, :4] = 0
  return x / np.sqrt(channels)


def close(got, expected, tolerance):
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0,
                               atol=tolerance)


def relu_moments(kernel):
  """E[relu relu] and E[step step] by Cho and Saul, in extended precision."""
  length = np.sqrt(np.diag(kernel))
  rho = np.clip(kernel / np.outer(length, length), -1, 1)
  np.fill_diagonal(rho, 1)
  angle = np.arccos(rho)
  pi = np.arccos(np.longdouble(-1))
  moment = (np.sqrt(1 - rho ** 2) + rho * (pi - angle)) / (2 * pi)
  return np.outer(length, length) * moment, (pi - angle) / (2 * pi)


def erf_moments(kernel):
  """E[erf erf] and E[erf' erf'] by the trapezoid rule over a pair."""
  nodes = np.arange(-8, 8.01, 0.08)
  weights = 0.08 * np.exp(-nodes ** 2 / 2) / np.sqrt(2 * np.pi)
  moments = np.zeros((2, *kernel.shape))
  for i, j in np.ndindex(kernel.shape):
    u = (np.sqrt(kernel[i, i]) * nodes)[:, None]
    along = kernel[i, j] / np.sqrt(kernel[i, i])
    across = np.sqrt(np.maximum(kernel[j, j] - along ** 2, 0))
    v = along * nodes[:, None] + across * nodes
    mean = lambda values: weights @ values @ weights
    moments[:, i, j] = (mean(erf(u) * erf(v)),
                        mean(4 / np.pi * np.exp(-u ** 2 - v ** 2)))
  return moments


def recursion(x, depth, moments, w, b):
  """The recursion over layers, as Jacot et al. state it."""
  nngp = tangent = x @ x.T
  for _ in range(depth):
    nngp, derivative = moments(w * nngp + b)
    tangent = nngp + derivative * (w * tangent + b)
  return nngp, tangent


@pytest.mark.parametrize('depth', [1, 8, 64])
def test_diagonal_is_exact_and_coincident_points_are(depth):
  """Fails if Theta(x, x) misses L + 1, as by 1e-6 with an arc cosine."""
  x = sphere(0, 40)
  own = exact(x, depth=depth)
  np.testing.assert_allclose(np.diag(own.nngp), 1, rtol=0, atol=1e-12)
  np.testing.assert_allclose(np.diag(own.ntk), depth + 1, rtol=0, atol=1e-12)
  close(exact(x, x, depth=depth), own, 1e-10)
  expected = recursion(x.astype(np.longdouble), depth, relu_moments, 2, 0)
  close(own, expected, 1e-11)


def test_large_tiles_are_exact_where_points_nearly_coincide(monkeypatch):
  """Fails if the matrix product of large tiles cancels there."""
  x = sphere(1, 24)
  gaps = 10. ** np.arange(-10, -4)
  x = np.concatenate([x, [x[0] + gap * x[1] for gap in gaps], -x[2:3], x[5:6]])
  whole = exact(x, depth=16)
  monkeypatch.setattr(implementation, '_DIRECT', 0)
  close(exact(x, x, depth=16, block=33), whole, 1e-10)
  close(exact(x, depth=16, block=33), whole, 1e-10)
  single = ntk.fully_connected(x, x, depth=16, dtype='float32', block=33)
  close(single, whole, 3e-5)
  opposite = np.diag(exact(x, -x, depth=1, block=33).ntk)
  np.testing.assert_allclose(opposite, 0, atol=1e-12)


@pytest.mark.parametrize('activation, moments', [
    ('relu', relu_moments), ('erf', erf_moments)])
def test_variances_and_lengths_enter_as_stated(activation, moments):
  """Fails if a length, bias or weight variance enters in a wrong place."""
  x = sphere(2, 4) * np.array([0.2, 0.5, 1, 2])[:, None]
  got = exact(x, depth=3, activation=activation, weight_variance=1.7,
              bias_variance=0.3)
  expected = recursion(x, 3, moments, 1.7, 0.3)
  close(got, expected, 1e-7)
  off = ~np.eye(4, dtype=bool)
  close([np.asarray(k)[off] for k in got], [k[off] for k in expected], 1e-10)


def test_erf_is_the_mean_over_random_features():
  """Fails if the formula differs from a Monte Carlo mean."""
  x = sphere(3, 5)
  got = ntk.fully_connected(x, depth=1, activation='erf', weight_variance=2.,
                            bias_variance=0.5)
  rng = np.random.default_rng(4)
  sums, squares, draws = 0., 0., 20
  for _ in range(draws):
    weights = rng.normal(size=(10, 20000)) * np.sqrt(2)
    features = erf(x @ weights + np.sqrt(0.5) * rng.normal(size=20000))
    kernel = features @ features.T / 20000
    sums, squares = sums + kernel / draws, squares + kernel ** 2 / draws
  error = np.sqrt((squares - sums ** 2) / (draws - 1))
  assert np.max(np.abs(np.asarray(got.nngp) - sums) / error) < 4
  assert np.max(error) < 2e-3


def test_blocks_equal_the_whole():
  """Fails if a tile is misplaced, or a mirrored one is not transposed."""
  x, z = sphere(5, 23), sphere(6, 17)
  kernels = functools.partial(exact, depth=3)
  close(kernels(x, block=5), kernels(x), 1e-12)
  close(kernels(x, z, block=6), kernels(x, z), 1e-12)
  close(kernels(z, x), [k.T for k in kernels(x, z)], 1e-12)
  # Tiles do not depend on the activation, but each has its own formula.
  kernels = functools.partial(exact, x, depth=3, activation='erf',
                              bias_variance=0.1)
  close(kernels(block=5), kernels(), 1e-12)
  a = images(7, 3, 4)
  kernels = functools.partial(exact_conv, depth=2)
  close(kernels(a, block=2), kernels(a, block=3), 1e-12)
  close(kernels(a, a, block=2), kernels(a, block=3), 1e-10)


def test_convolutions_of_one_pixel_are_dense_layers():
  """Fails if the two recursions differ in bias, weights or borders."""
  x = sphere(9, 6)
  dense = exact(x, depth=3, weight_variance=1.5, bias_variance=0.2)
  pixel = functools.partial(exact_conv, x[:, None, None], depth=3,
                            bias_variance=0.2)
  close(pixel(filter_size=1, weight_variance=1.5), dense, 1e-12)
  # Eight of nine weights see the border's zeros.
  close(pixel(filter_size=3, weight_variance=9 * 1.5), dense, 1e-12)


class Network(nn.Module):
  """Dense layers in tangent-kernel scaling."""

  width: int
  depth: int

  @nn.compact
  def __call__(self, x):
    options = dict(use_bias=False, kernel_init=nn.initializers.normal(1.))
    for i in range(self.depth):
      scale = np.sqrt(2 / (x.shape[-1] if i else 1)).astype('float32')
      x = nn.relu(scale * nn.Dense(self.width, **options)(x))
    head = nn.Dense(1, name='head', **options)
    return head(x / np.sqrt(self.width).astype('float32'))


def test_wide_networks_have_these_kernels():
  """Fails if the formulas are not the kernels of the networks' gradients.

  A standard error of each entry from few draws is itself uncertain by a
  quarter, and there are many entries: root mean squares are compared.
  """
  network, draws = Network(2048, 2), 10
  x = sphere(10, 16).astype('float32')
  init = jax.jit(network.init)
  kernels = []
  for seed in range(draws):
    params = init(jax.random.key(seed), x[:1])['params']
    kernels.append(ntk.empirical(functools.partial(_apply, network), params,
                                 x, block=16))
  expected = ntk.fully_connected(x, depth=2)
  for got, want in zip(zip(*kernels, strict=True), expected, strict=True):
    got = np.stack(got)
    error = np.std(got, 0, ddof=1) / np.sqrt(draws)
    off = np.mean(got, 0) - np.asarray(want)
    assert np.sqrt(np.mean(off ** 2)) < 3 * np.sqrt(np.mean(error ** 2))
    assert np.sqrt(np.mean(error ** 2)) < 0.05 * np.mean(want)


def wide_convolutions(pool, width, x):
  """Returns key -> (head's, whole) tangent kernel of two convolutions.

  It is stated without Flax and without mtl_jax.
  """
  size, channels = x.shape[1], x.shape[-1]
  convolve = functools.partial(
      jax.lax.conv_general_dilated, window_strides=(1, 1), padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def output(params, image):
    first, second, head = params
    h = jnp.maximum(convolve(image[None], first) * np.sqrt(2 / 9), 0)
    h = jnp.maximum(convolve(h, second) * np.sqrt(2 / 9 / width), 0)[0]
    if pool == 'flat':
      return jnp.sum(head * h) / (np.sqrt(width) * size)
    return jnp.mean(h, (0, 1)) @ head / np.sqrt(width)

  @jax.jit
  def kernels(key):
    shapes = [(3, 3, channels, width), (3, 3, width, width),
              (size, size, width) if pool == 'flat' else (width,)]
    params = [jax.random.normal(k, shape, jnp.float64) for k, shape in zip(
        jax.random.split(key, 3), shapes, strict=True)]
    *body, head = [g.reshape(len(x), -1) @ g.reshape(len(x), -1).T for g in
                   jax.vmap(jax.jacrev(output), (None, 0))(params, x)]
    return head, head + sum(body)

  return kernels


@pytest.mark.parametrize('pool', ['flat', 'global'])
def test_convolutions_have_these_kernels_in_float64(pool):
  """Fails if pixels are paired, padded or read out in another way.

  The first image is blank in a corner.
  """
  with jax.enable_x64(True):
    x = jnp.asarray(images(13, 3, 5))
    kernels = wide_convolutions(pool, 128, x)
    draws = [kernels(jax.random.key(seed)) for seed in range(24)]
  expected = exact_conv(x, depth=2, pool=pool)
  for got, want in zip(zip(*draws, strict=True), expected, strict=True):
    got, want = np.stack(got), np.asarray(want)
    assert got.dtype == want.dtype == np.float64
    error = np.std(got, 0, ddof=1) / np.sqrt(len(got))
    off = np.mean(got, 0) - want
    assert np.sqrt(np.mean(off ** 2)) < 3 * np.sqrt(np.mean(error ** 2))
    assert np.sqrt(np.mean(error ** 2)) < 0.05 * np.mean(want)


def pixel_recursion(x, depth, b):
  """Returns the kernels of every pair of pixels, [n, h, w, n, h, w]."""
  n, h, w = x.shape[:3]
  offsets = [(i, j) for i in (0, 1, 2) for j in (0, 1, 2)]

  def seen(kernel):
    padded = np.pad(kernel, [(0, 0), (1, 1), (1, 1)] * 2)
    return sum(padded[:, i:i + h, j:j + w, :, i:i + h, j:j + w]
               for i, j in offsets) * 2 / 9 + b

  tangent = nngp = np.einsum('ahwc,bijc->ahwbij', x, x)
  for _ in range(depth):
    moment, slope = (m.reshape(nngp.shape) for m in relu_moments(
        seen(nngp).reshape(n * h * w, -1)))
    nngp, tangent = moment, moment + slope * seen(tangent)
  return nngp, tangent


@pytest.mark.parametrize('pool', ['flat', 'global'])
def test_convolutions_obey_the_recursion_over_pixels(pool):
  """Fails if a formula holds up to the noise of random networks only."""
  x = images(14, 3, 4)
  of_images = lambda k: (np.einsum('ahwbhw->ab', k) / 16 if pool == 'flat'
                         else k.mean((1, 2, 4, 5)))
  got = exact_conv(x, depth=3, pool=pool, bias_variance=0.1, block=2)
  close(got, map(of_images, pixel_recursion(x, 3, 0.1)), 1e-7)
  with pytest.raises(UserError, match="pool is 'max': allowed are"):
    exact_conv(x, depth=1, pool='max')


def _apply(network, params, x):
  return network.apply({'params': params}, x)


def test_empirical_kernel_is_that_of_all_gradients():
  """Fails if blocks, outputs or the head's parameters are mixed up."""
  def apply(params, x):
    hidden = jnp.tanh(x @ params['body']['kernel'])
    return hidden @ params['head']['kernel'] + params['head']['bias']

  rng = np.random.default_rng(12)
  draw = lambda *shape: rng.normal(size=shape).astype('float32')
  params = {'body': {'kernel': draw(3, 4)},
            'head': {'kernel': draw(4, 2), 'bias': draw(2)}}
  x, z = draw(7, 3), draw(5, 3)
  hidden, other = (np.tanh(a @ params['body']['kernel']) for a in (x, z))
  head = hidden @ other.T + 1
  slopes = np.einsum('ai,io,bi,io->ab', 1 - hidden ** 2,
                     params['head']['kernel'], 1 - other ** 2,
                     params['head']['kernel']) / 2
  got = ntk.empirical(apply, params, x, z, block=3)
  close([got.nngp, got.body], [head, slopes * (x @ z.T)], 1e-5)
  own = ntk.empirical(apply, params, x)
  close(ntk.empirical(apply, params, x, block=3), own, 1e-5)
  close(ntk.empirical(apply, params, x, x, block=4), own, 1e-5)
  with pytest.raises(UserError, match="no parameter is named 'top'"):
    ntk.empirical(apply, params, x, head='top')


def test_float64_leaves_the_setting_of_the_caller_alone():
  """Fails if the library changes the precision of the user's training."""
  x = sphere(13, 4).astype('float32')
  assert exact(x, depth=1).ntk.dtype == jnp.float64
  assert ntk.fully_connected(x, depth=1).ntk.dtype == jnp.float32
  assert jnp.zeros(1).dtype == jnp.float32
  assert not jax.config.jax_enable_x64


@pytest.mark.parametrize('activation', ['relu', 'erf'])
def test_a_blank_point_is_no_nan(activation):
  """Fails if a padded task or a black image, of length 0, gives NaN."""
  x = sphere(14, 3)
  x[1] = 0
  got = exact(x, depth=2, activation=activation)
  for kernel in map(np.asarray, got):
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(kernel[1], 0, atol=1e-12)


@pytest.mark.parametrize('change, message', [
    ({'depth': 0}, 'depth: 0 hidden layers'),
    ({'activation': 'tanh'}, "activation is 'tanh': allowed are relu, erf"),
    ({'weight_variance': 0.}, 'weight_variance: 0.0 is not positive'),
    ({'bias_variance': -1.}, 'bias_variance: -1.0 is negative'),
    ({'dtype': 'float16'}, "dtype is 'float16'"),
    ({'z': np.zeros((2, 3))}, r'z: shape \(2, 3\) does not fit'),
])
def test_wrong_arguments_are_named(change, message):
  """Fails if a wrong argument ends in a traceback."""
  with pytest.raises(UserError, match=message):
    ntk.fully_connected(**{'x': np.ones((2, 4)), 'depth': 1, **change})


def test_wrong_images_are_named():
  """Fails if wrong shapes, or a filter without a centre, are accepted."""
  with pytest.raises(UserError, match='x: shape'):
    ntk.convolutional(np.ones((2, 4)), depth=1)
  with pytest.raises(UserError, match='filter_size: 2 is not an odd number'):
    ntk.convolutional(images(0, 1), depth=1, filter_size=2)
