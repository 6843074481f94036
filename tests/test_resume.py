"""A run that was killed and started again is the run that never stopped."""

import contextlib
import os
import re
import signal
import types

import command
import jax
import numpy as np
import pytest
import tiny_run
from conftest import ROOT
from etils import epath
from killed import MOMENTS, WITHIN_AN_EPOCH
from tiny_run import final_state, lasting

from mtl_jax.errors import UserError
from mtl_jax.run import checkpoint, loop, metrics, parts

LIMIT = 'a smaller limit of epochs'


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  path = tmp_path_factory.mktemp('whole') / 'run'
  result = command.run(command.arguments(path))
  assert result.returncode == 0, result.stderr
  return path


@pytest.fixture(scope='module')
def twice(tmp_path_factory):
  """Returns how the first start ended -> (workdir, first start, second)."""
  paths, starts = {}, []
  for how in (*MOMENTS, *WITHIN_AN_EPOCH, LIMIT):
    paths[how] = tmp_path_factory.mktemp('twice') / 'run'
    flags = command.arguments(paths[how], **(
        {'config__train__save_minutes': 1e-9} if how in WITHIN_AN_EPOCH else {}
    ))
    starts += [[*flags, '--config.train.max_epochs=1'] if how == LIMIT
               else [how, *flags], flags]
  ended = command.run_each(starts, 'killed', timeout=600, env={
      'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')])})
  return {how: (path, first, second) for (how, path), first, second
          in zip(paths.items(), ended[::2], ended[1::2], strict=True)}


def assert_same_run(path, other):
  """To the bit; but for the times in the records."""
  for a, b in zip(jax.tree.leaves(final_state(path)),
                  jax.tree.leaves(final_state(other)), strict=True):
    np.testing.assert_array_equal(a, b)
  assert lasting(metrics.read(epath.Path(path))) == lasting(
      metrics.read(epath.Path(other)))
  assert (path / 'test.json').read_text() == (other / 'test.json').read_text()
  # Nothing is left of a save that was killed.
  assert {p.name for p in path.iterdir()} == {
      p.name for p in other.iterdir()}


@pytest.mark.parametrize('moment', MOMENTS | WITHIN_AN_EPOCH)
def test_killed_and_started_again_ends_equal_to_the_bit(
    moment, uninterrupted, twice):
  """Fails if a saved step is lost, an epoch's or one within an epoch."""
  path, first, second = twice[moment]
  assert first.returncode == -signal.SIGKILL, first.stderr
  assert second.returncode == 0, second.stderr
  _, step, start = (MOMENTS | WITHIN_AN_EPOCH)[moment]
  resumed = re.findall(r'Resuming at step (\d+)\.', second.stdout)
  assert resumed == ([str(start)] if start else []), 'another moment'
  assert start < step
  assert_same_run(path, uninterrupted)


@pytest.fixture(scope='module')
def tiny():
  config = tiny_run.config_of(train__max_epochs=2)
  return config, parts.make_run(config)


@pytest.fixture(scope='module')
def never_stopped(tiny, tmp_path_factory):
  config, run = tiny
  path = epath.Path(tmp_path_factory.mktemp('never')) / 'run'
  loop.side_by_side(run, [config], [path])
  return path


# A run has four steps an epoch.
@pytest.mark.parametrize('number, error, step', [
    (signal.SIGTERM, SystemExit, 3), (signal.SIGINT, KeyboardInterrupt, 6),
    (signal.SIGTERM, SystemExit, 4), (signal.SIGTERM, SystemExit, 8)])
def test_a_run_that_a_signal_stopped_saves_that_step_and_goes_on_equal(
    number, error, step, tiny, never_stopped, tmp_path, monkeypatch):
  """Fails if a step is lost, or the validation after an epoch's last one."""
  config, run = tiny
  path = epath.Path(tmp_path) / 'run'
  steps = iter(range(1, 9))

  def noticed():
    with before() as asked:
      def after_step():
        if next(steps) == step:
          signal.raise_signal(number)
        return asked()
      yield after_step

  before = loop.stopping.noticed
  with monkeypatch.context() as patch:
    patch.setattr(loop.stopping, 'noticed', contextlib.contextmanager(noticed))
    with pytest.raises(error):
      loop.side_by_side(run, [config], [path])
  assert checkpoint.last_step(path) == step
  loop.side_by_side(run, [config], [path])
  assert_same_run(path, never_stopped)


def test_a_larger_limit_goes_on_and_equals_a_run_with_that_limit(
    uninterrupted, twice):
  path, first, second = twice[LIMIT]
  assert first.returncode == 0, first.stderr
  assert '; step 4\n' in first.stdout, 'the best of one epoch'
  assert second.returncode == 0, second.stderr
  assert 'Resuming at step 4.' in second.stdout
  for a, b in zip(jax.tree.leaves(final_state(uninterrupted)),
                  jax.tree.leaves(final_state(path)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_save_into_a_folder_that_is_gone_says_so(tmp_path):
  """Fails if the line says that earlier checkpoints are whole."""
  def fail(*_, **__):
    raise OSError('no such folder')

  manager = types.SimpleNamespace(
      directory=epath.Path(tmp_path) / 'checkpoints', save=fail)
  with pytest.raises(UserError, match='checkpoints is gone since the run'):
    checkpoint.save(manager, 4, {})
