"""The scripts in benchmarks/ with small arguments, where that takes minutes.

tests/test_smoke.py runs the rest. Each script runs in a process of its own.
"""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
MINI_IMAGENET = os.path.join(
    os.environ.get('MTL_JAX_TEST_DATA', ''), 'mini_imagenet')
RUN = {
    'data.name': 'glyphs/tiny', 'train.epoch_tasks': 8, 'train.max_epochs': 2,
    'optimizer.warmup_epochs': 0, 'optimizer.decay_epochs': 2,
    'validation.tasks': 4, 'eval.tasks': 4,
}


def run(name, *arguments):
  """Returns what a script printed."""
  done = subprocess.run(
      [sys.executable, ROOT / f'benchmarks/{name}.py', *arguments],
      text=True, stdout=subprocess.PIPE, timeout=3000,
      env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0
  assert 'nan' not in done.stdout
  return done.stdout


def test_all_tables_of_layers_are_printed():
  printed = run('layers', '--rows=1', '--images=2', '--repeats=1')
  for title in ('max pool', 'step', 'tasks', 'resnet12'):
    assert f'\n{title} ' in printed


def test_heads_are_timed_without_a_peer():
  printed = run('heads', '--rounds=1', '--repeats=1', '--tasks=2')
  for head in ('svm', 'logistic'):
    assert f'{head:9s} ours ' in printed


def test_steps_of_all_methods_are_measured():
  printed = run('method_steps', '--data=glyphs/tiny', '--width=4',
                '--repeats=1')
  for row in ('mtl | together', 'maml | remat', 'whole_class | unrolled'):
    assert f'| {row} |' in printed


def test_the_unrolled_gradient_is_approached(tmp_path):
  printed = run('imaml', '--l2=10', '--steps=1,256', '--data=glyphs/tiny',
                f'--out={tmp_path}/imaml.png')
  first, last = (float(line.split('|')[4]) for line in printed.splitlines()
                 if line.startswith('| smooth |'))
  assert last < first / 100
  assert (tmp_path / 'imaml.png').exists()


@pytest.mark.skipif(not os.path.isdir(MINI_IMAGENET),
                    reason='no mini_imagenet in $MTL_JAX_TEST_DATA')
def test_every_layout_of_mini_imagenet_gives_the_same_store(tmp_path):
  printed = run('build_mini_imagenet', MINI_IMAGENET, str(tmp_path))
  assert printed.count('\nlayout ') + printed.startswith('layout ') == 9
  assert 'the same store from all' in printed


def test_a_small_tiered_imagenet_trains_alike_from_device_and_host():
  printed = run('tiered_size', '--per_class=2', '--steps=2')
  assert '| 2 steps, pixels on the host |' in printed
  assert 'Losses: the same' in printed


def test_runs_that_are_ended_at_random_end_as_those_without_a_break(tmp_path):
  printed = run('kills', '--kills=8', '--a_round=2', f'--folder={tmp_path}')
  assert '8 times ended, all as without a break' in printed
