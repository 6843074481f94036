"""`--weights` and `--mode=export`: files of weights in place of a run."""

import json

import command
import jax
import numpy as np
import pytest
from conftest import ROOT, unpack_old_run
from etils import epath

from mtl_jax import main as main_command
from mtl_jax import models, weight_files
from mtl_jax.adapt import __main__ as adapt_main
from mtl_jax.adapt import classify
from mtl_jax.config import flags
from mtl_jax.data import pictures
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.models import plain_weights
from mtl_jax.run import (
  build,
  evaluate_mode,
  features_file,
  init_from,
  trained,
  weights,
  workdir,
)

OWN = """
from mtl_jax.models import conv4


class BACKBONE(conv4.Conv4):
  width: int = 2
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a run of CNN-4, width 8, on glyphs/tiny."""
  path = tmp_path_factory.mktemp('run') / 'run'
  return unpack_old_run(path)


@pytest.fixture(scope='module')
def exported(run):
  """The file that --mode=export writes of it."""
  argv = ['--mode=export', f'--checkpoint={run}',
          f'--workdir={run.parent / "export"}']
  assert main_command.main(argv) == 0
  return run.parent / 'export/weights.safetensors'


def config_of(path, *more, config='configs/glyphs_5shot.py:mtl', **changes):
  """Returns the config of a command with --weights."""
  values = {'data.name': 'glyphs/tiny', 'model.width': 8, 'eval.tasks': 4,
            'eval.baselines': False, 'log.progress': False} | changes
  return flags.parse(
      [f'--config={ROOT / config}', f'--weights={path}', '--workdir=none',
       '--mode=evaluate', *more,
       *(f'--config.{k.replace("__", ".")}={v}' for k, v in values.items())],
      workdir.saved_config).config


def write(path, arrays):
  path.write_bytes(weight_files.pack(arrays, {}))
  return path


def test_an_exported_file_says_what_it_is(run, exported):
  said = weight_files.json_of(weight_files.read(exported), 'mtl_jax')
  assert said['data'] == json.loads((run / 'data.json').read_text())
  assert said['step'] == trained.load(run).step
  assert (said['method'], said['model']['name'], said['model']['width']) == (
      'mtl', 'conv4', 8)


def test_an_exported_file_gives_the_same_features_and_scores(
    run, exported, tmp_path):
  """Fails if anything of the backbone or of its data is lost on the way."""
  config = config_of(exported)
  results = {}
  for name, checkpoint in (('run', run), ('file', None)):
    c = config if checkpoint is None else workdir.saved_config(run)
    c.eval.update(config.eval)
    c.log.progress = False
    features_file.write(c, checkpoint, tmp_path / name)
    results[name] = evaluate_mode.evaluate_run(
        c, checkpoint, tmp_path / f'{name} test')
  one, two = (np.load(tmp_path / name / 'features.npz') for name in results)
  for key in one.files:
    np.testing.assert_array_equal(one[key], two[key])
  assert results['run']['scores'] == results['file']['scores']
  saved = json.loads((tmp_path / 'file test/test.json').read_text())
  assert saved['checkpoint_step'] is None
  assert saved['weights']['file'] == str(exported)
  assert saved['weights']['sha256'] == weight_files.read(exported).sha256


def test_a_command_says_which_weights_it_tests(exported, tmp_path, capsys):
  argv = [f'--config={ROOT}/configs/glyphs_5shot.py', '--mode=evaluate',
          f'--weights={exported}', f'--workdir={tmp_path / "test"}',
          '--config.data.name=glyphs/tiny', '--config.model.width=8',
          '--config.eval.tasks=4', '--config.eval.baselines=False']
  assert main_command.main(argv) == 0
  printed = capsys.readouterr().out
  sha = weight_files.read(exported).sha256[:12]
  for words in (f'weights: the backbone of {exported} (sha256 {sha}..; first '
                'kernel encoder.0.0.weight)',
                'images [28, 28, 1] of glyphs/tiny, normalised by mean 0.1',
                f'BatchNorm: running; weights {exported}, sha256 {sha}',
                'these weights, logistic head'):
    assert words in printed


def test_own_pictures_are_classified_as_by_the_run(run, exported, tmp_path):
  store = stores.load('glyphs/tiny', 'test')
  for folder, offset in (('known', 0), ('new', 2)):
    for m in range(3):
      place = tmp_path / folder / f'class {m}'
      place.mkdir(parents=True)
      for i in range(2):
        image = store.images[store.offsets[m] + offset + i]
        (place / f'{i}.png').write_bytes(pictures.png(image))
  by_run = classify.adapt(run, tmp_path / 'known', tmp_path / 'new')
  assert adapt_main.main([
      f'--config={ROOT}/configs/glyphs_5shot.py', f'--weights={exported}',
      '--config.data.name=glyphs/tiny', '--config.model.width=8',
      f'--support={tmp_path / "known"}', f'--query={tmp_path / "new"}',
      f'--out={tmp_path / "out"}']) == 0
  by_file = json.loads((tmp_path / 'out/predictions.json').read_text())
  assert by_file['predictions'] == by_run['predictions']
  assert by_file['weights']['file'] == str(exported)
  assert by_file['trained_on'] == by_run['trained_on']


def start(config, path):
  """Returns (state of random weights, init_from.Start) of a new run."""
  data = build.describe_data(stores.load('glyphs/tiny', 'train'))
  initial = build.initial_state(
      config, build.algorithm_of(config, len(data['classes'])),
      data['image_shape'])
  return initial, init_from.load(config, path, initial, data)


def test_training_starts_from_the_backbone_of_a_file(run, exported, tmp_path):
  initial, started = start(config_of(exported), tmp_path)
  mine, theirs = started.state.variables, trained.load(run).variables
  jax.tree.map(np.testing.assert_array_equal, mine['params']['backbone'],
               theirs['params']['backbone'])
  jax.tree.map(np.testing.assert_array_equal, mine['batch_stats'],
               theirs['batch_stats'])
  for name in {*mine['params']} - {'backbone'}:  # the heads
    jax.tree.map(np.testing.assert_array_equal, mine['params'][name],
                 initial.variables['params'][name])
  assert f'first weights: the backbone of {exported}' in started.line


def test_a_run_resumes_without_the_file(run):
  """Fails if a run needs the file for ever."""
  initial, started = start(config_of('gone.pth'), epath.Path(run))
  assert started.state is initial and not started.line


def test_the_path_is_kept_whole(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  config = flags.parse([f'--config={command.CONFIG}', '--weights=~/a.pth'],
                       None).config
  assert config.weights == str(tmp_path / 'a.pth')


@pytest.mark.parametrize('argv, words', [
    (['--mode=evaluate', '--weights=a'], '--workdir is missing'),
    (['--mode=evaluate'], '--checkpoint is missing: .* or --weights, a file'),
    (['--mode=export', '--weights=a'], '--weights is for other modes'),
    (['--mode=export'], '--checkpoint is missing: .* of a run$'),
    (['--mode=features', '--weights=a', '--checkpoint=b'], 'name one'),
    (['--weights=a', '--init_from=b'], '--init_from and --weights are both'),
    (['--weights=a', '--config.init_from=b'], 'are both set')])
def test_flags_that_do_not_fit_are_named(argv, words):
  with pytest.raises(UserError, match=words):
    flags.parse([f'--config={command.CONFIG}', *argv], None)


def test_weights_without_a_config_are_refused():
  with pytest.raises(UserError, match='--config is missing'):
    flags.parse(['--mode=features', '--weights=a', '--workdir=b'], None)


EITHER = '--checkpoint, a run, is required; or --weights, a file, and --config'


@pytest.mark.parametrize('given, words', [
    (['--weights=a'], EITHER), (['--checkpoint=a', '--config=b'], EITHER),
    (['--weights=a', '--config=b', '--checkpoint=c'], EITHER),
    (['--config=b', '--out=c'], EITHER), ([], EITHER),
    (['--weights=a', '--config=b'], '--out is required with --weights'),
    (['--checkpoint=a', '--config.model.width=4'], 'unrecognized arguments'),
    (['--weights=a', '--out=b', f'--config={command.CONFIG}',
      '--config.model.widt=4'], 'config.model.widt is unknown')])
def test_adapt_needs_a_run_or_all_of_a_file(given, words, capsys):
  assert adapt_main.main([*given, '--support=x', '--query=y']) == 2
  assert words in capsys.readouterr().err


@pytest.mark.parametrize('changes, words', [
    ({'model.width': 4}, 'have 8 channels, config.model.width is 4: set '
     '--config.model.width=8'),
    ({'model.pool': 'global'}, 'config.model.pool is global, and the run that '
     'the file is of had another: set --config.model.pool=flat'),
    ({'data.mean': '.5,.5,.5', 'data.std': '1,1,1'},
     'config.data.mean has 3 numbers: the images have 1 channels'),
    ({'data.mean': '.5,'}, 'config.data.mean is set and config.data.std is'),
    ({'data.std': '.5,'}, 'config.data.std is set and config.data.mean is'),
    ({'data.mean': '.5,', 'data.std': '1,', 'data.normalise': False},
     'config.data.normalise is False'),
    ({'data.mean': '.5,', 'data.std': '0,'}, 'config.data.std has 0')])
def test_a_config_that_does_not_fit_is_named(changes, words, exported):
  with pytest.raises(UserError, match=words):
    weights.load(config_of(exported, **changes))


def test_the_other_network_is_named(exported):
  config = config_of(exported)
  config.model = {'name': 'resnet12', **models.defaults('resnet12')}
  with pytest.raises(UserError, match='is of a CNN-4: take a config whose '
                     'config.model.name is conv4, not resnet12'):
    weights.load(config)


def test_uneven_widths_and_other_channels_are_named(exported, tmp_path):
  arrays = dict(weight_files.read(exported).arrays)
  for name, sizes in (('encoder.3.0.weight', (5, 8, 3, 3)),
                      *((f'encoder.3.{n}', (5,)) for n in (
                          '0.bias', '1.weight', '1.bias', '1.running_mean',
                          '1.running_var'))):
    arrays[name] = np.ones(sizes, np.float32)
  with pytest.raises(UserError, match='conv4 are equally wide'):
    weights.load(config_of(write(tmp_path / 'a', arrays)))
  arrays = dict(weight_files.read(exported).arrays)
  arrays['encoder.0.0.weight'] = np.ones((8, 3, 3, 3), np.float32)
  with pytest.raises(UserError, match='takes images of 3 channels, those'):
    weights.load(config_of(write(tmp_path / 'b', arrays)))


def test_weights_within_params_are_those_of_pytorch(exported, tmp_path):
  """Fails if {'params': state_dict} is taken for a file of ours."""
  arrays = weight_files.read(exported).arrays
  config = config_of(write(tmp_path / 'a', {
      f'params.{name}': array for name, array in arrays.items()}))
  config.log.progress = False
  found, wanted = (weights.load(c).variables['params']['backbone']
                   for c in (config, config_of(exported)))
  for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
    np.testing.assert_array_equal(one, other)


def test_variances_below_zero_are_refused():
  like = {'params': {}, 'batch_stats': {'norm_0': {'var': np.ones(2, 'f4')}}}
  with pytest.raises(UserError, match='norm_0.var has variances below 0'):
    plain_weights.from_arrays(
        {'batch_stats.norm_0.var': np.array([1, -1], 'f4')}, like, 'a file')


def test_weights_of_a_network_of_ones_own(tmp_path, monkeypatch):
  """Fails if they are taken in part, or need the names of PyTorch."""
  (tmp_path / 'net.py').write_text(OWN)
  config = config_of(tmp_path / 'weights')
  config.model = {'name': str(tmp_path / 'net.py'), 'width': 2, 'pool': 'flat',
                  'dtype': 'float32', 'pool_edges': 'valid'}
  algorithm = build.algorithm_of(config, 5)
  variables = build.initial_state(config, algorithm, (28, 28, 1)).variables
  variables['batch_stats']['norm_0']['mean'] += 3.
  arrays = plain_weights.to_arrays(weights.backbone_of(variables))
  write(tmp_path / 'weights', arrays)
  model = weights.load(config)
  jax.tree.map(np.testing.assert_array_equal, weights.backbone_of(variables),
               weights.backbone_of(model.variables))
  first = 'params.conv_0.kernel'
  for change, words in (
      ({first: None}, f'has no {first}'),
      ({'params.conv_9.kernel': arrays[first]}, 'conv_9.kernel belongs to'),
      ({first: arrays[first][:2]}, 'the shape .2, 3, 1, 2., the network need'),
      ({first: arrays[first] * np.nan}, f'{first} has values that are not')):
    changed = {k: v for k, v in (arrays | change).items() if v is not None}
    write(tmp_path / 'weights', changed)
    with pytest.raises(UserError, match=words):
      weights.load(config)
  write(tmp_path / 'weights', {'encoder.0.0.weight': arrays[first]})
  with pytest.raises(UserError, match='take a file of --mode=export'):
    weights.load(config)


def test_constants_of_ones_own_normalise(exported, tmp_path):
  """Fails if published weights get images as other weights had them."""
  plain = write(tmp_path / 'plain', weight_files.read(exported).arrays)
  data = weights.load(config_of(
      plain, **{'data.mean': '.25,', 'data.std': '.5,'})).data
  assert (data['mean'], data['std']) == ([.25], [.5])
  data = weights.load(config_of(plain, **{'data.normalise': False})).data
  assert (data['mean'], data['std']) == ([0.], [1.])
  # A file of --mode=export says by which constants it was trained.
  said = weights.load(config_of(exported, **{'data.normalise': False})).data
  assert said['mean'] == pytest.approx([0.127], abs=1e-3)
  data = weights.load(config_of(
      exported, **{'data.mean': '.25,', 'data.std': '.5,'})).data
  assert (data['mean'], data['std']) == ([.25], [.5])
  store = stores.load('glyphs/tiny', 'test', constants=((.25,), (.5,)))
  assert (store.mean, store.std) == (np.float32(.25), np.float32(.5))


def test_nothing_is_written_for_a_file_that_is_refused(tmp_path):
  bad = tmp_path / 'bad.pth'
  bad.write_bytes(b'PK')
  for argv in ([], ['--mode=evaluate'], ['--mode=features']):
    done = main_command.main(
        [*command.arguments(tmp_path / 'new'), f'--weights={bad}', *argv])
    assert done == 2
  assert [p.name for p in tmp_path.iterdir()] == ['bad.pth']
