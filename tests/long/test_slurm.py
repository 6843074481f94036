"""launch/slurm.sh under a real Slurm: one node on loopback, two tasks.

Skipped unless slurmctld, slurmd, munged and Slurm's commands are installed
(Debian: slurmctld, slurmd, slurm-client, munge). The daemons run as this user,
with all their files in a folder of the test.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import command  # noqa: E402
from conftest import FAST_COMPILES, ROOT  # noqa: E402

PATH = f'{os.environ["PATH"]}:/usr/sbin'
PROGRAMS = ('slurmctld', 'slurmd', 'munged', 'sbatch', 'srun', 'scontrol')
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f'no {MISSING}')

CONF = '''
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is queued again waits until the credentials of the first expire.
AuthInfo=socket={path}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={path}/slurmctld.pid
SlurmdPidFile={path}/slurmd.pid
StateSaveLocation={path}/state
SlurmdSpoolDir={path}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 \\
  CoresPerSocket=2 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
'''
# What each task finds: jax detects the cluster by itself.
PROBE = '''
import jax
from jax.experimental import multihost_utils
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize()
numbers = multihost_utils.process_allgather(jax.process_index())
print('found', jax.process_index(), jax.process_count(), numbers.tolist())
'''


def free_ports(count):
  sockets = [socket.socket() for _ in range(count)]
  for each in sockets:
    each.bind(('127.0.0.1', 0))
  ports = [each.getsockname()[1] for each in sockets]
  for each in sockets:
    each.close()
  return ports


def wait(condition, seconds=120):
  """Waits until a condition holds; returns what it gives."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    found = condition()
    if found:
      return found
    time.sleep(0.2)
  raise AssertionError('waited in vain')


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  """Starts the daemons; returns what runs a command of Slurm."""
  path = tmp_path_factory.mktemp('slurm')
  for name in ('state', 'spool'):
    (path / name).mkdir()
  user = subprocess.check_output(['id', '-un'], text=True).strip()
  (path / 'slurm.conf').write_text(CONF.format(
      host=socket.gethostname().split('.')[0], user=user, path=path,
      ports=free_ports(2)))
  (path / 'munge.key').write_bytes(os.urandom(1024))
  (path / 'munge.key').chmod(0o600)
  env = {**os.environ, 'PATH': PATH, 'SLURM_CONF': str(path / 'slurm.conf'),
         'XLA_FLAGS': FAST_COMPILES, 'PYTHONPATH': str(ROOT),
         'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu'}
  files = {name: f'{path}/munge.{name}' for name in (
      'socket', 'key', 'pid', 'log', 'seed')}
  daemons = []
  for words in (
      ['munged', '--foreground', '--force', f'--socket={files["socket"]}',
       f'--key-file={files["key"]}', f'--pid-file={files["pid"]}',
       f'--log-file={files["log"]}', f'--seed-file={files["seed"]}'],
      ['slurmctld', '-D', '-c'], ['slurmd', '-D', '-N', 'localhost']):
    with open(path / f'{words[0]}.log', 'w') as log:
      daemons.append(subprocess.Popen(words, env=env, stdout=log, stderr=log,
                                      stdin=subprocess.DEVNULL))
    time.sleep(1)

  def run(*words):
    return subprocess.run(words, env=env, cwd=path, text=True, timeout=300,
                          capture_output=True).stdout

  run.path = path
  try:
    try:
      wait(lambda: 'idle' in run('sinfo', '--noheader', '--format=%T'), 30)
    except AssertionError:
      pytest.skip('Slurm does not start: ' + ' '.join(
          (path / f'{name}.log').read_text()[-300:] for name in (
              'munged', 'slurmctld', 'slurmd')))
    yield run
  finally:
    for daemon in reversed(daemons):
      daemon.terminate()
      daemon.wait(30)


# So long that a job that is interrupted at its first checkpoint has not ended.
LONG = {'config__train__max_epochs': 40, 'config__optimizer__decay_epochs': 40,
        'config__augment__operations': ''}


def submit(cluster, workdir, *options, **changes):
  """Queues a tiny run of two tasks; returns the number of its job."""
  return cluster(
      'sbatch', '--parsable', '--ntasks-per-node=2', *options,
      str(ROOT / 'launch/slurm.sh'), *command.arguments(
          workdir, **LONG, **changes)).strip()


def state(cluster, job):
  return re.search(
      r'JobState=(\w+)', cluster('scontrol', 'show', 'job', job))[1]


def log(cluster, job):
  path = cluster.path / f'mtl_jax-{job}.out'
  return path.read_text() if path.exists() else ''


def end(cluster, job, seconds=300):
  """Waits for the end of a job; returns its state and its log."""
  over = wait(lambda: state(cluster, job) not in (
      'PENDING', 'RUNNING', 'COMPLETING', 'REQUEUED') and state(cluster, job),
      seconds)
  return over, log(cluster, job)


def test_jax_finds_two_processes(cluster):
  found = cluster('srun', '--ntasks=2', sys.executable, '-c', PROBE)
  assert sorted(re.findall('found.*', found)) == [
      'found 0 2 [0, 1]', 'found 1 2 [0, 1]'], found


@pytest.fixture(scope='module')
def whole(cluster):
  """Returns the workdir of a run that nothing stops."""
  workdir = cluster.path / 'whole'
  over, printed = end(cluster, submit(cluster, workdir))
  assert over == 'COMPLETED', printed
  assert ', 2 x cpu' in printed or '2 processes' in printed
  return workdir


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return {line['step']: line['loss'] for line in map(json.loads, lines)
          if 'loss' in line}


def test_two_tasks_train_as_one_process_does(cluster, whole):
  workdir = cluster.path / 'alone'
  done = command.run(command.arguments(
      workdir, **LONG))
  assert done.returncode == 0, done.stderr
  first = lambda path: {step: loss for step, loss in losses(path).items()
                        if step <= 16}  # round-off grows after that
  assert len(first(whole)) == 8
  assert first(whole) == pytest.approx(first(workdir), rel=1e-4)


def interrupted(cluster, name, *interrupt):
  """Interrupts a job at its first checkpoint; returns what `end` does of it."""
  workdir = cluster.path / name
  job = submit(cluster, workdir)
  wait(lambda: list(workdir.glob('checkpoints/*/_CHECKPOINT_METADATA')))
  cluster(*interrupt, job)
  return workdir, *end(cluster, job)


# The time limit, and a preemption with a grace time, send SIGTERM.
@pytest.mark.parametrize('interrupt, said', [
    (('scontrol', 'requeue'), 'restart 1 of 20'),
    (('scancel', '--signal=TERM'), 'the job is queued again')])
def test_a_job_that_is_queued_again_resumes(interrupt, said, cluster, whole):
  """It would begin anew, or be cancelled."""
  workdir, over, printed = interrupted(cluster, interrupt[1], *interrupt)
  assert over == 'COMPLETED', printed
  assert said in printed and 'esum' in printed
  assert losses(workdir) == losses(whole)


def test_a_job_that_is_cancelled_stays_so(cluster):
  _, over, printed = interrupted(cluster, 'cancelled', 'scancel')
  assert over == 'CANCELLED', printed
  assert 'queued again' not in printed
