"""A run that starts from the weights of another one."""

import json
import re

import command
import jax
import numpy as np
import pytest

from mtl_jax.config import flags
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.run import build, init_from, loop, parts, trained, weights


def config_of(path, method='mtl', **changes):
  """Returns the config of a tiny run of one epoch, as flags give it."""
  values = {'config__train__max_epochs': 1,
            'config__log__progress': False,
            'config__parallel__devices': 1} | changes
  if method != 'mtl':
    values['config__method__head_init'] = None
  return flags.parse(
      command.arguments(path, f'{command.CONFIG}:{method}', **values),
      None).config


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """The workdir of a run."""
  path = tmp_path_factory.mktemp('first') / 'run'
  loop.train_and_evaluate(config_of(path), path)
  return path


@pytest.fixture(scope='module')
def start_of(first, tmp_path_factory):
  """Returns (config) -> (state of random weights, Start from `first`)."""
  def start(config, **other):
    run = parts.make_run(config)
    data = build.describe_data(run.splits['train']) | other
    initial = build.initial_state(config, run.algorithm, data['image_shape'])
    config.init_from = str(first)
    return initial, init_from.load(
        config, tmp_path_factory.mktemp('new'), initial, data)
  return start


def assert_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def test_the_same_method_on_the_same_classes_takes_all_weights(
    first, start_of, tmp_path):
  _, start = start_of(config_of(tmp_path, config__optimizer__learning_rate=.1))
  assert_equal(start.state.variables, trained.load(first).variables)
  assert int(start.state.step) == 0
  assert f'all of step 4 of {first}' in start.line


def test_another_method_takes_the_backbone_alone(first, start_of, tmp_path):
  initial, start = start_of(config_of(tmp_path, 'maml'))
  mine, theirs = start.state.variables, trained.load(first).variables
  assert_equal(mine['params']['backbone'], theirs['params']['backbone'])
  assert_equal(mine['batch_stats'], theirs['batch_stats'])
  assert_equal(mine['params']['head'], initial.variables['params']['head'])
  assert f'the backbone of step 4 of {first}' in start.line


def test_another_data_set_takes_the_backbone_alone(first, start_of, tmp_path):
  """Fails if heads of other classes are taken, with any schedule and rate."""
  config = config_of(tmp_path, config__optimizer__schedule='step',
                     config__optimizer__step_epochs='1,',
                     config__optimizer__step_scales='.1,')
  initial, start = start_of(config, classes=['x', 'y'])
  mine, theirs = start.state.variables, trained.load(first).variables
  for name, value in mine['params'].items():
    assert_equal(value, (theirs if name == 'backbone' else initial.variables)[
        'params'][name])
  assert_equal(mine['batch_stats'], theirs['batch_stats'])
  assert_equal(start.state.opt_state, initial.opt_state)


@pytest.mark.parametrize('model, line', [
    ({'name': 'conv4', 'width': 16, 'pool': 'global'},
     'whose config.model.width is 8, not 16'),
    ({'name': 'r2d2_net'}, 'whose config.model.name is conv4, not r2d2_net')])
def test_another_network_is_refused(model, line, start_of, tmp_path):
  config = config_of(tmp_path)
  config.model = model
  with pytest.raises(UserError, match=line):
    start_of(config)


def test_a_folder_without_a_run_is_refused_before_anything_is_written(
    tmp_path):
  config = config_of(tmp_path / 'new')
  config.init_from = str(tmp_path / 'none')
  with pytest.raises(UserError, match='none is not the workdir of a run'):
    loop.train_and_evaluate(config, tmp_path / 'new')
  assert not list(tmp_path.iterdir())


def test_a_run_records_where_it_started_and_resumes_without_it(
    first, tmp_path):
  """Fails if the second run begins anew, or needs the first one for ever."""
  path, source = tmp_path / 'new', tmp_path / 'first'
  source.symlink_to(first)
  argv = command.arguments(
      path, config__train__max_epochs=1, config__log__progress=False,
      config__parallel__devices=1)
  config = flags.parse([*argv, f'--init_from={source}'], None).config
  loop.train_and_evaluate(config, path)
  saved = json.loads((path / 'config.json').read_text())
  assert saved['init_from'] == str(source)
  before = trained.load(path).data['before']
  assert before == [{name: trained.load(first).data[name]
                     for name in ('name', 'classes')}]
  source.unlink()
  config.train.max_epochs = 2
  assert loop.train_and_evaluate(config, path)['checkpoint_step'] in (4, 8)
  assert trained.load(path).data['before'] == before


@pytest.mark.parametrize('split', ['validation', 'test'])
@pytest.mark.parametrize('depth', [1, 2])
def test_classes_that_the_first_weights_know_are_not_unseen(
    split, depth, first, tmp_path):
  """Fails if a test counts classes as unseen that an earlier run was shown.

  Of that run, or of the run that it had started from.
  """
  data = trained.load(first).data
  known = stores.load('glyphs/tiny', split).class_names[2]
  if depth == 1:
    data = {**data, 'classes': [*data['classes'], known]}
  else:
    data = {**data, 'before': [{'name': 'glyphs', 'classes': [known]}]}
  (tmp_path / 'data.json').write_text(json.dumps(data))
  config = config_of(tmp_path / 'new')
  config.init_from = str(tmp_path)
  with pytest.raises(UserError, match=re.escape(known)) as raised:
    parts.make_run(config)
  assert f'1 of the {split} classes of glyphs/tiny, in glyphs' in str(
      raised.value)
  config.eval.allow_seen_classes = True
  run = parts.make_run(config)
  assert run.splits['test'].tested['seen'] == (
      (known,) if split == 'test' else ())


def test_a_file_of_weights_says_what_it_was_trained_on(first, tmp_path):
  config = trained.load(first).config
  file = weights.export(config, first, tmp_path)
  config = config_of(tmp_path / 'new')
  config.weights = str(file)
  assert parts.make_run(config).before == [
      {name: trained.load(first).data[name] for name in ('name', 'classes')}]


@pytest.mark.parametrize('flag', ['--init_from', '--config.init_from'])
def test_the_flag_takes_the_whole_path(flag, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  config = flags.parse([f'--config={command.CONFIG}', f'{flag}=~/a'],
                       None).config
  assert config.init_from == str(tmp_path / 'a')


def test_a_test_does_not_start_from_other_weights():
  with pytest.raises(UserError, match='--init_from is for training'):
    flags.parse([f'--config={command.CONFIG}', '--mode=evaluate',
                 '--checkpoint=a', '--init_from=b'], None)
