"""A workdir in an object store, gs://..., by the commands a user gives.

The store is a stand-in on this machine (tests/object_store.py). It needs
`pip install '.[gs]' gcp-storage-emulator`.
"""

import json
import os
import subprocess
import sys

import command
import pytest
from conftest import FAST_COMPILES, ROOT
from etils import epath

from launch import local
from mtl_jax import processes

pytest.importorskip('gcsfs', reason='gcsfs is not installed')
pytest.importorskip('gcp_storage_emulator',
                    reason='gcp-storage-emulator is not installed')

import object_store  # noqa: E402

SHORT = {'config__train__max_epochs': 2, 'config__parallel__devices': 1,
         # A save after every step.
         'config__train__save_minutes': 1e-9}
WITHOUT_CLIENT = ('-c', 'import sys; sys.modules["gcsfs"] = None\n'
                  'from mtl_jax import main; sys.exit(main.main())')


@pytest.fixture(scope='module')
def store():
  """Returns the environment in which gs:// is the stand-in."""
  with object_store.running(local.free_port()) as (_, environment):
    yield environment


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns the workdir of the same run in a folder."""
  path = tmp_path_factory.mktemp('local') / 'run'
  assert command.run(command.arguments(path, **SHORT)).returncode == 0
  return path


def result_of(store, run):
  return json.loads(object_store.read(address(store), f'{run}/test.json'))


def address(store):
  return store['STORAGE_EMULATOR_HOST']


def train(store, path, **changes):
  result = command.run(command.arguments(path, **SHORT | changes), env=store)
  assert result.returncode == 0, result.stderr
  return result


def begin(flags, env, program=('-m', 'mtl_jax.main')):
  """Starts a process of a run."""
  return subprocess.Popen(
      [sys.executable, *program, *flags], cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env={**os.environ, 'XLA_FLAGS': FAST_COMPILES, 'PYTHONPATH': str(ROOT),
           **env})


def begin_two(store, path):
  """Starts a run in two processes, of which the second cannot use gs://."""
  port = local.free_port()
  flags = [*command.arguments(path, **SHORT), '--peer_timeout=20',
           f'--coordinator_address=127.0.0.1:{port}', '--num_processes=2']
  return (begin([*flags, '--process_id=0'], store),
          begin([*flags, '--process_id=1'], {}, WITHOUT_CLIENT))


def end(started):
  """Returns (stdout, stderr, exit code) of each process."""
  return [(*p.communicate(timeout=300), p.returncode) for p in started]


def test_a_run_in_a_store_is_that_in_a_folder(store, folder):
  """Fails if what other commands need of a run is not in the store."""
  train(store, 'gs://bucket/one')
  assert result_of(store, 'one') == json.loads(
      (folder / 'test.json').read_text())
  written = object_store.names(address(store), 'one/')
  assert {name.split('/')[1] for name in written} - {'metrics.00000.jsonl'} == {
      p.name for p in folder.iterdir()} - {'metrics.jsonl', '.lock'}
  for mode, name in (('evaluate', 'test.json'), ('features', 'features.npz'),
                     ('export', 'weights.safetensors')):
    done = command.run([f'--mode={mode}', '--checkpoint=gs://bucket/one',
                        f'--workdir=gs://bucket/{mode}'], env=store)
    assert done.returncode == 0, done.stderr
    assert object_store.read(address(store), f'{mode}/{name}')
  report = command.run(['gs://bucket/one', 'gs://bucket/evaluate'],
                       ('-m', 'mtl_jax.report'), env=store)
  assert report.returncode == 0 and 'gs://bucket/one' in report.stdout


# A run of two epochs changes some 300 objects.
@pytest.mark.parametrize('writes', [1, 5, 40, 77, 114, 151, 188, 225, 262])
def test_a_kill_at_any_write_loses_no_more_than_a_step(writes, store, folder):
  """Fails if a checkpoint that is not whole counts as one."""
  path = epath.Path(f'gs://bucket/killed_{writes}')
  process = begin(command.arguments(path, **SHORT), store)
  object_store.kill(address(store), process.pid, writes)
  (*_, code), = end([process])
  assert code == -9
  resumed = train(store, path)
  assert 'warning' not in resumed.stderr
  assert result_of(store, path.name) == json.loads(
      (folder / 'test.json').read_text())


def test_a_damaged_checkpoint_is_passed_over(store):
  train(store, 'gs://bucket/damaged')
  for name in object_store.names(
      address(store), 'damaged/checkpoints/8/default/'):
    if '/d/' in name:
      object_store.write(address(store), name, b'damaged')
  again = train(store, 'gs://bucket/damaged')
  assert 'checkpoints/8: the checkpoint cannot be read' in again.stderr
  assert 'Resuming at step 7.' in again.stdout


def test_a_process_without_the_store_takes_part(store, folder):
  """Fails if another process than the first needs the workdir."""
  (_, errors, code), other = end(begin_two(store, 'gs://bucket/two'))
  assert code == 0, errors
  assert other == ('', '', 0)
  ours, theirs = result_of(store, 'two'), json.loads(
      (folder / 'test.json').read_text())
  assert ours['scores'] == theirs['scores']
  assert ours['tasks_sha256'] == theirs['tasks_sha256']


@pytest.mark.parametrize('lost', [0, 1])
def test_two_processes_resume_after_one_was_killed(lost, store, folder):
  path = epath.Path(f'gs://bucket/lost_{lost}')
  started = begin_two(store, path)
  object_store.kill(address(store), started[lost].pid, 120)
  ended = end(started)
  assert ended[lost][2] == -9
  assert ended[1 - lost][2] == processes.LOST
  (out, errors, code), (*_, other) = end(begin_two(store, path))
  assert (code, other) == (0, 0), errors
  assert 'Resuming at step' in out
  assert result_of(store, path.name)['scores'] == json.loads(
      (folder / 'test.json').read_text())['scores']


@pytest.mark.parametrize('bucket, said', [
    ('nobucket', 'config.json: cannot be written (no such bucket or object)'),
    ('readonly', 'config.json: cannot be written (Forbidden'),
    ('objects', 'the object store cannot be used (403 GET')])
def test_what_a_store_refuses_gets_one_line(bucket, said, store):
  refused = command.run(
      command.arguments(f'gs://{bucket}/run', **SHORT), env=store)
  assert refused.returncode == 2
  *_, line = refused.stderr.splitlines()
  assert said in line
  assert 'Traceback' not in refused.stderr


def test_without_a_client_one_line_names_the_extra(store):
  refused = command.run(command.arguments('gs://bucket/none', **SHORT),
                        WITHOUT_CLIENT, env=store)
  assert refused.returncode == 2
  line, = refused.stderr.splitlines()
  assert "install 'mtl_jax[gs]'" in line
