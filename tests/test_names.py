"""Configs, methods and networks by name: on the command line and in Python."""

import sys

import pytest
from conftest import ROOT

from mtl_jax import main, program
from mtl_jax.algorithms import METHODS
from mtl_jax.config import FIELDS, flags, load_config, named, settings
from mtl_jax.data.sources import SOURCES
from mtl_jax.errors import UserError
from mtl_jax.fields import flat
from mtl_jax.heads import HEADS
from mtl_jax.models import MODELS

OWN_METHOD = '''
from mtl_jax.algorithms.mtl import ANY_WAYS, OPTIONS, RECIPES, build
'''


def parse(*argv):
  return flags.parse(list(argv), saved_config=None)


def test_every_config_has_a_name():
  assert set(named.paths()) == {
      path.stem for path in (ROOT / 'configs').glob('*.py')}


@pytest.mark.parametrize('method', ['', ':maml'])
def test_a_name_is_the_file_in_any_folder(method, tmp_path, monkeypatch):
  wanted = load_config(f'{ROOT}/configs/mini_5shot.py{method}')
  monkeypatch.chdir(tmp_path)
  command = parse(f'--config=mini_5shot{method}')
  assert command.config.to_dict() == wanted.to_dict()
  assert command.workdir == 'runs/mini_5shot_' + (method[1:] or 'mtl')


def test_a_name_takes_a_method_of_the_users_own(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(OWN_METHOD)
  for config in ('glyphs_5shot', f'{ROOT}/configs/glyphs_5shot.py'):
    assert load_config(f'{config}:{path}').method.name == str(path)


@pytest.mark.parametrize('text, line', [
    ('mini_5shto:maml', 'mini_5shto is not there: .*names are mini_5shot, '),
    ('x/mini_5shot.py', 'x/mini_5shot.py is not there: .* are mini_5shot, '),
    ('nothing', 'nothing is not there: name a Python file or one of cifar_f'),
    ('mini_5shot:mamll', "'mamll': allowed are mtl, "),
    ('mine', 'mine has no .py: write --config=mine.py'),
    ('', 'is not there: name a Python file')])
def test_a_name_that_is_not_there_is_told_the_nearest(text, line, tmp_path,
                                                      monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text('')
  with pytest.raises(UserError, match=line):
    load_config(text)


# --- Fields that decide which other fields there are. ---


def test_another_network_has_its_own_defaults():
  """Fails if it keeps those of the first one, or loses what was set."""
  for order in (1, -1):
    config = parse('--config=mini_5shot_cpu', *[
        '--config.model.name=resnet12', '--config.model.drop_rate=0.3'][::order]
    ).config
    assert config.model.drop_rate == 0.3 and config.model.name == 'resnet12'
    assert config.model.widths == MODELS['resnet12']().widths
    assert 'width' not in config.model


def test_a_network_named_again_keeps_what_the_config_has():
  config = parse('--config=mini_5shot:maml', '--config.model.name=conv4').config
  assert config.to_dict()['model'] == load_config(
      'mini_5shot:maml').to_dict()['model']


def test_settings_say_that_another_network_is_the_command_lines():
  config = parse('--config=mini_5shot', '--config.model.name=r2d2_net').config
  of = {s.field: s.origin for s in settings.settings(config)}
  assert of['model.name'] == of['model.widths'] == settings.COMMAND_LINE


@pytest.mark.parametrize('flag, line', [
    ('method.name=maml', 'recipe, so name it after the config, '
     '--config=NAME:maml'),
    ('method.name=mamll', "config.method.name is 'mamll': allowed are mtl"),
    ('model.name=resnet13', "config.model.name is 'resnet13': allowed are con"),
    ('method.inner_steps=3', 'it is a field of anil, maml, .*=NAME:anil'),
    ('method.inner_stepz=3', 'inner_stepz is unknown: allowed are batch_norm'),
    ('model.drop_rate=.1', 'a field of r2d2_net, .*model.name=r2d2_net'),
    ('model.pol=flat', 'config.model.pol is unknown: did you mean pool')])
def test_what_needs_another_name_says_so(flag, line):
  with pytest.raises(UserError, match=line):
    parse('--config=mini_5shot_cpu', f'--config.{flag}')


def test_a_method_named_again_is_no_other():
  assert parse('--config=quickstart',
               '--config.method.name=mtl').config.method.name == 'mtl'


# --- From Python. ---


def test_main_takes_its_overrides_from_its_argument(monkeypatch):
  """Fails if they are looked up in sys.argv, or the first one is dropped."""
  monkeypatch.setattr(sys, 'argv', ['ipython', '--config.train.ways=9'])
  seen = []
  monkeypatch.setattr(main, 'run', seen.append)
  assert main.main(['--config=quickstart', '--config.train.ways=7']) == 0
  assert seen[0].config.train.ways == 7


def test_main_returns_the_exit_code(capsys):
  assert main.main(['--config=quikstart']) == 2
  assert 'nearest names are quickstart' in capsys.readouterr().err


# --- Help. ---


def help_of(capsys, *argv):
  assert main.main(['--help', *argv]) == 0
  return capsys.readouterr().out


def test_help_lists_all_names_and_fields(capsys):
  text = help_of(capsys)
  for names in (named.paths(), METHODS, MODELS, HEADS, SOURCES):
    for name in names:
      assert f'\n  {name} ' in text, name
  for name, field in flat(FIELDS):
    if not name.startswith(('recipe.', 'source')):
      assert f'\n  {name}=' in text, name
      assert field.meaning.split()[0] in text


def test_help_on_a_config_lists_its_methods_and_networks_fields(capsys):
  text = help_of(capsys, '--config=mini_5shot:maml')
  joined = ' '.join(text.split())
  assert 'method.inner_steps=5 steps of the inner loop in training' in joined
  assert 'model.width=32 channels of every block.' in joined
  assert 'train.meta_batch=4 ' in joined, 'not the value of the recipe'
  assert 'optimizer.name=adam The optimizer [radam, adam, sgd]' in joined


@pytest.mark.parametrize('called, name, tag', [
    ('/usr/bin/mtl-jax-data', 'mtl-jax-data', 'mtl-jax-data'),
    (r'mtl-jax-data.exe', 'mtl-jax-data', 'mtl-jax-data'),
    ('/x/mtl_jax/data/__main__.py', 'python -m mtl_jax.data', 'mtl_jax.data'),
    ('', 'python -m mtl_jax.data', 'mtl_jax.data')])
def test_a_program_is_named_as_it_was_called(called, name, tag, monkeypatch):
  monkeypatch.setattr(sys, 'argv', [called])
  assert program.name('mtl_jax.data') == name
  assert program.tag('mtl_jax.data') == tag
  assert program.usage('`python -m mtl_jax.data x`',
                       'mtl_jax.data') == f'`{name} x`'
