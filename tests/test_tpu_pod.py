"""launch/tpu_pod.sh leaves no TPU VM behind, whatever fails.

gcloud is tests/gcloud_fake.sh: it records its calls, fails where a test wants
it to, and runs what the two workers are told in folders of this machine.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import launch_commands
import pytest
from conftest import ROOT

SCRIPT = ROOT / 'launch/tpu_pod.sh'
# On the workers: uv makes an environment whose Python stands in for the run. It
# ends with the next of $CODES, and worker 0 writes the workdir.
UV = r'''#!/bin/bash
[[ $1 == venv ]] || exit 0
mkdir -p mtl_jax_env/bin
cat > mtl_jax_env/bin/python << 'END'
#!/bin/bash
printf '%s\n' "$@" > arguments
echo "data $MTL_JAX_DATA"
echo >> "$FAKE/starts${PWD##*/}"
folder=${*: -1}; folder=${folder#--workdir=}
[[ $folder != gs://* ]] || folder=$FAKE/bucket
[[ $PWD != */0 ]] || { mkdir -p "$folder"; echo {} > "$folder/test.json"; }
codes=($CODES)
exit "${codes[$(wc -l < "$FAKE/starts${PWD##*/}") - 1]}"
END
chmod +x mtl_jax_env/bin/python
'''
STEPS = ('list', 'create', 'scp', 'install', 'start', 'follow', 'ask',
         'results', 'delete')


class Cloud:
  """A stand-in for gcloud in a folder, and the script that calls it."""

  def __init__(self, path):
    self.path = path
    for name in ('bin', '0', '1', 'bucket'):
      (path / name).mkdir()
    shutil.copy(ROOT / 'tests/gcloud_fake.sh', path / 'bin/gcloud')
    self.write('bin/python3', '#!/bin/bash\n')
    for worker in '01':
      (path / worker / '.local/bin').mkdir(parents=True)
      self.write(f'{worker}/.local/bin/uv', UV)
    (path / 'bucket/config.json').write_text('{}')
    self.wheel = path / 'mtl_jax-0.1.0-py3-none-any.whl'
    self.wheel.write_text('')

  def write(self, name, text):
    (self.path / name).write_text(text)
    (self.path / name).chmod(0o755)

  def start(self, *options, flags=('--config=quickstart',), **env):
    """Starts the script; returns its process."""
    return subprocess.Popen(
        [SCRIPT, '--name=pod', '--zone=here', '--type=v5litepod-16', '--poll=0',
         f'--package={self.wheel}', *options, '--', *flags],
        cwd=self.path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={
            'PATH': f'{self.path}/bin:{os.environ["PATH"]}',
            'FAKE': str(self.path), 'CODES': '0 0', **env})

  def run(self, *options, **env):
    """Runs the script; returns its exit code and its last line."""
    process = self.start(*options, **env)
    output, errors = process.communicate(timeout=60)
    self.output = output
    self.lines = errors.splitlines()
    return process.returncode, self.lines[-1]

  def exists(self):
    return (self.path / 'tpu-vm').exists()

  def calls(self, word):
    """Returns the calls of gcloud with a word."""
    if not (self.path / 'calls').exists():
      return []
    return [line for line in (self.path / 'calls').read_text().splitlines()
            if word in line.split()]


@pytest.fixture
def cloud(tmp_path):
  return Cloud(tmp_path)


def test_a_run_ends_with_its_results_and_without_a_vm(cloud):
  data = cloud.path / 'built'
  data.mkdir()
  (data / 'pixels').write_text('')
  code, last = cloud.run(f'--data={data}', '--results=kept', flags=(
      '--config=quickstart', "--config.eval.heads=('a b',)"))
  assert (code, last) == (
      0, 'tpu_pod.sh: done; pod was deleted; nothing is left')
  assert not cloud.exists()
  for worker in '01':
    arguments = (cloud.path / worker / 'arguments').read_text().splitlines()
    assert arguments == [
        '-m', 'mtl_jax.main', '--config=quickstart',
        "--config.eval.heads=('a b',)", '--workdir=runs/pod']
    assert (cloud.path / worker / 'mtl_jax_data/pixels').exists()
    assert (cloud.path / worker / cloud.wheel.name).exists()
  assert f'data {cloud.path}/0/mtl_jax_data' in cloud.output
  assert (cloud.path / 'kept/test.json').exists()


@pytest.mark.parametrize('step', STEPS[:-1])
@pytest.mark.parametrize('was_there', (False, True))
def test_a_failure_leaves_only_a_vm_that_was_there(cloud, step, was_there):
  if was_there:
    (cloud.path / 'tpu-vm').write_text('READY of-somebody')
  # What is followed can be asked for again; what cannot be asked is lost.
  code, last = cloud.run(FAIL_AT=step)
  if was_there and step == 'create' or step == 'follow':
    assert code == 0
  else:
    assert code == 1
    assert re.search(r'^tpu_pod.sh: failed: .*pod \(code 1\); ', last)
  assert cloud.exists() == was_there
  assert bool(cloud.calls('delete')) == (
      not was_there and step not in ('list', 'create'))
  if step == 'list' or step == 'create' and not was_there:
    assert last.endswith('; no VM of this start is there')
  elif was_there:
    assert 'pod is left and costs money: delete it by gcloud ' in last
  else:
    assert last.endswith('; pod was deleted; nothing is left')


@pytest.mark.parametrize('option', ('--queued', None))
def test_a_creation_that_fails_too_late_is_undone(cloud, option):
  """The VM is there although gcloud said that it is not."""
  code, last = cloud.run(*filter(None, [option]), FAIL_AT='create', LATE='yes')
  assert code == 1
  assert last == ('tpu_pod.sh: failed: creating pod (code 1); pod was deleted; '
                  'nothing is left')
  assert not cloud.exists()


@pytest.mark.parametrize('created, deleted', ((True, False), (False, True)))
def test_options_decide_on_deletion(cloud, created, deleted):
  """--keep leaves what was created, --delete takes what was there before."""
  if not created:
    (cloud.path / 'tpu-vm').write_text('READY of-somebody')
  code, last = cloud.run('--keep' if created else '--delete',
                         FAIL_AT='install')
  assert code == 1
  assert cloud.exists() != deleted
  assert ('pod was deleted' in last) == deleted
  if created:
    assert last.endswith('delete it by gcloud compute tpus tpu-vm delete pod '
                         '--zone=here')


def test_what_another_start_creates_meanwhile_is_not_deleted(cloud):
  """The name is taken between the look and the creation."""
  fake = (cloud.path / 'bin/gcloud').read_text()
  cloud.write('bin/gcloud', fake.replace(
      "[[ ! -e $FAKE/$group ]] || exit 1",
      'echo "READY of-somebody" > "$FAKE/tpu-vm"; exit 1'))
  code, last = cloud.run()
  assert code == 1
  assert last.endswith('; no VM of this start is there')
  assert cloud.exists() and not cloud.calls('delete')


def test_a_deletion_that_fails_is_said(cloud):
  code, last = cloud.run(FAIL_AT='delete')
  assert code == 1
  assert len(cloud.calls('delete')) == 10
  assert ('pod COULD NOT BE DELETED and costs money: delete it by gcloud '
          'compute tpus tpu-vm delete pod --zone=here') in last


def until_it_hangs(cloud, process):
  for _ in range(6000):
    if (cloud.path / 'hangs').exists():
      return
    assert process.poll() is None, 'it ended'
    time.sleep(0.01)
  pytest.fail('it does not come so far')


@pytest.mark.parametrize('step', ('create', 'install', 'follow', 'results'))
@pytest.mark.parametrize('number, code', (
    (signal.SIGINT, 130), (signal.SIGTERM, 143)))
def test_a_signal_deletes_the_vm(cloud, step, number, code):
  process = cloud.start(HANG_AT=step)
  until_it_hangs(cloud, process)
  process.send_signal(number)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == code
  assert not cloud.exists()
  assert errors.splitlines()[-1].startswith(
      f'tpu_pod.sh: stopped by {number.name[3:]}: ')


def test_a_vm_is_deleted_though_nobody_reads(cloud):
  """`launch/tpu_pod.sh | tee log`: Ctrl-C ends tee at the same moment."""
  process = cloud.start(HANG_AT='follow')
  until_it_hangs(cloud, process)
  process.stdout.close()
  process.stderr.close()
  process.send_signal(signal.SIGINT)
  assert process.wait(30) == 130
  assert not cloud.exists()


def test_ctrl_c_stops_the_run_on_a_vm_that_stays(cloud):
  """The run would go on, and hold the TPU, without anybody who waits for it."""
  (cloud.path / 'tpu-vm').write_text('READY of-somebody')
  process = cloud.start(HANG_AT='follow')
  until_it_hangs(cloud, process)
  process.send_signal(signal.SIGINT)
  process.communicate(timeout=30)
  assert cloud.exists()
  assert 'kill -TERM' in cloud.calls('ssh')[-1]


@pytest.mark.parametrize('step', ('install', 'start', 'follow', 'ask'))
@pytest.mark.parametrize('queued', (False, True))
def test_a_vm_that_is_preempted_is_created_again(cloud, step, queued):
  """The second VM runs the same command, which resumes from gs://..."""
  code, last = cloud.run(
      '--spot', '--workdir=gs://bucket/run', *['--queued'] * queued,
      PREEMPT_AT=step)
  assert code == 0, cloud.lines
  assert len(cloud.calls('create')) == 2
  assert '--spot' in cloud.calls('create')[1]
  assert len(cloud.calls('delete')) == 2
  assert (cloud.path / 'runs/pod/config.json').exists()
  assert not cloud.exists()
  assert 'restart 1 of 20' in ' '.join(cloud.lines)


def test_a_run_that_saves_and_stops_is_started_again(cloud):
  """Exit code 75 or 76 says that the same command resumes."""
  code, _ = cloud.run('--workdir=gs://bucket/run', CODES='75 76 0')
  assert code == 0
  assert len(cloud.calls('create')) == 1
  assert len(cloud.calls('delete')) == 1
  assert len((cloud.path / 'starts1').read_text()) == 3


def test_restarts_are_bounded(cloud):
  code, last = cloud.run('--workdir=gs://bucket/run', '--restarts=2',
                         CODES='75 75 75 75 75')
  assert code == 75
  assert 'stopped before its end, after 2 restarts' in last
  assert len((cloud.path / 'starts0').read_text()) == 3
  assert not cloud.exists()


@pytest.mark.parametrize('code', (1, 2))
def test_the_exit_code_is_that_of_the_run(cloud, code):
  found, last = cloud.run(CODES=str(code))
  assert found == code
  assert f'failed: the run on pod (code {code}); pod was deleted' in last


def test_a_preempted_vm_of_somebody_is_left(cloud):
  (cloud.path / 'tpu-vm').write_text('PREEMPTED of-somebody')
  code, last = cloud.run('--workdir=gs://bucket/run')
  assert code == 2
  assert 'pod exists, but is PREEMPTED' in cloud.lines[-2]
  assert cloud.exists() and not cloud.calls('delete')
  assert cloud.run('--workdir=gs://bucket/run', '--delete')[0] == 0


def test_what_was_on_a_lost_disk_is_not_trained_again(cloud):
  code, last = cloud.run(PREEMPT_AT='follow')
  assert code == 75
  assert 'give --workdir=gs://...' in cloud.lines[-3] + cloud.lines[-4]
  assert not cloud.exists()


def test_a_dry_run_calls_nothing(cloud):
  code, _ = cloud.run('--dry_run', '--queued', '--spot',
                      '--workdir=gs://bucket/run', '--data=gs://bucket/data')
  assert code == 0
  assert not cloud.calls('compute') + cloud.calls('storage')
  printed = cloud.output.splitlines()
  for line in printed:
    launch_commands.check('gcloud', shlex.split(line)[1:], None)
  for part in ('queued-resources create', 'scp', 'pip install', 'storage rsync',
               'nohup', 'tail -n', 'mtl_jax_exit', 'rsync --recursive gs://'
               'bucket/run runs/pod', 'queued-resources delete pod --force'):
    assert any(part in line for line in printed), part
  assert not (cloud.path / 'runs').exists()


WRONG = {
    '--name=Pod': "--name is 'Pod'", '--zone=': '--zone is missing',
    '--restarts=x': "--restarts is 'x'", '--poll=-1': "--poll is '-1'",
    '--nothing': '--nothing is no option', '--data=nothing': "'nothing'",
    '--package=a.whl': "--package is 'a.whl'", '--mount_data': '--mount_data',
    '--spot': '--workdir is runs/pod',
}


@pytest.mark.parametrize('option', WRONG)
def test_a_wrong_option_is_named(cloud, option):
  code, last = cloud.run(option)
  assert code == 2
  assert WRONG[option] in last
  assert len(cloud.lines) == 1
  assert not cloud.calls('compute')


def test_flags_of_the_run_are_needed(cloud):
  process = cloud.start(flags=())
  assert 'no flags of mtl_jax.main' in process.communicate(timeout=30)[1]
  assert process.returncode == 2
