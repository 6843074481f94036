"""Backbones, and the layers whose gradients are our own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from mtl_jax import models
from mtl_jax.errors import UserError
from mtl_jax.models import layers, winograd

# Per model: small options, features D and parameters at images (h, w, c).
SMALL = {'conv4': {'width': 8},
         'mlp': {'width': 8, 'depth': 2},
         'r2d2_net': {'widths': (8, 8, 8, 8), 'drop_rate': 0.},
         'resnet12': {'widths': (8, 8, 8, 8), 'drop_rate': 0.}}
DIM = {'conv4': lambda h, w: 8 * (h // 16) * (w // 16),
       'mlp': lambda *_: 8, 'resnet12': lambda *_: 8,
       'r2d2_net': lambda h, w: 16 * (h // 8 - 1) * (w // 8 - 1)}
COUNT = {'conv4': lambda h, w, c: 9 * 8 * (c + 3 * 8) + 4 * 2 * 8,
         'mlp': lambda h, w, c: 8 * (h * w * c + 8),
         'r2d2_net': lambda h, w, c: 9 * 8 * (c + 3 * 8) + 4 * 2 * 8,
         'resnet12': lambda h, w, c: 8 * (10 * c + 11 * 9 * 8 + 3 * 8
                                          + 16 * 2)}
IMAGES = ((28, 28, 1), (32, 32, 3), (84, 84, 3))
every_model = pytest.mark.parametrize('name', models.MODELS)


def batch(size, image=(20, 17, 3), seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(size, *image)),
                     jnp.float32)


def build(name, image=(20, 17, 3), **options):
  model = models.create(name, **{**SMALL[name], **options})
  return model, jax.jit(lambda: model.init(
      jax.random.key(0), jnp.zeros((2, *image)), train=False))()


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, images):
  return model.apply(variables, images, train=True, mutable=['batch_stats'])


@functools.partial(jax.jit, static_argnums=0)
def frozen(model, variables, images):
  return model.apply(variables, images, train=False)


def num_params(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('image', IMAGES)
@every_model
def test_shapes_and_parameter_count(name, image):
  """Fails if a network is not the published one."""
  model = models.create(name, **SMALL[name])
  images = jnp.zeros((3, *image))
  features, variables = jax.eval_shape(lambda: model.init_with_output(
      jax.random.key(0), images, train=False))
  assert features.shape == (3, DIM[name](*image[:2]))
  assert features.dtype == jnp.float32
  assert num_params(variables['params']) == COUNT[name](*image)


@pytest.mark.parametrize('side, dim', [(84, 72576), (32, 8064), (28, 3584)])
def test_r2d2_net_has_the_published_numbers_of_features(side, dim):
  model = models.create('r2d2_net')
  features, _ = jax.eval_shape(lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))
  assert features.shape == (1, dim)


@pytest.mark.parametrize('edges, dim', [('same', 1152), ('valid', 800)])
def test_conv4_has_the_published_numbers_of_features(edges, dim):
  model = models.create('conv4', width=32, pool_edges=edges)
  features = jax.eval_shape(lambda: model.init_with_output(
      jax.random.key(0), jnp.zeros((1, 84, 84, 3)), train=False)[0])
  assert features.shape == (1, dim)


def test_conv4_pools_an_odd_edge_as_flax_does():
  model, variables = build('conv4', pool_edges='same')
  x = images = batch(3)
  for i in range(4):
    p, s = (variables[kind] for kind in ('params', 'batch_stats'))
    x = layers.Conv3x3(8).apply({'params': p[f'conv_{i}']}, x)
    x = layers.BatchNorm().apply(
        {'params': p[f'norm_{i}'], 'batch_stats': s[f'norm_{i}']}, x, False)
    x = nn.relu(nn.max_pool(x, (2, 2), (2, 2), 'SAME'))
  np.testing.assert_allclose(frozen(model, variables, images),
                             x.reshape(3, -1), rtol=1e-5, atol=1e-6)


def test_default_conv4_has_the_published_sizes():
  """Fails if 84x84 images do not have the literature's 1600 features."""
  features, variables = jax.eval_shape(
      lambda key: models.create('conv4').init_with_output(
          key, jnp.zeros((1, 84, 84, 3)), train=False), jax.random.key(0))
  assert features.shape == (1, 1600)
  assert num_params(variables['params']) == 112_832


def test_initial_kernels_have_the_documented_spread():
  """Fails if the spread follows fan in (3) and not fan out (32 channels)."""
  variables = build('conv4', width=32)[1]['params']
  assert np.std(variables['conv_0']['kernel']) == pytest.approx(
      np.sqrt(2 / (9 * 32)), rel=0.1)


@every_model
def test_training_returns_the_statistics_of_the_batch_itself(name):
  """Fails if statistics are mixed with stored ones, and decay twice."""
  model, variables = build(name)
  features, mutated = train(model, variables, batch(6))
  stored = {name: part if name == 'params' else jax.tree.map(
      lambda s: 3. * s + 1., part) for name, part in variables.items()}
  again, mutated_again = train(model, stored, batch(6))
  jax.tree.map(np.testing.assert_array_equal, mutated, mutated_again)
  np.testing.assert_array_equal(features, again)
  # With them as running statistics, the frozen network is the training one.
  own = {**variables, **mutated}
  np.testing.assert_allclose(frozen(model, own, batch(6)), features,
                             rtol=1e-4, atol=1e-5)
  # ... and no longer looks at the rest of the batch.
  np.testing.assert_allclose(frozen(model, own, batch(6)[:1]),
                             features[:1], rtol=1e-4, atol=1e-5)


@every_model
def test_initialising_in_either_mode_gives_unit_statistics(name):
  """Fails if running statistics start at those of the init images."""
  model, variables = build(name)
  other = jax.jit(lambda: model.init(
      jax.random.key(0), batch(2), train=True))()
  for stats in (v.get('batch_stats', {}) for v in (variables, other)):
    for path, leaf in jax.tree.leaves_with_path(stats):
      assert np.all(leaf == ('var' in str(path[-1])))


def test_batch_norm_against_numpy():
  """Fails if axis, variance, epsilon or shift are wrong."""
  x = 2. * batch(6) - 5.
  params = {'scale': jnp.array([1., -2., .5]), 'bias': jnp.array([0., 1., 2.])}
  stats = {'mean': jnp.array([1., 2., 3.]), 'var': jnp.array([4., 1., 0.])}
  variables = {'params': params, 'batch_stats': stats}
  norm, x64 = layers.BatchNorm(), np.float64(x)
  (of_own, own), (of_stored, _) = (
      norm.apply(variables, x, own, mutable=['batch_stats'])
      for own in (True, False))
  for mean, var, value in (
      (x64.mean((0, 1, 2)), x64.var((0, 1, 2)), of_own),
      (stats['mean'], np.float64(stats['var']), of_stored)):
    expected = ((x64 - mean) / np.sqrt(var + 1e-5) * np.float64(
        params['scale']) + np.float64(params['bias']))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
  own = own['batch_stats']
  np.testing.assert_allclose(own['mean'], x64.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(own['var'], x64.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize('pool', [layers.max_pool_sum, layers._max_of_sum],
                         ids=['here', 'of_tpu'])
@pytest.mark.parametrize('own', [True, False])
@pytest.mark.parametrize('order', [1, 2])
def test_maxima_may_be_taken_before_they_are_normalised(order, own, pool):
  """Fails if a negative scale, which turns maxima to minima, is forgotten."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 7, 6, 4)))  # an odd row
    params = {'scale': jnp.array([1., -2., .5, 0.]),  # and ties
              'bias': jnp.asarray(rng.normal(size=4))}
    stats = {'mean': jnp.zeros(4), 'var': jnp.ones(4)}

    def loss(pooled):
      def of(x, params):
        y, new = layers.BatchNorm().apply(
            {'params': params, 'batch_stats': stats}, x, own, parts=pooled,
            mutable=['batch_stats'])
        # The sum of a branch and of a normalised one, as in a residual block.
        other = layers.Normalised(x[..., ::-1], jnp.arange(4.), jnp.ones(4))
        y = (pool(y, other) if pooled
             else layers.max_pool(y + other.whole()))
        return jnp.sum(jnp.sin(y)) + sum(map(jnp.sum, jax.tree.leaves(new)))
      grad = jax.grad(of, (0, 1))
      if order == 1:
        return grad
      return jax.grad(lambda *given: sum(
          jnp.sum(jnp.cos(g)) for g in jax.tree.leaves(grad(*given))), (0, 1))

    compare(jax.jit(loss(True))(x, params), jax.jit(loss(False))(x, params))


@every_model
def test_mapped_tasks_are_separate_batches(name):
  """Fails if statistics are taken over all tasks of a step."""
  model, variables = build(name)
  tasks = jnp.stack([batch(4), 2. * batch(4, seed=1) + 1.])
  features, mutated = jax.vmap(lambda x: train(model, variables, x))(tasks)
  for t in range(2):
    alone, stats = train(model, variables, tasks[t])
    np.testing.assert_allclose(features[t], alone, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b, t=t: np.testing.assert_allclose(
        a[t], b, rtol=1e-4, atol=1e-5), mutated, stats)


@every_model
def test_bfloat16_is_close_and_keeps_float32_outside(name):
  """Fails if statistics are summed, or parameters stored, in 8 bits."""
  model, variables = build(name)
  low = models.create(name, **SMALL[name], dtype='bfloat16')
  features, _ = train(model, variables, batch(8))
  low_features, mutated = train(low, variables, batch(8))
  error = np.linalg.norm(low_features - features) / np.linalg.norm(features)
  assert 1e-5 < error < 0.03  # not computed in float32, nor far from it
  everything = (low_features, mutated, jax.eval_shape(
      lambda: low.init(jax.random.key(0), batch(2), train=False)))
  assert {leaf.dtype for leaf in jax.tree.leaves(everything)} == {
      jnp.dtype('float32')}


def test_global_pool_is_the_mean_of_the_flat_map():
  """Fails if the pool is a maximum or a mean over channels."""
  image = (36, 33, 3)
  flat, variables = build('conv4', image)
  mean, _ = build('conv4', image, pool='global')
  maps = frozen(flat, variables, batch(2, image))
  np.testing.assert_allclose(frozen(mean, variables, batch(2, image)),
                             maps.reshape(2, 2 * 2, 8).mean(1), rtol=1e-5)


@pytest.mark.parametrize('name, options, words', [
    ('conv5', {}, ("model.name is 'conv5'", 'conv4')),
    ('conv4', {'depth': 3}, ('model.depth is unknown', 'width, pool, dtype')),
    ('conv4', {'width': 0}, ('model.width is 0', 'at least 1')),
    ('conv4', {'width': True}, ('model.width is True',)),
    ('mlp', {'depth': 0}, ('model.depth is 0', 'at least 1')),
    ('conv4', {'pool': 'max'}, ("model.pool is 'max'", 'flat, global')),
    ('conv4', {'dtype': 'float16'}, ("is 'float16'", 'float32, bfloat16')),
])
def test_wrong_options_name_the_right_ones(name, options, words):
  """Fails if a misspelt option is ignored, or ends in a traceback of Flax."""
  with pytest.raises(UserError) as error:
    models.create(name, **options)
  assert all(word in str(error.value) for word in words)


def test_images_that_pooling_would_use_up_are_refused():
  """Fails if features have length 0."""
  with pytest.raises(UserError, match='15x40.*at least 16x16'):
    build('conv4', (15, 40, 3))


def reference(images, kernel):
  return lax.conv_general_dilated(
      images, kernel, (1, 1), ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def first_order(conv):
  return jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), (0, 1))


def second_order(conv):
  # Gradient of a gradient's norm: through every derivative of both rules.
  def norm(x, k):
    return sum(jnp.sum(g ** 2) for g in first_order(conv)(x, k))
  return jax.grad(norm, (0, 1))


# Fewer values in a patch than features, and more: two forms of the kernel's
# gradient. Then blocks of two images, the last of which is filled up, and of
# half an image. Then Winograd's algorithm.
@pytest.mark.parametrize('shape, features', [
    ((2, 5, 4, 1), 3), ((2, 5, 4, 1), 12), ((2, 5, 4, 6), 3),
    ((5, 14, 15, 2), 3), ((2, 66, 30, 64), 2), ((2, 11, 12, 80), 125)])
@pytest.mark.parametrize('order', [first_order, second_order])
def test_convolution_and_its_gradients_in_float64(order, shape, features):
  """Fails if a gradient has a wrong shift, flip or transposition."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.normal(size=shape))
    k = jnp.asarray(rng.normal(size=(3, 3, shape[-1], features)))
    compare(layers.conv3x3(x, k), reference(x, k))
    compare(jax.jit(order(layers.conv3x3))(x, k),
            jax.jit(order(reference))(x, k))


def compare(ours, theirs, tolerance=1e-9):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance * np.abs(b).max()), ours, theirs)


@pytest.mark.parametrize('shape', [
    (2, 4, 6, 3), (2, 5, 4, 3), (1, 6, 7, 3), (1, 1, 1, 3), (2, 2, 1, 3)])
def test_winograds_algorithm_where_tiles_are_cut_off(shape):
  """Fails if a tile reads or leaves values beyond the border."""
  rng = np.random.default_rng(5)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.normal(size=shape))
    k = jnp.asarray(rng.normal(size=(3, 3, 3, 4)))
    value, gradient = jax.vjp(reference, x, k)
    compare(winograd.conv(x, k), value)
    compare((winograd.conv(value, k, turned=True),
             winograd.kernel_gradient(x, value)), gradient(value))


@pytest.mark.parametrize('order', [lambda conv: conv, first_order,
                                   second_order])
def test_wide_convolutions_are_exact_to_round_off(order):
  """Fails if Winograd's transforms lose digits that lax's product keeps."""
  rng = np.random.default_rng(6)
  x = rng.normal(size=(3, 10, 10, 320)).astype(np.float32)
  k = (rng.normal(size=(3, 3, 320, 320)) / 54).astype(np.float32)
  ours, lax_s = (jax.jit(order(conv))(x, k)
                 for conv in (layers.conv3x3, reference))
  with jax.enable_x64(True):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(
        jax.jit(order(reference))(np.float64(x), np.float64(k)))]

  def error(found):
    return [np.abs(np.asarray(a) - b).max() / np.abs(b).max()
            for a, b in zip(jax.tree.leaves(found), leaves, strict=True)]

  for mine, theirs in zip(error(ours), error(lax_s), strict=True):
    assert mine < 2 * theirs, (mine, theirs)


def test_wide_convolutions_in_bfloat16_are_not_transformed():
  """Fails if sums of pixels are rounded to eight bits before the product."""
  x = jnp.ones((4, 8, 8, 128), jnp.bfloat16)
  k = jnp.ones((3, 3, 128, 128), jnp.bfloat16)
  assert 'stablehlo.convolution' in jax.jit(layers.conv3x3).lower(
      x, k).as_text()


@pytest.mark.parametrize('kernel_axis', [0, None])
def test_convolution_mapped_over_tasks(kernel_axis):
  """Fails if kernels of tasks are mixed up, or gradients are not summed."""
  rng = np.random.default_rng(1)

  def mapped(conv):
    return jax.jit(second_order(jax.vmap(conv, (0, kernel_axis))))

  with jax.enable_x64(True):
    x = jnp.asarray(rng.normal(size=(2, 2, 5, 4, 6)))
    k = jnp.asarray(rng.normal(size=(2, 3, 3, 6, 3)[kernel_axis is None:]))
    compare(mapped(layers.conv3x3)(x, k), mapped(reference)(x, k))


def test_accelerators_get_the_plain_gradient_of_all_tasks_at_once():
  """Fails if they run the products for CPUs, or a convolution per task."""
  def loss(k, x):
    return jnp.sum(jax.vmap(layers.conv3x3, (0, None))(x, k) ** 2)

  # Winograd's 16 products, forward and backward.
  for (channels, features), on_cpu in (((6, 5), (1, 1)), ((99, 110), (0, 32))):
    x, k = (jnp.zeros((2, 4, 8, 8, channels)),
            jnp.zeros((3, 3, channels, features)))
    traced = jax.jit(jax.grad(loss)).trace(k, x)
    for platform, counts in (('cpu', on_cpu), ('cuda', (2, 0)),
                             ('tpu', (2, 0))):
      text = traced.lower(lowering_platforms=(platform,)).as_text()
      assert counts == (text.count('stablehlo.convolution'),
                        text.count('stablehlo.dot_general')), platform


@pytest.mark.parametrize('shape', [(2, 6, 4, 3), (1, 7, 5, 2), (1, 2, 3, 1)])
def test_max_pool_against_a_loop(shape):
  """Fails if windows straddle, or an odd border is kept."""
  x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
  weights = np.random.default_rng(3).normal(
      size=(shape[0], shape[1] // 2, shape[2] // 2, shape[3]))
  value, grad = np.zeros(weights.shape), np.zeros(shape)
  for b, i, j, c in np.ndindex(*weights.shape):
    window = x[b, 2 * i:2 * i + 2, 2 * j:2 * j + 2, c]
    row, column = np.unravel_index(window.argmax(), (2, 2))
    value[b, i, j, c] = window.max()
    grad[b, 2 * i + row, 2 * j + column, c] = weights[b, i, j, c]
  np.testing.assert_array_equal(layers.max_pool(x), value.astype(np.float32))
  np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(
      layers.max_pool(x) * weights))(x), grad, rtol=1e-6)


def test_max_pool_differentiates_twice():
  """Fails if a second gradient goes to a wrong place or is missing."""
  x = batch(2, (5, 4, 3))

  def norm(pool):
    inner = jax.grad(lambda x: jnp.sum(pool(x) ** 3))
    return jax.grad(lambda x: jnp.sum(inner(x) ** 2))

  def plain(x):  # no two values are equal
    return jnp.max(x[:, :4].reshape(2, 2, 2, 2, 2, 3), (2, 4))

  compare(norm(layers.max_pool)(x), norm(plain)(x), 1e-5)


def test_max_pool_gives_the_gradient_of_a_tie_to_the_first():
  """Fails if a gradient is counted twice or split."""
  x = jnp.array([[1., 2.], [2., 2.]]).reshape(1, 2, 2, 1)
  grad = jax.grad(lambda x: jnp.sum(layers.max_pool(x)))(x)
  np.testing.assert_array_equal(grad.ravel(), [0., 1., 0., 0.])


def test_max_pool_keeps_a_nan():
  for i in range(4):
    assert jnp.isnan(layers.max_pool(
        jnp.zeros(4).at[i].set(jnp.nan).reshape(1, 2, 2, 1))).all()


def test_unit_norm_has_length_one_and_survives_zero():
  """Fails if a dead feature vector makes every gradient NaN."""
  x = jnp.array([[3., 4.], [0., 0.]])
  np.testing.assert_allclose(layers.unit_norm(x), [[.6, .8], [0., 0.]],
                             rtol=1e-6)
  grad = jax.grad(lambda x: jnp.sum(layers.unit_norm(x)))(x)
  np.testing.assert_allclose(grad[0], [.032, -.024], rtol=1e-5)
  np.testing.assert_array_equal(grad[1], [0., 0.])
