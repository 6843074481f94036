"""The command line as a user runs it, on data and networks of test size."""

import os
import subprocess
import sys

from conftest import ROOT

TINY = {
    'config.data.name': 'glyphs/tiny', 'config.model.width': 8,
    'config.model.pool': 'global', 'config.train.shots': 2,
    'config.train.queries': 2, 'config.train.meta_batch': 2,
    'config.train.epoch_tasks': 8, 'config.train.max_epochs': 4,
    'config.optimizer.decay_epochs': 4, 'config.validation.tasks': 6,
    'config.validation.shots': 2, 'config.validation.queries': 2,
    'config.eval.tasks': 10, 'config.eval.shots': 2, 'config.eval.queries': 3,
    'config.eval.baselines': False, 'config.method.head_init': 'rows',
    'config.log.every_steps': 2,
}
CONFIG = ROOT / 'configs/quickstart.py'


def arguments(workdir, config=CONFIG, **changes):
  """Returns the flags of a tiny run; `changes` with __ for dots."""
  values = TINY | {k.replace('__', '.'): v for k, v in changes.items()}
  return [f'--config={config}', f'--workdir={workdir}',
          *(f'--{k}={v}' for k, v in values.items() if v is not None)]


def run(flags, program=('-m', 'mtl_jax.main'), env=None, **options):
  """Runs the program on one device, from the root; returns the process."""
  env = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT), **(env or {})}
  streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE} | options
  return subprocess.run(
      [sys.executable, *program, *flags], cwd=ROOT, env=env, text=True,
      timeout=300, **streams)


def snapshot(folder):
  """Returns path -> contents of all files and folders below `folder`."""
  return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
          for p in sorted(folder.rglob('*'))}
