"""Several processes: together they do what one does, and they end together."""

import json
import re
import signal
import socket
import subprocess
import sys

import command
import of_processes
import pytest
from conftest import ROOT
from etils import epath
from tiny_run import lasting

from launch import local
from mtl_jax import early, main, processes
from mtl_jax.config import flags
from mtl_jax.errors import UserError
from mtl_jax.run import metrics, workdir


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """Returns the folder of what two processes did, and their ends.

  They do steps of no method: tests/long has them all, as each is compiled in
  each process.
  """
  folder = tmp_path_factory.mktemp('pair')
  return folder, of_processes.start(folder, 2)


@pytest.fixture(scope='module')
def result(pair):
  return of_processes.read(pair[0])


def test_all_processes_are_told_what_differs(result):
  told = json.loads(result['messages'][0])
  assert result['messages'][1] == json.dumps(told[:3] + [None])
  images = told.pop(1)
  assert images.startswith('process 1 has another data set than process 0: the '
                           "test split is 'x of 1 classes, 2 images, sha256 ")
  assert told == [
      'process 1 has another config than process 0: seed is 1, not 0; start '
      'the same command, version and data in all processes',
      'process 1: no such file', 'read']


def test_results_of_shared_items_are_put_together_in_order(result):
  assert result['parts'] == [0, 1, 4, 9, 16]


def test_a_run_of_two_processes_is_that_of_one(pair, tmp_path):
  """Fails if validation or the test sees other tasks than one process does."""
  folder, ended = pair
  assert main.main(command.arguments(
      tmp_path / 'run', config__train__max_epochs=2,
      config__train__meta_batch=4, config__parallel__devices=1,
      config__eval__heads='logistic,own')) == 0
  one, two = (json.loads((path / 'run/test.json').read_text())
              for path in (tmp_path, folder))
  assert two['tasks_sha256'] == one['tasks_sha256']
  assert two['training'] == one['training']
  assert two['scores'] == one['scores']
  for a, b in zip(*(lasting(metrics.read(epath.Path(path / 'run')))
                    for path in (tmp_path, folder)), strict=True):
    # A residual is itself the round-off of a solver.
    assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
  (printed, errors, _), (nothing, none, _) = ended
  assert printed.splitlines()[0].endswith(', 2 x cpu')
  assert (errors, nothing, none) == ('', '', '')
  assert {p.name for p in (folder / 'run').iterdir()} == {
      p.name for p in (tmp_path / 'run').iterdir()}


# --- Flags. ---


WRONG = {
    'an id alone': ({'process_id': '1'}, {},
                    '--coordinator_address is missing'),
    'no id': ({'coordinator_address': 'a:1', 'num_processes': '2'}, {},
              '--process_id is missing'),
    'no port': ({'coordinator_address': 'a', 'num_processes': '2',
                 'process_id': '0'}, {}, "address is 'a': must be HOST:PORT"),
    'an id too large': ({'coordinator_address': 'a:1', 'num_processes': '2',
                         'process_id': '2'}, {}, 'the numbers 0 to 1'),
    'no number': ({'coordinator_address': 'a:1', 'num_processes': 'two',
                   'process_id': '0'}, {}, "--num_processes is 'two'"),
    'a variable': ({}, {'JAX_COORDINATOR_ADDRESS': 'a:1',
                        'JAX_NUM_PROCESSES': '-2', 'JAX_PROCESS_ID': '0'},
                   "JAX_NUM_PROCESSES is '-2'"),
    'no time': ({'peer_timeout': '0'}, {}, '--peer_timeout is .0.: must be'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_flags_get_one_line(case):
  given, environment, line = WRONG[case]
  with pytest.raises(UserError, match=line):
    processes.place(given, environment)


ALL = {'coordinator_address': 'a:1', 'num_processes': '4', 'process_id': '3'}


def test_flags_are_taken_before_the_environment():
  place = processes.place(ALL | {'peer_timeout': '7'}, {
      'JAX_PROCESS_ID': '1', 'JAX_NUM_PROCESSES': '9'})
  assert place == processes.Place('a:1', 4, 3, 300, 7)


@pytest.mark.parametrize('given, environment, joins', [
    ({}, {}, False), ({**ALL, 'num_processes': '1', 'process_id': '0'}, {},
                      False),
    ({}, {'SLURM_STEP_NODELIST': 'n', 'SLURM_NTASKS': '2'}, True),
    ({}, {'SLURM_STEP_NODELIST': 'n', 'SLURM_NTASKS': '1'}, False),
    ({}, {'SLURM_NTASKS': '2'}, False),  # a job's script, not a task
    ({}, {'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({}, {'TPU_ML_PLATFORM': 'JAX'}, True),  # a TPU VM
    ({}, {'TPU_ML_PLATFORM': 'JAX', 'TPU_SKIP_MDS_QUERY': '1'}, False),
    ({}, {'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, False)])
def test_processes_are_joined_only_where_there_are_several(
    given, environment, joins):
  assert (processes.place(given, environment) is not None) == joins


def test_a_mode_of_one_process_refuses_several():
  with pytest.raises(UserError, match='--mode=features takes one process'):
    flags.parse(['--mode=features', '--checkpoint=a', *(
        f'--{name}={value}' for name, value in ALL.items())], None)


def test_a_coordinator_that_does_not_answer_gets_one_line():
  """Fails if JAX's abort and its long log reach the user."""
  with socket.socket() as silent:
    silent.bind(('127.0.0.1', 0))
    ended = command.run([], program=('-c', (
        'from mtl_jax import processes as p; p.start(p.Place('
        f'"127.0.0.1:{silent.getsockname()[1]}", 2, 1, 1, 60), "tag")')))
  assert ended.returncode == processes.LOST
  line, = ended.stderr.splitlines()
  assert line.startswith('tag: no answer of 127.0.0.1:')
  assert 'within 1 seconds' in line


@pytest.mark.parametrize('reason, line', [
    ('UNAVAILABLE: The following tasks are unhealthy (stopped sending '
     'heartbeats): 3 The tasks have crashed.', 'process 3 has ended or does '),
    ('DEADLINE_EXCEEDED: x', 'another process .* not answer .DEADLINE_EXC'),
    ('', 'another process has ended or does not answer: see its last lines')])
def test_the_process_that_is_lost_is_named_where_it_is_known(reason, line):
  assert re.match(line, processes.loss(reason))


# --- A run on other devices. ---


@pytest.mark.parametrize('per_device, fits', [(2, True), (1, False)])
def test_a_run_resumes_only_with_as_many_tasks(per_device, fits, tmp_path):
  """Fails if tasks_per_device on fewer devices goes on with other tasks."""
  (tmp_path / 'env.json').write_text('{"meta_batch": 16}')
  (tmp_path / 'checkpoints/4').mkdir(parents=True)
  here = epath.Path(tmp_path), per_device * 8
  if fits:
    workdir.check_meta_batch(*here)
  else:
    with pytest.raises(UserError, match='have 16 tasks, .* 8: choose .*16'):
      workdir.check_meta_batch(*here)


# --- launch/local.py. ---


ECHO = ('-c', 'import sys; print(sys.argv[1:]); '
        'sys.exit(3 * sys.argv[-1].endswith("=1"))')
SLEEP = ('-c', 'import os, sys, time\nif sys.argv[-1].endswith("=1"):\n'
         '  os.kill(os.getpid(), 9)\ntime.sleep(600)')
TERM = ('-c', 'import os, signal, sys, time\n'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n'
        'os.kill(os.getppid(), signal.SIGTERM) if sys.argv[-1][-1] == "0" '
        'else None\ntime.sleep(600)')


def test_the_launcher_passes_flags_and_shows_whose_lines(capfd):
  assert local.main(['--processes=2', '--', '--config=x'], ECHO) == 3
  lines = sorted(capfd.readouterr().out.splitlines())
  assert [line[:20] for line in lines] == [
      "[0] ['--config=x', '", "[1] ['--config=x', '"]
  assert "'--num_processes=2', '--process_id=1'" in lines[1]


MANY = ('-c', 'print(*range(20000), sep=chr(10))')


@pytest.mark.parametrize('reader, lines', [
    ('(sleep 1; cat)', 40000), ('head -1', 1)])
def test_the_launcher_waits_for_who_reads(reader, lines):
  """Fails if the last lines, which tell most, are lost, or a full pipe stops
  the processes when nobody reads it."""
  code = ('import sys; from launch import local; '
          f'sys.exit(local.main(["--processes=2", "--", "-"], {MANY!r}))')
  done = subprocess.run(
      ['bash', '-o', 'pipefail', '-c', f'"$0" -c "$1" | {reader}',
       sys.executable, code], cwd=ROOT, text=True, capture_output=True,
      timeout=100)
  assert (done.returncode, done.stderr) == (0, '')
  assert len(done.stdout.splitlines()) == lines


def test_the_launcher_ends_all_when_one_is_killed():
  assert local.main(['--processes=2', '--grace=0', '--', '-'], SLEEP) == (
      128 + signal.SIGKILL)


# Without a handler, as while Python starts.
BARE = ('-c', 'import os, signal, time\n'
        'os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(600)')


@pytest.mark.parametrize('program', [TERM, BARE], ids=['noticed', 'at once'])
def test_the_launcher_passes_a_signal_on(program):
  """Fails if a scheduler gets no code that means: start the same again."""
  assert local.main(['--processes=1', '--', '-'], program) == early.PREEMPTED
