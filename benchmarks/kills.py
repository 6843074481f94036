"""Ends runs at random moments, starts them again, and compares what is left.

    python benchmarks/kills.py --kills=100 --folder=kills

Each round trains a tiny run of a method twice: once without a break, and once
ended by SIGKILL, SIGTERM or SIGINT at random moments and started again by the
same command until it is finished. Every other round has two processes, of which
one gets the signal. Counts as wrong: other parameters than those of the
uninterrupted run, to the bit; another score; an exit code that no signal has; a
traceback. The exit code is 1 then. (When the run is finished and Python ends,
its own handlers are gone: a signal then ends the process by itself.) Finished
rounds are kept in FOLDER and not repeated.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from mtl_jax import files
from mtl_jax.run import build, checkpoint, parts, workdir

ROOT = pathlib.Path(__file__).parents[1]
METHODS = 'mtl', 'anil', 'metaoptnet', 'protonet'
SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
# What a process may end with: its own signal, or that another one is gone.
CODES = {0, 75, 76, 130, -signal.SIGKILL, 128 + signal.SIGKILL}
LATE = {-signal.SIGINT, -signal.SIGTERM}  # of a process that is finished
FIELDS = {
    'data.name': 'glyphs/tiny', 'model.width': 8, 'train.ways': 5,
    'train.shots': 2, 'train.queries': 2, 'train.meta_batch': 2,
    'train.epoch_tasks': 80, 'train.max_epochs': 4, 'train.save_minutes': 0.01,
    'optimizer.decay_epochs': 4, 'validation.tasks': 8, 'validation.shots': 2,
    'eval.tasks': 8, 'eval.shots': 2, 'eval.baselines': False,
    'log.every_steps': 5, 'parallel.devices': 0}


def command(method, path, processes):
  """Returns the command of a run."""
  flags = [f'--config=glyphs_5shot:{method}', f'--workdir={path}',
           *(f'--config.{name}={value}' for name, value in FIELDS.items())]
  if processes == 1:
    return [sys.executable, '-m', 'mtl_jax.main', *flags]
  return [sys.executable, '-m', 'launch.local', f'--processes={processes}',
          '--', *flags, '--peer_timeout=20']


def start(line, log):
  """Starts a command in a session of its own; what it prints goes to a file."""
  with open(log, 'ab') as file:
    return subprocess.Popen(line, cwd=ROOT, stdout=file, stderr=file,
                            start_new_session=True,
                            env={**os.environ, 'JAX_PLATFORMS': 'cpu'})


def children(process):
  """Returns the numbers of the processes that a launcher has started."""
  path = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
  return [int(number) for number in path.read_text().split()]


def end(process, processes, rng):
  """Sends a signal to the run, or to one process of it; returns its name."""
  number = rng.choice(SIGNALS)
  try:
    target = rng.choice(children(process)) if processes > 1 else process.pid
    os.kill(target, number)
  except (OSError, IndexError):  # it has ended, or not begun
    return None
  return number.name


def interrupted(line, processes, path, seconds, rng, most):
  """Runs a command until it is finished, ended again and again.

  Args:
    line: the command.
    processes: how many it starts.
    path: its workdir; what it prints goes to a file beside it.
    seconds: that the uninterrupted run took.
    rng: random.Random.
    most: how often to end it.

  Returns:
    The names of the signals, and what was wrong.
  """
  signals, wrong, log = [], [], path.with_suffix('.log')
  while True:
    process, sent = start(line, log), None
    if len(signals) < most:
      try:
        process.wait(rng.uniform(0.3, 1) * seconds)
      except subprocess.TimeoutExpired:
        sent = end(process, processes, rng)
    signals += [sent] if sent else []
    try:
      code = process.wait(300)
    except subprocess.TimeoutExpired:
      process.kill()
      return signals, [*wrong, f'hangs after {sent}']
    late = code in LATE and (path / 'test.json').exists()
    if not late and code not in CODES or (code and not sent):
      wrong.append(f'exit code {code} after {sent}')
      return signals, wrong
    if not code:
      break
  if b'Traceback' in pathlib.Path(log).read_bytes():
    wrong.append('a traceback')
  return signals, wrong


def state(path):
  """Returns the leaves of the last state of a run, and its score."""
  path = files.at(path)
  config = workdir.read_config(path)
  run = parts.make_run(config)
  like = build.initial_state(config, run.algorithm,
                             run.splits['train'].images.shape[1:])
  last = checkpoint.restore(checkpoint.manager(path, 'latest'), like)
  return [np.asarray(x) for x in jax.tree.leaves(last)], json.loads(
      (path / 'test.json').read_text())['accuracy']


def one_round(number, folder, most, seed):
  """Returns the record of a round, which it keeps in a file."""
  record = folder / f'round_{number}.json'
  if record.exists():
    return json.loads(record.read_text())
  method, processes = METHODS[number // 2 % len(METHODS)], 1 + number % 2
  rng = random.Random(f'{seed} {number}')
  whole = folder / f'whole_{method}_{processes}'
  took = folder / f'{whole.name}.seconds'
  if not took.exists():
    for _ in range(2):  # the second start finds its programs compiled
      subprocess.run(['rm', '-rf', whole], check=True)
      began = time.monotonic()
      code = start(command(method, whole, processes),
                   folder / f'{whole.name}.log').wait()
      if code:
        sys.exit(f'the run without a break ended with {code}: see '
                 f'{folder / whole.name}.log')
    took.write_text(str(time.monotonic() - began))
  path = folder / f'round_{number}'
  signals, wrong = interrupted(
      command(method, path, processes), processes, path,
      float(took.read_text()), rng, most)
  if not wrong:
    (ours, score), (theirs, whole_score) = state(path), state(whole)
    if score != whole_score or not all(
        map(np.array_equal, ours, theirs)):
      wrong.append('other parameters or another score')
  result = {'method': method, 'processes': processes, 'signals': signals,
            'wrong': wrong}
  files.write(record, json.dumps(result))
  return result


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=100, metavar='N')
  parser.add_argument('--a_round', type=int, default=10, metavar='N',
                      help='how often a run is ended at most')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--folder', type=pathlib.Path, default=None)
  return parser.parse_args(argv)


def main(argv=None):
  """Runs rounds until there were enough signals; returns the exit code."""
  args = parse(argv)
  # A shell starts what is in its background with Ctrl-C ignored, which the runs
  # would inherit.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  folder = (args.folder or pathlib.Path(tempfile.mkdtemp())).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  counts, wrong, number = collections.Counter(), [], 0
  while sum(counts.values()) < args.kills and not wrong:
    left = args.kills - sum(counts.values())
    found = one_round(number, folder, min(left, args.a_round), args.seed)
    counts.update((found['processes'], name) for name in found['signals'])
    wrong += [f'round {number}: {text}' for text in found['wrong']]
    print(f'round {number}: {found["method"]}, {found["processes"]} processes, '
          f'{", ".join(found["signals"]) or "no signal"}: '
          + ('; '.join(found['wrong']) or 'as without a break'), flush=True)
    number += 1
  print('\n| processes | ' + ' | '.join(x.name for x in SIGNALS) + ' |\n|---|'
        + '---|' * len(SIGNALS))
  for processes in (1, 2):
    print(f'| {processes} | ' + ' | '.join(
        str(counts[processes, x.name]) for x in SIGNALS) + ' |')
  print('\n'.join(wrong) or f'{sum(counts.values())} times ended, all as '
        'without a break')
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
