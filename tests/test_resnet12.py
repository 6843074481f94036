"""ResNet-12: against PyTorch, its weights from elsewhere, its dropping."""

import collections
import functools

import jax
import jax.numpy as jnp
import make_resnet12_torch as peer
import numpy as np
import pytest

from mtl_jax import models
from mtl_jax.errors import UserError
from mtl_jax.models import drop, layers, resnet12

TINY = (4, 4, 4, 64)


def channels_last(images):
  return jnp.asarray(images.transpose(0, 2, 3, 1))


def torch_order(features, size, width):
  """Flat features from our order into PyTorch's, channels first."""
  height, breadth = size[0] // 16, size[1] // 16
  maps = np.reshape(features, (-1, height, breadth, width))
  return maps.transpose(0, 3, 1, 2).reshape(len(maps), -1)


@functools.partial(jax.jit, static_argnums=0)
def frozen(model, variables, images):
  return model.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def training(model, variables, images, tasks_seen, key):
  return model.apply(variables, images, train=True, tasks_seen=tasks_seen,
                     mutable=['batch_stats'], rngs={'dropout': key})[0]


def close(ours, theirs, tolerance):
  np.testing.assert_allclose(ours, theirs, rtol=tolerance,
                             atol=tolerance * np.abs(theirs).max())


def test_published_sizes():
  """Fails if the network is not the one of the published results."""
  for pool, dim in (('global', 640), ('flat', 16000)):
    features, variables = jax.eval_shape(
        lambda key, pool=pool: models.create(
            'resnet12', pool=pool).init_with_output(
                key, jnp.zeros((1, 84, 84, 3)), train=False),
        jax.random.key(0))
    assert features.shape == (1, dim)
    assert sum(leaf.size for leaf in jax.tree.leaves(
        variables['params'])) == 12_424_320
    # What from_torch returns fits, entry by entry.
    loaded = models.from_torch(peer.state_dict(peer.PUBLISHED))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(loaded) == shapes(variables)


@pytest.mark.parametrize('case', peer.CASES)
def test_features_of_stored_pytorch_runs(case):
  """Fails if a layer computes something else than PyTorch does.

  It could be a slope, the order of pool and add, a transposed kernel, the pool
  of odd maps (35 x 50 has some), epsilon, or misplaced statistics.
  """
  widths, shape, pool = peer.CASES[case]
  model = models.create('resnet12', widths=widths, pool=pool)
  variables = models.from_torch(peer.state_dict(widths), widths=widths)
  features = frozen(model, variables, channels_last(peer.images(shape)))
  if pool == 'flat':
    features = torch_order(features, shape[2:], widths[-1])
  close(features, np.load(peer.PATH)[case], 1e-4)


@pytest.mark.parametrize('pool', ['global', 'flat'])
def test_published_network_beside_pytorch(pool):
  """Fails if the same is wrong at the size of the benchmarks."""
  torch = pytest.importorskip('torch')
  shape = (2, 3, 84, 84)
  module = peer.network(peer.PUBLISHED, pool)
  with torch.no_grad():
    expected = module(torch.tensor(peer.images(shape))).numpy()
  model = models.create('resnet12', pool=pool)
  features = frozen(model, models.from_torch(module.state_dict()),
                    channels_last(peer.images(shape)))
  if pool == 'flat':
    features = torch_order(features, shape[2:], 640)
  close(features, expected, 1e-4)


def test_training_and_its_gradient_beside_pytorch():
  """Fails if a gradient is not that of the function, in any layer."""
  torch = pytest.importorskip('torch')
  module = peer.network(peer.SMALL, 'global').train()
  images = peer.images((6, 3, 35, 50))
  weights = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
  variables = models.from_torch(module.state_dict(), widths=peer.SMALL)
  model = models.create('resnet12', widths=peer.SMALL, drop_rate=0.)
  expected = module(torch.tensor(images))
  (expected * torch.tensor(weights)).sum().backward()
  gradients = {**module.state_dict(), **{
      name: value.grad for name, value in module.named_parameters()}}

  @jax.jit
  def ours(params, images):
    def loss(params):
      features, _ = model.apply({**variables, 'params': params}, images,
                                train=True, mutable=['batch_stats'])
      return jnp.sum(features * weights), features
    return jax.grad(loss, has_aux=True)(params)

  grads, features = ours(variables['params'], channels_last(images))
  close(features, expected.detach().numpy(), 1e-4)
  jax.tree.map(lambda a, b: close(a, b, 2e-3), grads, models.from_torch(
      gradients, widths=peer.SMALL)['params'])


def tiny_state():
  return peer.state_dict((2, 2, 2, 2))


def read_tiny(state):
  return models.from_torch(state, widths=(2, 2, 2, 2))


@pytest.mark.parametrize('wrap', [
    lambda s: {f'module.{k}': v for k, v in s.items()},
    lambda s: {'opt': object(), 'epoch': 3, 'model': {
        **s, 'classifier.weight': np.zeros((64, 2))}},
    lambda s: {'embedding': {f'module.{k}': v for k, v in s.items()},
               'head': {'scale': np.ones(1)}},
    lambda s: {'state_dict': {
        'train_heads': np.zeros((64, 2)),
        **{f'model.{k}': v for k, v in s.items()},
        **{f'features.0.{k}': v for k, v in s.items()}}},
    lambda s: collections.OrderedDict(
        (f'encoder.{k}', jnp.asarray(v)) for k, v in s.items()),
])
def test_wrapped_weights_are_found(wrap):
  """Fails if entries of a published file must be renamed by hand."""
  jax.tree.map(np.testing.assert_array_equal, read_tiny(wrap(tiny_state())),
               read_tiny(tiny_state()))


def test_reading_leaves_the_mapping_alone():
  """Fails if a checkpoint can be read only once."""
  state = tiny_state()
  read_tiny(state)
  assert list(state) == list(tiny_state())


@pytest.mark.parametrize('change, words', [
    ({'layer2.0.bn3.running_var': None},
     ('no layer2.0.bn3.running_var', 'needs')),
    ({'layer4.0.downsample.0.weight': np.zeros((2, 3, 1, 1))},
     ('layer4.0.downsample.0.weight', '(2, 3, 1, 1)', '(2, 2, 1, 1)')),
    ({'layer1.0.bn1.bias': np.array([0., np.nan])},
     ('layer1.0.bn1.bias', 'not finite')),
    ({'layer1.0.se.fc.0.weight': np.zeros(1)},
     ('layer1.0.se.fc.0.weight', 'another network')),
    ({'layer1.1.conv1.weight': np.zeros(1)},
     ('layer1.1.conv1.weight', 'another network')),
    ({f'teacher.{k}': 2. * v for k, v in tiny_state().items()},
     ('two networks', 'teacher.layer1.0.conv1.weight')),
])
def test_wrong_weights_are_named(change, words):
  """Fails if a network is loaded only in part."""
  state = {k: v for k, v in {**tiny_state(), **change}.items()
           if v is not None}
  with pytest.raises(UserError) as error:
    read_tiny(state)
  assert all(word in str(error.value) for word in words)


def test_weights_of_something_else_are_refused():
  """Fails if a file of another network ends in a KeyError."""
  with pytest.raises(UserError, match='no layer1.0.conv1.weight'):
    models.from_torch({'model': {'encoder.0.weight': np.zeros(3)}})


@functools.cache
def tiny(**options):
  """A model whose flat features show block 4's DropBlock, and variables."""
  model = models.create('resnet12', widths=TINY, pool='flat', drop_block=2,
                        **options)
  variables = models.from_torch(peer.state_dict(TINY), widths=TINY)
  return model, variables, channels_last(peer.images((16, 3, 32, 32)))


def test_drop_block_ramps_with_the_tasks_seen():
  """Fails if the rate is full at once, never stops rising or counts calls."""
  model, variables, images = tiny(drop_rate=0.5, ramp_tasks=1000)
  fractions = []
  for tasks_seen in (0, 200, 1000, 5000):
    features = training(model, variables, images, jnp.int32(tasks_seen),
                        jax.random.key(3))
    fractions.append(np.mean(np.asarray(features) == 0.))
  # 1024 maps of 2 x 2, each blanked as a whole.
  np.testing.assert_allclose(fractions, [0., .1, .5, .5],
                             atol=4. * np.sqrt(.25 / 1024))
  assert fractions[0] == 0. and fractions[2] == fractions[3]


def test_keys_decide_what_is_dropped_and_only_in_training():
  """Fails if dropout of blocks 1 and 2 is missing, or active in tests."""
  model, variables, images = tiny(drop_rate=0.5, ramp_tasks=1000)
  run = lambda seed: training(model, variables, images, jnp.int32(0),
                              jax.random.key(seed))
  np.testing.assert_array_equal(run(0), run(0))
  relative = np.linalg.norm(run(0) - run(1)) / np.linalg.norm(run(0))
  assert relative > 0.1
  plain, *_ = tiny(drop_rate=0.)
  np.testing.assert_array_equal(frozen(model, variables, images),
                                frozen(plain, variables, images))


def test_bfloat16_with_dropping_is_close():
  """Fails if the same key drops other values, or a mask is in 8 bits."""
  model, variables, images = tiny(drop_rate=0.1, ramp_tasks=1000)
  low, *_ = tiny(drop_rate=0.1, ramp_tasks=1000, dtype='bfloat16')
  both = [training(m, variables, images, jnp.int32(1000), jax.random.key(0))
          for m in (model, low)]
  # The same values are dropped. Another one may round to zero in bfloat16.
  dropped = both[0] == 0.
  assert dropped.any() and not both[1][dropped].any()
  rounded = (both[1] == 0.) & ~dropped
  assert rounded.sum() < 0.01 * dropped.sum()
  assert np.abs(both[0][rounded]).max(initial=0.) < 0.02 * np.abs(both[0]).max()
  assert both[1].dtype == jnp.float32
  error = np.linalg.norm(both[1] - both[0]) / np.linalg.norm(both[0])
  assert 1e-5 < error < 0.05


def test_second_order_gradient(monkeypatch):
  """Fails if a layer of ours has no second gradient, or a wrong one.

  Methods that adapt by gradient steps could not train this network.
  """
  model, variables, images = tiny(drop_rate=0.1, ramp_tasks=1000)

  def product(loss, params):
    return jax.grad(lambda p: sum(jnp.sum(g ** 2) for g in jax.tree.leaves(
        jax.grad(loss)(p))))(params)

  def whole(params):
    return jnp.sum(training(model, {**variables, 'params': params}, images,
                            jnp.int32(1000), jax.random.key(0)) ** 2)

  # The whole network is only traced, for time; a block of it is computed.
  jax.eval_shape(lambda p: product(whole, p), variables['params'])
  block = resnet12.Block(4, 'float32')
  part = {name: variables[name]['block_1'] for name in variables}
  x = channels_last(peer.images((3, 4, 6, 7)))

  def loss(params):
    y, _ = block.apply({**part, 'params': params}, x, True,
                       mutable=['batch_stats'])
    y = drop.dropout(jax.random.key(0), y, 0.1)
    return jnp.sum(jnp.sin(drop.drop_block(jax.random.key(1), y, 0.1, 2)))

  ours = jax.jit(functools.partial(product, loss))(part['params'])
  monkeypatch.setattr(layers, 'conv3x3', layers._conv)
  monkeypatch.setattr(layers, 'max_pool', lambda x: jnp.max(
      x[:, :, :6].reshape(3, 3, 2, 3, 2, 4), (2, 4)))
  plain = jax.jit(functools.partial(product, loss))(part['params'])
  jax.tree.map(lambda a, b: close(a, b, 2e-3), ours, plain)


@pytest.mark.parametrize('options, words', [
    ({'widths': (64, 64)}, ('model.widths is (64, 64)', 'needs 4')),
    ({'widths': 64}, ('model.widths is 64', 'needs 4')),
    ({'widths': (64, 0, 3, 4)}, ('model.widths is 0', 'at least 1')),
    ({'drop_rate': 1.}, ('model.drop_rate is 1.0', 'below 1')),
    ({'drop_rate': -.1}, ('model.drop_rate is -0.1',)),
    ({'drop_block': 0}, ('model.drop_block is 0', 'at least 1')),
    ({'ramp_tasks': 0}, ('model.ramp_tasks is 0', 'at least 1')),
    ({'pool': 'max'}, ("model.pool is 'max'", 'global, flat')),
    ({'dtype': 'float16'}, ("is 'float16'", 'float32, bfloat16')),
    ({'width': 64}, ('model.width is unknown', 'widths, drop_rate')),
])
def test_wrong_options_name_the_right_ones(options, words):
  """Fails if an option is ignored, or ends in a traceback of Flax."""
  with pytest.raises(UserError) as error:
    models.create('resnet12', **options)
  assert all(word in str(error.value) for word in words)
