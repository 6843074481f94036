"""Weights of PyTorch: all layouts, features, and what is refused."""

import re
import zipfile

import jax
import jax.numpy as jnp
import make_resnet12_torch
import make_torch_weights as peer
import numpy as np
import pytest

from mtl_jax import models, weight_files
from mtl_jax.errors import UserError
from mtl_jax.models import torch_weights

# As published code names the layers, typed in from it: the name of an entry of
# the files of make_torch_weights.py -> its name there.
CNN4 = {
    'FEAT': lambda i, part: f'encoder.{i}.{part}',
    'RFS': lambda i, part: f'layer{i + 1}.{part}',
    'Closer Look': lambda i, part: (
        f'feature.trunk.{i}.{("C", "BN")[part]}'),
    'learn2learn': lambda i, part: (
        f'features.{i}.{("conv", "normalize")[part]}'),
    'torchmeta': lambda i, part: (
        f'features.layer{i + 1}.{("conv", "norm")[part]}'),
    'MetaOptNet': lambda i, part: f'encoder.{i}.block.{part}',
    'mmfewshot': lambda i, part: f'backbone.layers.{i}.layers.{part}',
    'Gidaris': lambda i, part: (
        f'conv_blocks.{i}.layers.{("Conv", "BatchNorm")[part]}'),
    'one Sequential': lambda i, part: f'features.{4 * i + part}',
    'numbered': lambda i, part: f'{("conv", "bn")[part]}{i + 1}'}
RESNET12 = {
    'Meta-Baseline': lambda name: name,
    'RFS': lambda name: re.sub(r'(layer\d)', r'\1.0', name),
    'mmfewshot': lambda name: re.sub(
        r'(layer\d)', r'backbone.\1.0', name).replace('bn', 'norm'),
    'C and BN': lambda name: re.sub(r'(layer\d)', r'\1.0', name).replace(
        'conv', 'C').replace('bn', 'BN')}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Returns name -> {PyTorch's name: array} of the backbones."""
  folder = tmp_path_factory.mktemp('files')
  with zipfile.ZipFile(peer.PATH) as archive:
    archive.extractall(folder)
  read = lambda name: weight_files.read(folder / name).arrays
  return {
      'folder': folder,
      'conv4': {k.removeprefix('model.module.'): v
                for k, v in read('cnn4.pth').items() if 'encoder' in k},
      'resnet12': {k.removeprefix('0.'): v
                   for k, v in read('resnet12.pth.tar').items()}}


def rename_cnn4(entries, layout):
  """Returns the entries of ProtoNet's network with other names."""
  renamed = {}
  for name, value in entries.items():
    _, i, part, entry = name.split('.')
    renamed[f'{CNN4[layout](int(i), int(part))}.{entry}'] = value
  return renamed


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('name, network, options', [
    ('cnn4.pth', 'conv4', {'width': 3}),
    ('resnet12.pth.tar', 'resnet12', {'widths': (2, 3, 4, 5)})])
def test_features_are_those_of_pytorch(name, network, options, files):
  """Fails if a bias, a statistic or a kernel is lost or misplaced."""
  variables = models.from_torch(files['folder'] / name, network)
  model = models.create(network, **options)
  shapes = jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 33, 37, 3)), train=False))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(
      lambda x: (x.shape, x.dtype), shapes)
  features = model.apply(variables, peer.images().transpose(0, 2, 3, 1),
                         train=False)
  if network == 'conv4':  # PyTorch flattens channels first
    features = features.reshape(3, 2, 2, 3).transpose(0, 3, 1, 2)
  theirs = np.load(files['folder'] / 'features.npz')[name]
  np.testing.assert_allclose(features.reshape(theirs.shape), theirs,
                             rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize('prefix', ['', 'module.', 'model.encoder.'])
@pytest.mark.parametrize('layout', CNN4)
def test_all_layouts_of_cnn4(layout, prefix, files):
  renamed = {prefix + name: value for name, value in rename_cnn4(
      files['conv4'], layout).items()}
  found = torch_weights.find(renamed | {'fc.weight': np.zeros((5, 12))},
                             'conv4', 'file')
  assert (found.widths, found.channels, found.left_out) == (
      (3,) * 4, 3, ('fc.weight',))
  assert_equal(found.variables, models.from_torch(files['conv4'], 'conv4'))


@pytest.mark.parametrize('layout', RESNET12)
def test_all_layouts_of_resnet12(layout, files):
  renamed = {f'x.{RESNET12[layout](name)}': value
             for name, value in files['resnet12'].items()}
  found = torch_weights.find(renamed, 'resnet12', 'file')
  assert (found.widths, found.channels) == ((2, 3, 4, 5), 3)
  assert_equal(found.variables, models.from_torch(files['resnet12']))


def test_modules_with_two_names_are_one_network(files):
  """Fails for Closer Look, whose blocks hold all layers in a second list."""
  entries = rename_cnn4(files['conv4'], 'Closer Look')
  again = {re.sub(r'(\d)\.(C|BN)\.', lambda m: (
      f'{m[1]}.trunk.{int(m[2] == "BN")}.'), name): value
           for name, value in entries.items()}
  assert len(entries | again) == 2 * len(entries)
  assert_equal(models.from_torch(entries | again, 'conv4'),
               models.from_torch(files['conv4'], 'conv4'))
  other = {'feature.trunk.1.trunk.0.weight': np.ones((3, 3, 3, 3), np.float32)}
  with pytest.raises(UserError, match='trunk.1.trunk.0.weight belongs to ano'):
    models.from_torch(entries | other, 'conv4')


@pytest.mark.parametrize('network', ['conv4', 'resnet12'])
def test_written_weights_have_the_names_of_pytorch(network, files):
  """Fails if load_state_dict would find an entry missing or unexpected."""
  theirs = files['conv4'] if network == 'conv4' else (
      make_resnet12_torch.state_dict((2, 3, 4, 5)))
  variables = models.from_torch(theirs, network)
  written = models.to_torch(variables, network)
  assert {k: (v.shape, v.dtype.kind) for k, v in written.items()} == {
      k: (v.shape, v.dtype.kind) for k, v in theirs.items()}
  assert_equal(models.from_torch(written, network), variables)


KERNEL = np.zeros((3, 3, 3, 3), np.float32)


@pytest.mark.parametrize('change, words', [
    ({'encoder.2.1.running_mean': None}, ('no encoder.2.1.running_mean',)),
    ({'encoder.3.0.weight': None}, ('no encoder.3.0.weight', 'CNN-4 needs')),
    ({'encoder.4.0.weight': KERNEL}, ('encoder.4.0.weight', 'another network')),
    ({'encoder.2.2.weight': KERNEL[0, 0, 0]}, ('encoder.2.2.weight',)),
    ({'encoder.attention': KERNEL}, ('encoder.attention', 'another network')),
    ({'encoder.1.0.weight': KERNEL[..., :2]},
     ('encoder.1.0.weight', '(3, 3, 3, 2)', '(3, 3, 3, 3)')),
    ({'encoder.1.0.weight': KERNEL[0]}, ('encoder.1.0.weight', '(3, 3, 3)')),
    ({'encoder.1.0.bias': KERNEL[0, 0]}, ('encoder.1.0.bias', '(3, 3)')),
    ({'encoder.1.1.running_var': np.float32([1, -1, 1])},
     ('encoder.1.1.running_var', 'negative')),
    ({'encoder.1.1.weight': np.float32([1, np.inf, 1])},
     ('encoder.1.1.weight', 'not finite')),
    ({'encoder.0.1.bias': np.float64([1e300, 0, 0])},
     ('encoder.0.1.bias', 'not finite')),
    ({'encoder.1.0.weight': KERNEL.astype(np.int8)},
     ('encoder.1.0.weight', 'int8', 'floating-point')),
    ({'encoder.1.0.weight': KERNEL.astype(complex)}, ('complex',)),
])
def test_wrong_weights_are_named(change, words, files):
  """Fails if a network is loaded only in part, or wrongly."""
  entries = {k: v for k, v in {**files['conv4'], **change}.items()
             if v is not None}
  with pytest.raises(UserError) as error:
    models.from_torch(entries, 'conv4')
  assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('options, words', [
    ({'network': 'conv4', 'widths': (64,) * 4}, ('(3, 3, 3, 3)', 'not (64,')),
    ({'network': 'conv4', 'channels': 1}, ('channels 3, not 1',)),
    ({}, ('no layer1.0.conv1.weight', 'docs/weights.md', 'encoder.0.0'))])
def test_a_file_of_another_network_is_refused(options, words, files):
  path = files['folder'] / 'cnn4.pth'
  with pytest.raises(UserError) as error:
    models.from_torch(path, **options)
  assert all(word in str(error.value) for word in (str(path), *words))
