"""Faults that a review of the redesign showed, each with its input."""

import logging
import os
import shutil

import command
import jax
import jax.numpy as jnp
import numpy as np
import own_source
import pytest
from conftest import ROOT
from PIL import Image

from mtl_jax import devices, registry
from mtl_jax.adapt import classify
from mtl_jax.config import flags, load_config
from mtl_jax.config.check import validate
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.report import compare
from mtl_jax.run import report, trained

CONFIG = f'--config={ROOT}/configs/glyphs_5shot.py'


def parse(*argv):
  return flags.parse([CONFIG, *argv], saved_config=None)


@pytest.mark.parametrize('text, expected', [('-0.5', -0.5), ('-3', -3.)])
def test_a_number_below_zero_may_follow_its_flag(text, expected):
  config = parse('--config.heads.ridge.target', text).config
  assert config.heads.ridge.target == expected


@pytest.mark.parametrize('text, expected', [('t', True), ('F', False)])
def test_a_truth_value_may_be_one_letter(text, expected):
  assert parse(f'--config.eval.baselines={text}'
               ).config.eval.baselines is expected


def test_an_empty_workdir_is_the_default():
  """Fails if `--workdir=$UNSET` takes the folder of the command."""
  assert parse('--workdir=').workdir == os.path.join('runs',
                                                     'glyphs_5shot_mtl')


@pytest.mark.parametrize('flags', [
    '--init_from=', '--weights=', '--mode=evaluate --checkpoint=',
    '--mode=features --checkpoint=runs/a --images='])
def test_an_empty_path_is_not_this_folder_and_not_nothing(flags):
  """Fails if `--init_from=$UNSET` trains from random weights, and says none."""
  name = flags.rpartition('--')[2].rstrip('=')
  with pytest.raises(UserError, match=f'--{name} is empty: write --{name}='):
    parse(*flags.split())


OWN = """
import dataclasses
from mtl_jax.algorithms import base, mtl
from mtl_jax.fields import Field
OPTIONS = mtl.OPTIONS | {'most': Field(None, 'a number or none', kind=int)}
RECIPES = {(None, None, 'cpu'): base.Recipe({}, 'own', ours=False)}
ANY_WAYS = True
def build(backbone, num_classes, ways, *, most, **options):
  return mtl.build(backbone, num_classes, ways, **options)

@dataclasses.dataclass
class BACKBONE:
  pool: int = 2
  norm: str | None = None
"""


@pytest.fixture
def own(tmp_path):
  """Returns a file with a method and a network, as text."""
  path = tmp_path / 'own.py'
  path.write_text(OWN)
  return str(path)


def test_a_method_of_ones_own_may_have_a_field_without_a_value(own):
  command = flags.parse([f'{CONFIG}:{own}', '--config.method.most=3'], None)
  assert command.config.method.most == 3


def test_a_field_of_a_network_of_ones_own_has_its_own_type(own):
  """Fails if conv4's fields say what type another network's fields have."""
  config = parse().config
  config.model = {'name': own, 'pool': 2, 'norm': None}
  flags.override(config, 'config.model.pool', '3')
  flags.override(config, 'config.model.norm', 'batch')
  assert (config.model.pool, config.model.norm) == (3, 'batch')


@pytest.mark.parametrize('text', ['{[]:1}', '((' * 999])
def test_no_text_of_a_tuple_ends_in_a_traceback(text):
  parse(f'--config.eval.choose_C={text}')


@pytest.mark.parametrize('text, items', [
    ('', ()), ('()', ()), ('svm', ('svm',)), ('svm,', ('svm',)),
    ("('svm', own)", ('svm', 'own')), ('[svm,"own"]', ('svm', 'own')),
    # A check refuses these.
    ('[[', ('[[',)), (',', ('',)), ('svm,,own', ('svm', '', 'own'))])
def test_a_tuple_has_all_items_of_its_text(text, items):
  """Fails if a mistyped list is taken as an empty one, or as a shorter one."""
  config = parse(f'--config.eval.heads={text}').config
  assert config.eval.heads == items


@pytest.mark.parametrize('flag', [
    '--workdir=\udce9', '--config.data.dir=a\udcff'])
def test_a_path_that_is_no_text_gets_one_line(flag):
  """Fails if a run ends in a traceback when it prints or writes the name."""
  with pytest.raises(UserError, match='is no text in UTF-8'):
    parse(flag)


def test_a_path_may_have_any_signs():
  name = 'caf\u00e9 \U0001f642'
  assert parse(f'--workdir={name}').workdir == name


def test_shots_of_a_test_are_whole_numbers():
  """Fails if 1.5 shots end in a traceback, after all training."""
  config = parse('--config.eval.also_shots=1,1.5').config
  with pytest.raises(UserError, match=(
      r'config.eval.also_shots has 1.5: must be whole, at least 1')):
    validate(config)


@pytest.mark.parametrize('value', [None, 1, ['svm']])
def test_a_head_that_is_no_text_gets_one_line(value):
  config = parse().config
  config.eval.heads = (value,)
  with pytest.raises(UserError, match='config.eval.heads is .*allowed are'):
    validate(config)


def test_a_config_that_is_no_python_file_gets_one_line():
  with pytest.raises(UserError, match='README.md is no Python file'):
    load_config(str(ROOT / 'README.md'))


def test_a_file_that_several_fields_name_is_run_once(own):
  """Fails if the classes of a file exist once for each field."""
  assert registry.find('config.method.name', own, {}, ()) is registry.find(
      'config.model.name', own, {}, ())


def test_getting_results_of_pmap_computes_nothing_on_several_devices(caplog):
  """Fails if hundreds of all-reduces are dispatched, which can deadlock."""
  compiled = devices.compile(
      lambda state, *_: (state + 1, jax.lax.psum(state, devices.AXIS)),
      devices.mesh(2, 2), 'pmap')
  start = jnp.arange(7.)  # a shape that no other test has compiled
  results = compiled.step(compiled.put(start), None, None, None)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    state, total = compiled.get(results)
  assert 'Mesh' not in caplog.text
  np.testing.assert_array_equal(state, start + 1)
  np.testing.assert_array_equal(total, 2 * start)
  assert len(state.devices()) == 1


@pytest.fixture(scope='module')
def method(tmp_path_factory):
  """Returns the file of a method whose loss has no accuracy."""
  path = tmp_path_factory.mktemp('method') / 'method.py'
  path.write_text(METHOD)
  return path


@pytest.fixture(scope='module')
def birds(method, tmp_path_factory):
  """Returns a folder with a folder of images and a run of one epoch on it."""
  home = tmp_path_factory.mktemp('birds')
  rng = np.random.default_rng(0)
  for split in ('train', 'validation', 'test'):
    for name in 'abcde':
      folder = home / 'birds' / split / f'{split}_{name}'
      folder.mkdir(parents=True)
      for i in range(4):
        Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(
            folder / f'{i}.png')
  result = run_on_birds(home, method, config__train__max_epochs=1)
  assert result.returncode == 0, result.stderr
  (home / 'printed').write_text(result.stdout)
  return home


def run_on_birds(home, method, **changes):
  """Runs the command in `home`, on its folder `birds`."""
  return command.run(command.arguments(
      'run', config=f'{command.CONFIG}:{method}', config__data__name='birds',
      config__method__head_init=None, config__eval__queries=2,
      config__eval__tasks=4, **changes), cwd=home,
                     env={'MTL_JAX_DATA': str(home / 'data')})


def test_a_run_is_used_where_its_training_data_are_gone(birds, tmp_path):
  """Fails if a classifier needs the images that it was trained on."""
  shutil.copytree(birds / 'run', tmp_path / 'run')
  assert not os.path.exists('birds')
  assert trained.load(tmp_path / 'run').step == 4


@pytest.mark.parametrize('change, differ', [
    ('another image', 'mean'), ('another class', 'classes')])
def test_a_run_does_not_resume_on_other_images(
    change, differ, birds, method, tmp_path):
  """Fails if half of a run is trained on other images, without a word."""
  shutil.copytree(birds, tmp_path, dirs_exist_ok=True)
  folder = tmp_path / 'birds/train/train_a'
  if change == 'another class':
    folder.rename(folder.parent / 'train_z')
  else:
    Image.new('L', (28, 28)).save(folder / 'new.png')
  result = run_on_birds(tmp_path, method, config__train__max_epochs=2)
  assert result.returncode == 2, result.stdout
  assert f'their {differ} differ' in result.stderr


def test_a_run_resumes_on_the_same_images(birds, method, tmp_path):
  shutil.copytree(birds, tmp_path, dirs_exist_ok=True)
  result = run_on_birds(tmp_path, method, config__train__max_epochs=2)
  assert 'Resuming at step 4.' in result.stdout, result.stderr


METHOD = """
from mtl_jax.algorithms import base, last_layer, network
from mtl_jax.heads import centroid
ANY_WAYS = True
OPTIONS = {}
RECIPES = {(None, None, 'fast'): base.Recipe({}, 'own', ours=False)}
def build(backbone, num_classes, ways):
  parts = last_layer.make(
      network.Body(backbone, 'running'),
      lambda params, *task: centroid.fit(*task),
      lambda params, head, features: centroid.logits(head, features))
  def loss(*args):
    value, aux = parts.loss(*args)
    return value, aux._replace(metrics={'loss': aux.metrics['loss']})
  return base.Algorithm(
      lambda key, images: network.init(backbone, key, images)[0], loss,
      network.features_function(backbone), parts.adapt, parts.predict)
"""


def test_a_method_needs_no_batch_norm_and_no_accuracy(birds):
  """Fails if a run ends in a traceback after all training."""
  assert 'BatchNorm: not stated' in (birds / 'printed').read_text()


def test_the_score_of_a_head_names_its_whole_path():
  score = {'accuracy': 0.5, 'ci95': 0.1}
  lines = report.scores({
      'data': 'glyphs', 'trained_on': 'glyphs', 'ways': 5, 'shots': 1,
      'queries': 1, 'num_tasks': 9, 'split': 'test', 'batch_norm': 'running',
      'checkpoint_step': 1, 'support_copies': 0, 'method': 'mtl',
      'scores': {'my heads/mine.py': score, 'my heads/mine.py 5-shot': score,
                 'raw_pixels 5-shot': score}}).splitlines()[1:]
  assert [line.split('  ')[1] for line in lines] == [
      'mtl, trained, my heads/mine.py head',
      'mtl, trained, my heads/mine.py head 5-shot', 'raw pixels 5-shot']


@pytest.mark.parametrize('heads, named', [
    (('svm',), ''), (('own',), ', logistic head'), (('own', 'svm'),
                                                    ', svm head')])
def test_a_baseline_with_another_head_says_so(heads, named):
  """Fails if a score of pixels looks as if the method had adapted to them."""
  score = {'accuracy': 0.5, 'ci95': 0.1}
  last = report.scores({
      'data': 'glyphs', 'trained_on': 'glyphs', 'ways': 5, 'shots': 1,
      'queries': 1, 'num_tasks': 9, 'split': 'test', 'batch_norm': 'running',
      'checkpoint_step': 1, 'support_copies': 0, 'method': 'protonet',
      'head': heads[0], 'heads': dict.fromkeys(heads),
      'scores': {heads[0]: score, 'raw_pixels': score}}).splitlines()[-1]
  assert last.strip().startswith(f'raw pixels{named}  ')


def test_adapt_knows_the_home_folder(birds, tmp_path, monkeypatch):
  """Fails if only a part of the command reads `~`."""
  monkeypatch.setenv('HOME', str(birds))
  monkeypatch.chdir(tmp_path)
  classify.adapt('~/run', str(birds / 'birds/test'), [
      str(birds / 'birds/test/test_a')], out='~/adapted')
  assert (birds / 'adapted/predictions.json').exists()
  assert not list(tmp_path.iterdir())


def test_report_knows_the_home_folder(birds, monkeypatch):
  monkeypatch.setenv('HOME', str(birds))
  assert '+0.00 points' in compare.compare('~/run', '~/run')


def test_a_number_that_is_not_finite_is_told_so():
  config = parse('--config.eval.choose_C=1,1e999').config
  with pytest.raises(UserError, match='has inf: must be above 0 and finite'):
    validate(config)


@pytest.mark.parametrize('constants, line', [
    ('mean=(0.5, 0.5, 0.5),', 'std of .* is None: must be 3 numbers'),
    ('mean=(0.5,), std=(0.1,),', 'mean of .* must be 3 numbers')])
def test_constants_of_a_source_fit_its_images(
    constants, line, tmp_path, monkeypatch):
  """Fails if a run takes NaN for the standard deviation of its pixels."""
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path))
  path = own_source.write_file(tmp_path / 'mine.py', constants)
  with pytest.raises(UserError, match=line):
    stores.load(str(path), 'train')
