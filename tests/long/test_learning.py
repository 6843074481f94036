"""Every method learns: unseen alphabets, against its untrained start."""

import json

import command
import numpy as np
import pytest

from mtl_jax.algorithms import METHODS

TASKS = 300
GAIN = 0.10


@pytest.mark.parametrize('method', sorted(METHODS))
def test_a_method_learns_what_its_start_and_pixels_do_not_know(
    method, tmp_path):
  path = tmp_path / 'run'
  result = command.run([
      f'--config=configs/glyphs_5shot.py:{method}', f'--workdir={path}',
      '--config.model.width=32', f'--config.eval.tasks={TASKS}',
      '--config.eval.baselines=True', '--config.validation.tasks=50'],
      env={'XLA_FLAGS': ''}, timeout=3000)
  assert result.returncode == 0, result.stderr
  test = json.loads((path / 'test.json').read_text())
  with np.load(path / 'tasks.npz') as tasks:
    gain = tasks[test['head']] - tasks['untrained']
  lower = gain.mean() - 1.96 * gain.std(ddof=1) / TASKS ** 0.5
  assert lower > GAIN
  assert test['accuracy'] > test['scores']['raw_pixels']['accuracy']
