"""TensorBoard and Weights & Biases get the numbers of metrics and test."""

import importlib.util
import json
import os
import struct
import sys

import command
import pytest
from etils import epath
from tiny_run import config_of

from mtl_jax import writers
from mtl_jax.errors import UserError
from mtl_jax.run import loop, metrics, workdir

INSTALLED = [name for name, package in writers.PACKAGES.items()
             if importlib.util.find_spec(package)]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a run of two starts, with what it has told its writers."""
  path = tmp_path_factory.mktemp('written') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('WANDB_MODE', 'offline')
    for epochs in (1, 3):
      result = loop.train_and_evaluate(config_of(
          train__max_epochs=epochs, log__writers=tuple(INSTALLED)), path)
  values = {f'test_{label}': {result['checkpoint_step']: score['accuracy']}
            for label, score in result['scores'].items()}
  for record in metrics.read(epath.Path(path)):
    for name, value in record.items():
      if name != 'step':
        values.setdefault(name, {})[record['step']] = value
  return path, values


@pytest.mark.skipif('tensorboard' not in INSTALLED, reason='needs an extra')
def test_tensorboard_has_every_number(run):
  """Fails if those after a resume, or of the test, are missing."""
  from tensorboardX.proto import event_pb2

  path, expected = run
  found = {}
  for file in sorted((path / 'tensorboard').iterdir()):
    for packed in tf_records(file.read_bytes()):
      event = event_pb2.Event.FromString(packed)
      for value in event.summary.value:
        found.setdefault(value.tag, {})[event.step] = value.simple_value
  for name, values in expected.items():
    assert values.items() <= {
        step: pytest.approx(value, rel=1e-6)
        for step, value in found[name].items()}.items(), name


def tf_records(packed):
  """Yields the records: length, its checksum, bytes, their checksum."""
  while packed:
    length, = struct.unpack('<Q', packed[:8])
    yield packed[12:12 + length]
    packed = packed[16 + length:]


@pytest.mark.skipif('wandb' not in INSTALLED, reason='needs an extra')
def test_weights_and_biases_has_every_number_in_one_run(run):
  """Fails if a resumed run begins another one there."""
  from wandb.proto import wandb_internal_pb2

  path, expected = run
  found, names = {}, set()
  starts = sorted((path / 'wandb').glob('offline-run-*/*.wandb'))
  assert len(starts) == 2, 'not one for each start'
  for file in starts:
    for packed in chunks(file.read_bytes()[7:]):
      record = wandb_internal_pb2.Record.FromString(packed)
      if record.run.run_id:
        names.add((record.run.run_id, record.run.project,
                   record.run.display_name))
      step = record.history.step.num
      for item in record.history.item:
        found.setdefault(item.key or item.nested_key[0], {})[
            step] = json.loads(item.value_json)
  assert names == {((path / writers.WANDB_ID).read_text(), 'mtl_jax',
                    '/'.join(path.parts[-2:]))}
  for name, values in expected.items():
    if name.startswith('test_'):  # at the last step: there it never goes back
      values = {12: next(iter(values.values()))}
    assert values.items() <= found[name].items(), name


def chunks(packed):
  """Yields the records of LevelDB's log: chunks in blocks of 32 KiB."""
  whole, at = b'', 0
  while at + 7 <= len(packed):
    left = 32768 - (at + 7) % 32768  # the header of the file counts
    if left < 7:
      at += left
      continue
    length, kind = struct.unpack('<HB', packed[at + 4:at + 7])
    whole += packed[at + 7:at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # whole, or its last part
      yield whole
      whole = b''


def test_a_writer_gets_numbers_only(tmp_path, monkeypatch):
  """Fails if one validation task, which has no interval, ends a run."""
  told = []
  monkeypatch.setitem(writers.WRITERS, 'wandb', lambda *_: writers.Writer(
      lambda *given: told.append(given), lambda: told.append('closed')))
  with writers.opened(('wandb', 'wandb'), tmp_path, {}, False) as write:
    write(3, {'a': 1, 'b': None, 'c': 0.5})
  assert told == [(3, {'a': 1, 'c': 0.5}), 'closed']


@pytest.mark.parametrize('name', writers.PACKAGES)
def test_a_missing_package_is_named_before_training(name, tmp_path,
                                                    monkeypatch):
  monkeypatch.setitem(sys.modules, writers.PACKAGES[name], None)
  monkeypatch.setattr(
      importlib.util, 'find_spec', lambda package: None)
  with pytest.raises(UserError, match=rf"{name}, whose .*mtl_jax\[{name}\]'"):
    loop.train_and_evaluate(
        config_of(log__writers=(name,)), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.skipif('wandb' not in INSTALLED, reason='needs an extra')
def test_without_a_key_a_line_says_what_to_do(tmp_path):
  result = command.run(
      command.arguments(tmp_path / 'run', config__log__writers='wandb'),
      env={'WANDB_MODE': 'online', 'WANDB_API_KEY': '', 'HOME': str(tmp_path),
           'NETRC': os.devnull})
  assert result.returncode == 2, result.stderr
  assert 'wandb login' in result.stderr and 'WANDB_MODE=offline' in (
      result.stderr)


def test_a_field_of_an_older_version_is_left_out(tmp_path):
  """Fails if runs from before config.log.writers cannot be resumed."""
  workdir.claim(epath.Path(tmp_path), config_of(), {})
  saved = json.loads((tmp_path / 'config.json').read_text())
  saved['log']['tensorboard'] = True
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  assert 'tensorboard' not in workdir.saved_config(tmp_path).log
