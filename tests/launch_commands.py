"""Whether commands that need a cluster or a cloud would be accepted.

The flags of gcloud and kubectl are those of their references, as far as the
pages and launch/ use them (2026-11).
"""

import re
import subprocess

import yaml
from conftest import ROOT

ALL = 'project quiet format zone'
GCLOUD = {
    'artifacts repositories create': 'repository-format location',
    'auth configure-docker': '',
    'auth login': '',
    'compute tpus queued-resources create':
        'node-id runtime-version accelerator-type labels spot',
    'compute tpus queued-resources delete': 'force',
    'compute tpus queued-resources describe': '',
    'compute tpus queued-resources list': '',
    'compute tpus tpu-vm create': 'version accelerator-type labels spot',
    'compute tpus tpu-vm delete': '',
    'compute tpus tpu-vm describe': '',
    'compute tpus tpu-vm list': '',
    'compute tpus tpu-vm scp': 'recurse worker',
    'compute tpus tpu-vm ssh': 'worker command',
    'config set': '',
    'container clusters create': 'workload-pool addons',
    'container clusters delete': '',
    'container clusters get-credentials': '',
    'container node-pools create':
        'cluster machine-type tpu-topology num-nodes spot',
    'container node-pools delete': 'cluster',
    'services enable': '',
    'storage buckets add-iam-policy-binding': 'member role',
    'storage buckets create': 'location',
    'storage rsync': 'recursive',
}
KUBECTL = {'apply': 'server-side f', 'create serviceaccount': '',
           'delete jobset': '', 'logs': 'f l'}
DOCKER = {'build': 'f t', 'push': ''}
SBATCH = {'nodes', 'ntasks-per-node', 'gpus-per-node', 'time', 'partition'}


def check_flags(words, known, everywhere=''):
  """Raises AssertionError unless the words begin with a known command."""
  line = ' '.join(words)
  name = next((name for name in known if f'{line} '.startswith(f'{name} ')),
              None)
  assert name, line
  allowed = {*known[name].split(), *everywhere.split()}
  for word in words:
    flag = re.match('--?([a-z-]+)', word)
    assert not flag or flag[1] in allowed, word


def check_files(words):
  for word in words:
    assert not word.startswith('launch/') or (ROOT / word).exists(), word


def check_sbatch(words, check_main):
  """The script's name follows options of sbatch; flags of the run follow it."""
  script = words.index('launch/slurm.sh')
  for word in words[:script]:
    assert re.fullmatch('--([a-z-]+)=.+', word)[1] in SBATCH, word
  check_main(words[script + 1:])


def check_tpu_pod(words, check_main):
  """The script takes its options, and the run its flags."""
  done = subprocess.run(
      [ROOT / 'launch/tpu_pod.sh', '--dry_run', *words], text=True,
      capture_output=True, timeout=60)
  assert done.returncode == 0, done.stderr
  if '--' in words:
    check_main(words[words.index('--') + 1:])


def check_sed(words):
  """The placeholders of a file are replaced, all of them."""
  done = subprocess.run(['sed', *words], text=True, capture_output=True,
                        cwd=ROOT, timeout=60)
  assert done.returncode == 0, done.stderr
  left = re.findall(r'^[^#].*(YOUR_\w+)', done.stdout, re.M)
  assert not left, left
  yaml.safe_load(done.stdout)


def check(program, words, check_main):
  """Raises an error unless a program of PROGRAMS would accept its words."""
  check_files(words)
  PROGRAMS[program](words, check_main)


PROGRAMS = {
    'sbatch': check_sbatch, 'launch/tpu_pod.sh': check_tpu_pod,
    'sed': lambda words, _: check_sed(words),
    'gcloud': lambda words, _: check_flags(words, GCLOUD, ALL),
    'kubectl': lambda words, _: check_flags(words, KUBECTL),
    'docker': lambda words, _: check_flags(words, DOCKER),
}
