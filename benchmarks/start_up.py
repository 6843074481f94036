"""Times a command from its start to its first step and to its end.

    python benchmarks/start_up.py [--config=quickstart] [--starts=3]
        [--config.FIELD=VALUE ..]

The first start finds no compiled program. Each later one finds those of the
start before; their medians are printed. The data set is built before. Times are
seconds from the start of the process; `imports` is a process that ends after
its imports.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
# What the log says -> the column.
SAID = {r'Starting\.': 'settled', r'step 1 ': 'first step',
        r'step \d+  validation': 'validated',
        r'Everything is in': 'end'}


def times(command, env):
  """Runs a command; returns column -> seconds."""
  found = {}
  start = time.monotonic()
  with subprocess.Popen(command, env=env, cwd=ROOT, text=True,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT) as process:
    lines = []
    for line in process.stdout:
      lines.append(line)
      for pattern, column in SAID.items():
        if re.match(pattern, line):
          found.setdefault(column, time.monotonic() - start)
  if process.returncode:
    sys.exit(''.join(lines[-5:]))
  return {'end': time.monotonic() - start, **found}


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', default='quickstart')
  parser.add_argument('--starts', type=int, default=3,
                      help='with compiled programs, after the one without')
  args, args.changes = parser.parse_known_args(argv)
  wrong = [x for x in args.changes if not x.startswith('--config.')]
  if wrong:
    parser.error(f'{wrong[0]} is unknown')
  return args


def main(argv=None):
  """Prints the table."""
  args = parse(argv)
  with tempfile.TemporaryDirectory() as folder:
    env = {name: value for name, value in os.environ.items()
           if name != 'JAX_COMPILATION_CACHE_DIR'}
    env |= {'XDG_CACHE_HOME': folder, 'PYTHONPATH': str(ROOT)}
    imports = statistics.median(
        times([sys.executable, '-c', 'import mtl_jax.main'], env)['end']
        for _ in range(max(args.starts, 1)))
    rows = [times([
        sys.executable, '-m', 'mtl_jax.main', f'--config={args.config}',
        f'--workdir={folder}/run_{i}', '--config.log.every_steps=1',
        *args.changes], env) for i in range(args.starts + 1)]
  print('| start | imports | ' + ' | '.join(SAID.values()) + ' |')
  print('|---|---|' + '---|' * len(SAID))
  for name, some in (('first', rows[:1]), ('later', rows[1:])):
    if some:
      print(f'| {name} | {imports:.1f} | ' + ' | '.join(
          f'{statistics.median(row[column] for row in some):.1f}'
          for column in SAID.values()) + ' |')


if __name__ == '__main__':
  main()
