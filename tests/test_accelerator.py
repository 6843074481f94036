"""benchmarks/accelerator.sh: what it runs, keeps and leaves out.

No GPU is needed: programs that only note how they were called stand for Python.
"""

import importlib
import os
import subprocess

import pytest
from conftest import ROOT

SCRIPT = ROOT / 'benchmarks/accelerator.sh'
STUB = """#!/bin/sh
echo "$*" >> {calls}
case "$*" in *{fails}*) exit 1;; esac
echo '{{"seconds": 1}}'
"""


@pytest.fixture
def run(tmp_path):
  """Returns words, options -> (process, calls of the programs)."""
  calls = tmp_path / 'calls'

  def start(*words, fails='nothing', **environment):
    calls.write_text('')
    program = tmp_path / 'python'
    program.write_text(STUB.format(calls=calls, fails=fails))
    program.chmod(0o755)
    done = subprocess.run(
        [SCRIPT, *map(str, words)], text=True, capture_output=True,
        cwd=tmp_path, env={
            **os.environ, 'PYTHON': str(program), 'PEER_PYTHON': str(program),
            **environment})
    return done, calls.read_text().splitlines()

  (tmp_path / 'inputs/peers').mkdir(parents=True)
  return start


def test_pieces_that_are_measured_are_not_measured_again(run, tmp_path):
  """Fails if a stop loses what was measured, or a failure looks like one."""
  inputs, out = tmp_path / 'inputs', tmp_path / 'out'
  done, calls = run('measure', inputs, out, fails='--compile=1')
  assert done.returncode == 0, done.stderr
  written = {path.stem for path in out.glob('*.jsonl')}
  assert 'ours_bfloat16' in written and 'torch_bfloat16_eager' in written
  assert 'torch_bfloat16_compiled' not in written
  assert 'torch_bfloat16_compiled: failed' in done.stdout
  _, again = run('measure', inputs, out)
  assert again == [call for call in calls if '--compile=1' in call]


def test_ours_and_theirs_get_the_same_images(run, tmp_path):
  # Folders are those of the caller, not of the repository.
  _, calls = run('measure', 'inputs', 'out', IMAGES='64')
  assert any('--ways=32 --shots=1 --queries=1' in call for call in calls)
  theirs = [call for call in calls if 'mtl_step.py' in call]
  assert theirs and all('--images=64 ' in call for call in theirs)


def test_no_piece_begins_without_time(run, tmp_path):
  done, calls = run('measure', tmp_path / 'inputs', tmp_path / 'out',
                    SECONDS_LEFT='10')
  assert done.returncode == 0 and not calls
  assert 'no time left' in done.stdout


def test_preparing_measures_nothing_and_needs_no_peer(run, tmp_path):
  done, calls = run('prepare', tmp_path / 'inputs')
  assert done.returncode == 0 and not (tmp_path / 'out').exists()
  assert calls and all('--repeats=1' in call for call in calls)


@pytest.mark.parametrize('words', [(), ('measure', 'inputs'), ('run', 'a')])
def test_a_wrong_command_gets_the_usage(run, words):
  done, _ = run(*words)
  assert done.returncode == 2 and 'accelerator.sh measure' in done.stderr


@pytest.mark.parametrize('images', ['abc', '0', '7', '-2'])
def test_a_number_of_images_that_cannot_be_gets_one_line(images, run, tmp_path):
  done, calls = run('measure', tmp_path / 'a', tmp_path / 'b', IMAGES=images)
  assert done.returncode == 2 and not calls
  assert done.stderr == (
      f'IMAGES is {images}: must be an even number above 0\n')


def test_a_step_may_have_more_classes_than_a_benchmark(monkeypatch):
  """Fails if IMAGES above 128 measures the peer alone."""
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  train_step = importlib.import_module('train_step')
  case = train_step.Case('protonet', 'conv4', (16, 16, 1), ways=70, shots=1,
                         queries=1, tasks=16)
  # As many devices as there are, where more are asked for.
  step = train_step.make_step(case, train_step.parse(['--devices=16']))
  assert step.once() > 0 and step.devices == 8
