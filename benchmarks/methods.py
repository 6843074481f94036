"""Trains every method on a small benchmark and prints the table of results.

    python benchmarks/methods.py --data=omniglot --out=runs/methods

One command line of `mtl_jax.main` per method, one after another: the same
CNN-4, the same initial backbone, the same test tasks; settings are the
methods' own for the benchmark (RECIPES in mtl_jax/algorithms). Any further
flag `--config.field=value` goes to every run. A method that is done is not
run again, so the command resumes where it stopped. The columns are

  accuracy     of the method's own adaptation to unseen classes, 95% interval
  untrained    the same adaptation from the initial values
  gain         paired difference of the two over the tasks
  logistic     a logistic head on the frozen features, running statistics
  step         median milliseconds of a meta-step
  memory       peak of the process, MiB
  minutes      from command to files
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np

from mtl_jax import algorithms
from mtl_jax.evaluate import interval

ROOT = pathlib.Path(__file__).parent.parent
# (config, scale of its recipes)
CONFIGS = {'omniglot': ('omniglot_5shot', 'cpu'),
           'glyphs': ('quickstart', 'fast')}
HEADS = {'own': "('own','logistic')", 'logistic': "('logistic',)"}


def flags_of(method, path, args):
  """Returns the flags of mtl_jax.main for the run of a method."""
  config, scale = CONFIGS[args.data]
  recipe = algorithms.recipe(method, args.data, 5, scale)
  own = recipe.overrides.get('validation.head')
  return [f'--config={ROOT}/configs/{config}.py:{method}',
          f'--workdir={path}', f'--config.model.width={args.width}',
          f'--config.seed={args.seed}', '--config.eval.tasks=1000',
          '--config.validation.tasks=100', '--config.validation.queries=10',
          f'--config.eval.heads={HEADS["own" if own else "logistic"]}',
          '--config.parallel.cpu_devices=2', '--config.log.every_steps=20',
          *args.changes]


def train(method, path, args):
  """Runs one method into `path`; writes cost.json after the run's files."""
  start = time.monotonic()
  process = subprocess.Popen(
      [sys.executable, '-m', 'mtl_jax.main', *flags_of(method, path, args)],
      cwd=ROOT)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f'{method} failed: status {status}')
  (path / 'cost.json').write_text(json.dumps({
      'minutes': (time.monotonic() - start) / 60,
      'memory': usage.ru_maxrss / 1024}))


def row(path):
  """Returns the numbers of a finished run."""
  test = json.loads((path / 'test.json').read_text())
  cost = json.loads((path / 'cost.json').read_text())
  config = json.loads((path / 'config.json').read_text())
  records = [json.loads(line) for line in
             (path / 'metrics.jsonl').read_text().splitlines()]
  tasks = np.load(path / 'tasks.npz')
  # The first record has the compilation in it.
  rates = [r['tasks_per_second'] for r in records
           if 'tasks_per_second' in r][1:]
  scores = test['scores']
  return {
      'accuracy': scores[test['head']], 'untrained': scores['untrained'],
      'gain': interval.difference(tasks[test['head']], tasks['untrained']),
      'logistic': scores['logistic'], 'raw_pixels': scores['raw_pixels'],
      'step': 1e3 * config['train']['meta_batch'] / statistics.median(rates),
      'meta_batch': config['train']['meta_batch'],
      'steps': records[-1]['step'], 'batch_norm': test['batch_norm'], **cost}


def table(rows):
  """Returns the lines of a Markdown table."""
  text = lambda s: f'{100 * s["accuracy"]:.2f} +- {100 * s["ci95"]:.2f}'
  lines = ['| method | accuracy | untrained | gain | logistic head '
           '| BatchNorm | steps x tasks | ms per step | MiB | minutes |',
           '|---' * 10 + '|']
  for method, r in rows.items():
    lines.append(
        f'| {method} | {text(r["accuracy"])} | {text(r["untrained"])} '
        f'| {text(r["gain"])} | {text(r["logistic"])} | {r["batch_norm"]} '
        f'| {r["steps"]} x {r["meta_batch"]} | {r["step"]:.0f} '
        f'| {r["memory"]:.0f} | {r["minutes"]:.1f} |')
  raw = next(iter(rows.values()))['raw_pixels']
  return '\n'.join([*lines, '', f'Raw pixels, logistic head: {text(raw)}.'])


def parse(argv=None):
  """Returns the flags; `changes` are those for the runs."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', default='omniglot', choices=CONFIGS)
  parser.add_argument('--out', default='runs/methods', type=pathlib.Path)
  parser.add_argument('--methods', default=','.join(algorithms.METHODS))
  parser.add_argument('--width', default=32, type=int, help='channels')
  parser.add_argument('--seed', default=0, type=int)
  args, args.changes = parser.parse_known_args(argv)
  for flag in args.changes:
    if not flag.startswith('--config.'):
      parser.error(f'{flag} is unknown')
  return args


def main(argv=None):
  """Trains what is missing, prints the table and says what failed."""
  args = parse(argv)
  rows = {}
  for method in args.methods.split(','):
    path = args.out.absolute() / args.data / method
    if not (path / 'cost.json').exists():
      path.parent.mkdir(parents=True, exist_ok=True)
      train(method, path, args)
    rows[method] = row(path)
  (args.out / f'{args.data}.json').write_text(json.dumps(rows, indent=2))
  print(table(rows))
  for method, r in rows.items():
    if 100 * (r['gain']['accuracy'] - r['gain']['ci95']) < 10:
      print(f'{method}: less than 10 points above its untrained start')
    if r['accuracy']['accuracy'] < r['raw_pixels']['accuracy']:
      print(f'{method}: below raw pixels')


if __name__ == '__main__':
  main()
