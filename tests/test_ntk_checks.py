"""The contract of the checks of the theory, for every check."""

import json

import pytest
from etils import epath

from mtl_jax.errors import UserError
from mtl_jax.fields import COUNT, Field, check, defaults
from mtl_jax.ntk import __main__ as cli
from mtl_jax.ntk.checks import CHECKS
from mtl_jax.ntk.checks import check as shared

FIELDS = {'width': Field(4, 'channels', COUNT),
          'draws': Field(2, 'draws', COUNT, free=True)}


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_defaults_are_allowed_and_are_those_of_the_flags(name, tmp_path):
  """Fails if a command without flags is refused or has other values."""
  declared = cli.COMMANDS[name][0]
  check(declared, defaults(declared), path='--')
  options, folder = cli.parse(name, declared, [f'--out={tmp_path}'])
  assert options == defaults(declared)
  assert folder == epath.Path(tmp_path)


@pytest.mark.parametrize('name', cli.COMMANDS)
def test_help_says_what_is_declared(name, capsys):
  """Fails if a flag has no text, or another one than is declared."""
  with pytest.raises(SystemExit):
    cli.main([name, '--help'])
  text = ' '.join(capsys.readouterr().out.split())
  for option, field in cli.COMMANDS[name][0].items():
    assert f'--{option} ' in text
    assert ' '.join(field.meaning.split()) in text


@pytest.mark.parametrize('name', CHECKS)
def test_options_are_settled_before_anything_is_made(name, tmp_path):
  """Fails if an unknown option is ignored, or leaves a folder."""
  with pytest.raises(UserError, match='--nothing is unknown'):
    CHECKS[name].run({'nothing': 1}, epath.Path(tmp_path) / 'made')
  assert not (tmp_path / 'made').exists()


def test_settled_options_are_those_given_and_the_defaults():
  options = shared.settle(FIELDS, {'draws': 3})
  assert options._asdict() == {'width': 4, 'draws': 3}
  with pytest.raises(UserError, match='--width is 0: must be at least 1'):
    shared.settle(FIELDS, {'width': 0})


def test_a_folder_belongs_to_the_options_that_are_not_free():
  """Fails if results of other options are mixed, or a larger grid refused."""
  options = shared.settle(FIELDS, {'draws': 3})
  assert shared.claim('here', FIELDS, options, {}) == {'width': 4}
  assert shared.claim('here', FIELDS, options, {'width': 4}) == {'width': 4}
  with pytest.raises(UserError, match='--out: here holds --width=5, not 4'):
    shared.claim('here', FIELDS, options, {'width': 5})


def test_a_damaged_file_is_named(tmp_path):
  """Fails if a damaged file ends in a traceback of the JSON reader."""
  file = epath.Path(tmp_path) / 'cells.json'
  assert shared.read(file, {'draws': {}}) == {'draws': {}}
  file.write_text('{"a": 1')
  with pytest.raises(UserError, match='cells.json is damaged: delete it'):
    shared.read(file, {})


def test_files_are_strict_json_and_old_ones_are_read(tmp_path):
  """Fails if a time of inf makes a file that other programs cannot read."""
  file = epath.Path(tmp_path / 'a.json')
  contents = {'time': float('inf'), 'rows': [1.5, -float('inf')], 'x': None}
  assert shared.write(file, contents) == contents
  json.loads(file.read_text(), parse_constant=pytest.fail)
  file.write_text('{"time": Infinity, "rows": [1.5, -Infinity], "x": null}')
  assert shared.read(file, {}) == contents
