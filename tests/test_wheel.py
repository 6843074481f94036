"""The package as it is installed: what is in a wheel, and that it works alone.

tests/long/test_installed.py installs one into an empty environment and runs the
commands of the README.
"""

import configparser
import importlib
import tarfile
import zipfile

import built_wheel
import command
import pytest
from conftest import ROOT

CONFIGS = {path.name for path in ROOT.glob('configs/*.py')}
# As the script that pip writes for a command.
SCRIPT = '''
import sys
from {module} import {function}
sys.exit({function}())
'''


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """The folder with a wheel and an sdist."""
  out = tmp_path_factory.mktemp('out')
  built_wheel.build(out)
  return out


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
  """The folder that the wheel was unpacked into."""
  path = tmp_path_factory.mktemp('installed')
  wheel, = built.glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(path)
  return path


def commands(installed):
  """Returns command -> 'module:function' of the wheel."""
  path, = installed.glob('*.dist-info/entry_points.txt')
  parser = configparser.ConfigParser()
  parser.read(path)
  return dict(parser['console_scripts'])


def test_a_wheel_has_every_module_list_and_config(installed):
  source = {str(path.relative_to(ROOT)) for pattern in ('*.py', '*.json')
            for path in (ROOT / 'mtl_jax').rglob(pattern)}
  wanted = source | {f'mtl_jax/configs/{name}' for name in CONFIGS}
  found = {str(path.relative_to(installed)) for path in installed.rglob('*')
           if path.is_file() and '.dist-info' not in str(path)}
  assert found == wanted, 'it lacks a file, or brings one along'


def test_a_wheel_can_be_made_of_an_sdist(built):
  """Fails if files that a wheel needs are not in the sdist."""
  path, = built.glob('*.tar.gz')
  with tarfile.open(path) as archive:
    names = {name.partition('/')[2] for name in archive.getnames()}
  assert {'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'} <= names
  assert {f'configs/{name}' for name in CONFIGS} <= names
  assert 'mtl_jax/data/splits/omniglot.json' in names


def test_every_command_of_a_wheel_is_a_function(installed):
  found = commands(installed)
  assert set(found) >= {'mtl-jax', 'mtl-jax-adapt', 'mtl-jax-data',
                        'mtl-jax-ntk', 'mtl-jax-report'}
  for target in found.values():
    module, _, function = target.partition(':')
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize('name, flags, expected', [
    ('mtl-jax', ['--help', '--config=mini_5shot:maml'], 'method.inner_steps='),
    ('mtl-jax', ['--config=mini_5shto'], 'mtl-jax: --config: mini_5shto is'),
    ('mtl-jax-data', ['--help'], '`mtl-jax-data COMMAND`')])
def test_a_command_works_in_an_empty_folder(name, flags, expected, installed,
                                            tmp_path):
  """Fails if it needs a file of a clone, or calls itself python -m."""
  module, _, function = commands(installed)[name].partition(':')
  script = tmp_path / 'bin' / name
  script.parent.mkdir()
  script.write_text(SCRIPT.format(module=module, function=function))
  empty = tmp_path / 'empty'
  empty.mkdir()
  done = command.run(flags, (str(script),), cwd=empty,
                     env={'PYTHONPATH': str(installed)})
  assert expected in done.stdout + done.stderr
  assert 'python -m' not in done.stdout.partition('\n\n')[0] + done.stderr
  assert not list(empty.iterdir())
