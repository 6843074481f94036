"""A run that an older version wrote is resumed and tested by this one.

tests/data/run_of_2026_11_24.zip is a workdir of two epochs, written before
states were saved within an epoch and before fields were declared;
run_of_2026_11_24_resumed.npz is where that version came after four.
"""

import json

import command
import jax
import numpy as np
import pytest
from conftest import ROOT, unpack_old_run
from etils import epath

from mtl_jax.run import build, checkpoint, metrics, parts, trained, workdir

DATA = ROOT / 'tests/data'
FLAGS = ['--config=configs/glyphs_5shot.py:mtl',
         '--config.data.name=glyphs/tiny',
         '--config.model.width=8', '--config.train.ways=5',
         '--config.train.epoch_tasks=24', '--config.validation.tasks=8',
         '--config.eval.tasks=16', '--config.eval.baselines=False',
         '--config.log.every_steps=2', '--config.train.max_epochs=4',
         # What the recipe of that version had.
         '--config.train.shots=2', '--config.train.queries=2',
         '--config.train.meta_batch=8', '--config.train.stop_patience=15',
         '--config.optimizer.learning_rate=2e-3',
         '--config.optimizer.schedule=plateau',
         '--config.optimizer.decay_epochs=100',
         '--config.parallel.cpu_devices=0']


@pytest.fixture(scope='module')
def old(tmp_path_factory):
  path = tmp_path_factory.mktemp('old') / 'run'
  return unpack_old_run(path)


def test_its_best_epoch_is_tested_with_the_same_score(old, tmp_path):
  config = workdir.saved_config(old)
  config.log.progress = False
  model = trained.load(old, config)
  expected = json.loads((old / 'test.json').read_text())
  assert model.step == expected['checkpoint_step']
  result = command.run(['--mode=evaluate', f'--checkpoint={old}',
                        f'--workdir={tmp_path / "test"}'])
  assert result.returncode == 0, result.stderr
  score = json.loads((tmp_path / 'test/test.json').read_text())
  # A query or two may fall on the other side on another machine.
  assert score['accuracy'] == pytest.approx(expected['accuracy'], abs=0.003)


def test_it_resumes_and_ends_where_the_older_version_did(old):
  result = command.run([*FLAGS, f'--workdir={old}'])
  assert result.returncode == 0, result.stderr
  assert 'Resuming at step 6.' in result.stdout
  expected = np.load(DATA / 'run_of_2026_11_24_resumed.npz')
  records = metrics.read(epath.Path(old))
  np.testing.assert_allclose(
      [r['loss'] for r in records if 'loss' in r], expected['losses'],
      rtol=1e-4)
  config = workdir.saved_config(old)
  run = parts.make_run(config)
  state, *_ = checkpoint.restore_latest(
      epath.Path(old), build.initial_state(
          config, run.algorithm, run.splits['train'].images.shape[1:]))
  assert int(state.step) == 12
  variables = np.concatenate([np.ravel(x) for x in jax.tree.leaves(
      jax.device_get(state.variables))])
  np.testing.assert_allclose(variables, expected['variables'], rtol=1e-3,
                             atol=1e-4)
