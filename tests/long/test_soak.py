"""Runs on a CPU that is counted as several devices: none hangs or aborts.

A hang or an abort depends on how threads meet, so that one good run says
little. Every case runs three times: beside busy loops three runs at once,
which is more load still, and without other work one after another.
"""

import contextlib
import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
TIMES = 3
BUSY_LOOPS = 6
SECONDS = 3000
# 2,000 steps of eight tiny tasks; losses are fetched once in 1,000 steps.
SMALL_STEPS = {
    'config': 'configs/glyphs_5shot.py', 'config.data.name': 'glyphs/tiny',
    'config.model.width': 4, 'config.model.pool': 'global',
    'config.train.shots': 1, 'config.train.queries': 1,
    'config.train.meta_batch': 8, 'config.train.epoch_tasks': 16000,
    'config.train.max_epochs': 1, 'config.log.every_steps': 1000,
    'config.validation.tasks': 4, 'config.eval.tasks': 8,
    'config.eval.baselines': False,
}
RECIPES = ('configs/quickstart.py:metaoptnet', 'configs/quickstart.py:r2d2',
           'configs/quickstart.py:protonet', 'configs/glyphs_5shot.py:anil')


@contextlib.contextmanager
def load(loops):
  """Keeps the cores busy with other work."""
  busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass'])
          for _ in range(loops)]
  try:
    yield
  finally:
    for process in busy:
      process.kill()
      process.wait()


def start(path, flags):
  """Starts a run; what it prints goes into files beside `path`."""
  env = {**os.environ, 'PYTHONPATH': ROOT}
  env.pop('XLA_FLAGS', None)
  with (open(f'{path}.out', 'w') as out, open(f'{path}.err', 'w') as err):
    return subprocess.Popen(
        [sys.executable, '-m', 'mtl_jax.main', f'--workdir={path}',
         *(f'--{k}={v}' for k, v in flags.items())],
        cwd=ROOT, env=env, stdout=out, stderr=err)


def end(path, process):
  """Waits for a run; returns the contents of its test.json."""
  try:
    code = process.wait(SECONDS)
  finally:
    process.kill()
  assert code == 0, open(f'{path}.err').read()[-2000:]
  return json.loads((path / 'test.json').read_text())


def three_times(folder, flags, loops):
  """Returns the contents of test.json of three runs."""
  paths = [folder / f'run_{i}' for i in range(TIMES)]
  if not loops:
    return [end(path, start(path, flags)) for path in paths]
  with load(loops):
    processes = [start(path, flags) for path in paths]
    return [end(*one) for one in zip(paths, processes, strict=True)]


@pytest.mark.parametrize('how', ['jit', 'pmap'])
@pytest.mark.parametrize('devices', [2, 8])
def test_two_thousand_small_steps_beside_other_work(devices, how, tmp_path):
  flags = SMALL_STEPS | {'config.parallel.cpu_devices': devices,
                         'config.parallel.compile': how}
  for result in three_times(tmp_path, flags, BUSY_LOOPS):
    assert result['checkpoint_step'] == 2000


@pytest.mark.parametrize('loops', [0, BUSY_LOOPS])
@pytest.mark.parametrize('config', RECIPES)
def test_an_epoch_of_the_recipes(config, loops, tmp_path):
  flags = {'config': config, 'config.parallel.cpu_devices': 2,
           'config.train.max_epochs': 1, 'config.validation.tasks': 20,
           'config.eval.tasks': 20, 'config.eval.baselines': False}
  for result in three_times(tmp_path, flags, loops):
    assert result['checkpoint_step'] > 0
