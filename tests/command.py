"""The command line as a user runs it, on data and networks of test size."""

import json
import os
import subprocess
import sys

from conftest import FAST_COMPILES, ROOT

TINY = {
    'config.data.name': 'glyphs/tiny', 'config.model.width': 8,
    'config.model.pool': 'global', 'config.train.ways': 5,
    'config.optimizer.learning_rate': 3e-3,
    'config.train.shots': 2,
    'config.train.queries': 2, 'config.train.meta_batch': 2,
    'config.train.epoch_tasks': 8, 'config.train.max_epochs': 4,
    'config.optimizer.decay_epochs': 6, 'config.validation.tasks': 6,
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


def run(flags, program=('-m', 'mtl_jax.main'), env=None, cwd=ROOT,
        timeout=300, **options):
  """Runs the program on one device; returns the process."""
  env = {**os.environ, 'XLA_FLAGS': FAST_COMPILES, 'PYTHONPATH': str(ROOT),
         **(env or {})}
  streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE} | options
  return subprocess.run(
      [sys.executable, *program, *flags], cwd=cwd, env=env, text=True,
      timeout=timeout, **streams)


def run_each(many, module='mtl_jax.main', **options):
  """Runs main of a module with each list of flags, one after another.

  One process imports the libraries and forks before jax starts anything:
  imports, and the end of an interpreter, take longer than what a wrong flag
  gets.

  Returns:
    the results of the processes.
  """
  found = run([module, *map(json.dumps, many)], ('-c', FORKS), **options)
  assert found.returncode == 0, found.stderr
  return [subprocess.CompletedProcess(flags, *result) for flags, result in zip(
      many, json.loads(found.stdout), strict=True)]


FORKS = """
import importlib, json, os, sys, tempfile
module, *many = sys.argv[1:]
main = importlib.import_module(module)
results = []
for flags in many:
  outputs = [tempfile.TemporaryFile('w+') for _ in range(2)]
  child = os.fork()
  if not child:
    for number, output in enumerate(outputs, 1):
      os.dup2(output.fileno(), number)
    sys.argv[1:] = json.loads(flags)
    code = main.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  for output in outputs:
    output.seek(0)
  results.append([status, *(output.read() for output in outputs)])
print(json.dumps(results))
"""


def snapshot(folder):
  """Returns path -> contents of all files and folders below `folder`."""
  return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
          for p in sorted(folder.rglob('*'))}
