"""launch/slurm.sh and launch/gke_jobset.yaml start what they should.

Slurm's commands are stand-ins that record their calls; tests/long/test_slurm.py
has the real ones.
"""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from conftest import ROOT

from mtl_jax.config import check, flags

# srun ends with $CODE; squeue says $STATE.
STAND_INS = {
    'srun': 'exit $CODE', 'squeue': 'echo $STATE', 'scontrol': '',
    'python': ''}


@pytest.fixture
def slurm(tmp_path):
  """Returns what runs launch/slurm.sh: (code of srun, ..) -> process, calls."""
  for name, then in STAND_INS.items():
    program = tmp_path / name
    program.write_text(
        f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/calls\n{then}\n')
    program.chmod(0o755)

  def run(code=0, words=('--config=quickstart',), **env):
    env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CODE': str(code),
           'STATE': 'RUNNING', 'SLURM_JOB_ID': '7', **env}
    done = subprocess.run([ROOT / 'launch/slurm.sh', *words], text=True, env={
        name: value for name, value in env.items() if value is not None},
        capture_output=True, timeout=60)
    calls = tmp_path / 'calls'
    return done, calls.read_text().splitlines() if calls.exists() else []

  return run


def test_all_tasks_get_the_flags(slurm):
  done, calls = slurm(words=('--config=quickstart', '--workdir=a b'))
  assert done.returncode == 0
  assert calls == ['srun --kill-on-bad-exit=0 --wait=300 python -m '
                   'mtl_jax.main --config=quickstart --workdir=a b']


@pytest.mark.parametrize('code', (75, 76))
def test_a_run_that_was_stopped_is_queued_again(slurm, code):
  done, calls = slurm(code, SLURM_RESTART_COUNT='19')
  assert done.returncode == 0
  assert calls[-1] == 'scontrol requeue 7'


@pytest.mark.parametrize('code, env', (
    (0, {}), (1, {}), (2, {}), (130, {}), (75, {'STATE': 'COMPLETING'}),
    (75, {'SLURM_RESTART_COUNT': '20'}),
    (75, {'SLURM_RESTART_COUNT': '1', 'MAX_RESTARTS': '1'})))
def test_other_ends_are_the_end(slurm, code, env):
  """A job that failed or was cancelled would start again and again."""
  done, calls = slurm(code, **env)
  assert done.returncode == code
  assert not any(call.startswith('scontrol') for call in calls)


@pytest.mark.parametrize('words, env, said', (
    (('--config=quickstart',), {'SLURM_JOB_ID': None}, 'by sbatch'),
    ((), {}, 'no flags'),
    (('--config=quickstart',), {'MAX_RESTARTS': 'x'}, "MAX_RESTARTS is 'x'"),
    (('--config=quickstart',), {'SETUP': 'nothing'}, "SETUP is 'nothing'"),
    (('--config=quickstart',), {'PYTHON': 'nothing'}, "PYTHON is 'nothing'")))
def test_a_wrong_start_is_named(slurm, words, env, said):
  done, calls = slurm(words=words, **env)
  assert done.returncode == 2
  assert said in done.stderr and done.stderr.count('\n') == 1
  assert not calls


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='no shellcheck')
def test_shellcheck_finds_nothing():
  scripts = [path for folder in ('launch', 'tests', 'benchmarks')
             for path in ROOT.glob(f'{folder}/*.sh')]
  done = subprocess.run(['shellcheck', *scripts], text=True, timeout=60,
                        capture_output=True)
  assert done.returncode == 0, done.stdout


# --- Google Kubernetes Engine. ---


TEXT = (ROOT / 'launch/gke_jobset.yaml').read_text()
PLACEHOLDERS = re.findall(r'^# +(YOUR_\w+) ', TEXT, re.M)


def test_every_placeholder_is_explained_and_used():
  _, body = TEXT.split('\napiVersion', 1)
  assert set(re.findall(r'YOUR_\w+', body)) == set(PLACEHOLDERS)


def test_the_job_set_starts_one_process_per_host():
  given = yaml.safe_load(TEXT)
  assert (given['apiVersion'], given['kind']) == (
      'jobset.x-k8s.io/v1alpha2', 'JobSet')
  job, = given['spec']['replicatedJobs']
  spec = job['template']['spec']
  pod = spec['template']['spec']
  container, = pod['containers']
  # The number of chips of the slice is that of all hosts.
  chips = container['resources']['limits']['google.com/tpu']
  columns, rows = map(int, pod['nodeSelector'][
      'cloud.google.com/gke-tpu-topology'].split('x'))
  assert spec['completions'] == spec['parallelism'] == columns * rows // chips
  assert spec['completionMode'] == 'Indexed'
  assert container['resources']['requests'] == container['resources']['limits']
  assert given['spec']['network']['enableDNSHostnames']


def test_the_job_set_restarts_all_hosts_but_not_after_wrong_flags():
  given = yaml.safe_load(TEXT)['spec']
  spec = given['replicatedJobs'][0]['template']['spec']
  assert given['failurePolicy']['maxRestarts'] > 0
  assert spec['backoffLimit'] == 0
  assert spec['template']['spec']['restartPolicy'] == 'Never'
  rule, = spec['podFailurePolicy']['rules']
  assert rule == {'action': 'FailJob', 'onExitCodes': {
      'operator': 'In', 'values': [2]}}
  assert given['failurePolicy']['rules'][0]['onJobFailureReasons'] == [
      'PodFailurePolicy']


def main_container(text):
  container, = yaml.safe_load(text)['spec']['replicatedJobs'][0]['template'][
      'spec']['template']['spec']['containers']
  return container


def test_the_job_set_can_write_its_data_or_finds_them_built():
  """Fails if the quick start ends, as it may not build its data."""
  page = (ROOT / 'docs/launch.md').read_text()
  starts = [line for line in page.splitlines()
            if line.strip().startswith('sed ') and 'gke_jobset' in line]
  found = {}
  for start in starts:
    text = TEXT
    for old, new in re.findall(r"-e 's\|(.*?)\|(.*?)\|'", start):
      text = re.sub(old, new, text, flags=re.M)
    container = main_container(text)
    mount, = container['volumeMounts']
    data, = (e['value'] for e in container['env'] if e['name'] ==
             'MTL_JAX_DATA')
    name = container['args'][0].removeprefix('--config=')
    found[name] = data.startswith(mount['mountPath']) and mount['readOnly']
  assert found == {'quickstart': False, 'mini_5shot_pod': True}


def test_the_job_set_runs_a_command_that_is_accepted(tmp_path):
  container = main_container(TEXT)
  # A shell around it would not hand SIGTERM on.
  assert container['command'] == ['python', '-m', 'mtl_jax.main']
  command = flags.parse(container['args'], lambda path: None)
  check.validate(command.config)
  # The disk of a host is lost with it.
  assert command.workdir.startswith('gs://YOUR_BUCKET/')
