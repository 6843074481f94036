"""Starts tiny runs with random overrides of the config's fields.

    python benchmarks/fuzz_config.py --cases=500 --seed=0

Every case must end in one of these ways:

  run       exit code 0, nothing on stderr, the files of a test
  refused   exit code 2, one line on stderr, nothing was written
  stopped   the same line after training has begun; the case is printed
  long      it trains when the limit ends it; the case is printed

All else is a fault: a traceback, a line too many, files left behind, an end of
the process, or no answer within the limit. It prints the counts and each
fault's command, and exits with 1 if there is a fault.

Cases call the command's own `main` in a few processes that live long, as a
process takes seconds to start; `--processes` says how many of the cases get a
process of their own instead.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from unittest import mock

import jax

from mtl_jax import fields
from mtl_jax import main as command
from mtl_jax.config import load_config
from mtl_jax.config.fields import FIELDS

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / 'configs/glyphs_5shot.py'
# Every case has them, so that a run is over in seconds.
TINY = {
    'data.name': 'glyphs/tiny', 'model.width': 8, 'train.meta_batch': 2,
    'train.ways': 5, 'train.shots': 2, 'train.queries': 2,
    'train.epoch_tasks': 4,
    'train.max_epochs': 1, 'validation.tasks': 4, 'validation.shots': 2,
    'validation.queries': 2, 'eval.tasks': 4, 'eval.shots': 2,
    'eval.queries': 2,
    'eval.baselines': False, 'log.every_steps': 1,
    'parallel.cpu_devices': 0,
}
METHODS = (*['mtl'] * 27, 'anil', 'imaml', 'maml', 'meta_sgd', 'metaoptnet',
           'minibatch_prox', 'protonet', 'r2d2', 'whole_class')
# Texts that most fields of a type take; of tuples, items.
PLAUSIBLE = {
    int: ('0', '1', '2', '3', '5', '6'),
    float: ('0', '0.5', '1', '3', '1e-3', '1e3', '1e-30', '1e30'),
    bool: ('true', 'false'),
    str: ('', 'own', 'tune_all', 'logistic', 'svm', 'glyphs', 'conv4',
          'bfloat16'),
    tuple: ('1', '2', '0.5', "'crop'", "'flip'", "'own'", "'svm'", "'ridge'",
            "'logistic'", "'centroid'", "'gradient'", "'tune_all'"),
}
NUMBERS = ('7', '20', '-1', '-7', '-0.5', '100', '-0.0', '1e-30', '1e30', '1e3')
HUGE = ('2147483647', '2147483648', '4294967296', '9' * 40, '1e308', '1e999',
        '-1e999', '1e-320', '1000000')
ODD = ('', ' ', 'None', 'nan', 'inf', '-inf', 'NaN', 't', 'yes', '0x10', '1_0',
       '1j', "b'x'", "'", '"', '\n', 'a\nb', '--', '=', 'é', '日本', '🙂',
       '\udcff', '~', '~/x', '/', '.', '..', '/dev/null', '/none/x', 'x.py',
       'none.json', 'x' * 5000, '%s', '{}', '{1: 2}', 'set()', 'lambda: 0',
       '$HOME', '٣', '(', ')', '[[', '...')
ITEMS = ('0', '-1', '1e999', 'nan', "'a'", "''", 'None', 'True', '(1,)', "'é'",
         "'jitter'", '2147483648')


def fields_of(method):
  """Returns field -> default of the config of a method, all sections."""
  def flat(section, prefix=''):
    for name in section:
      if hasattr(section[name], 'keys'):
        yield from flat(section[name], f'{prefix}{name}.')
      else:
        yield prefix + name, section[name]
  return dict(flat(load_config(f'{CONFIG}:{method}')))


def plausible(rng, name, default):
  """Returns a text of the field's type, mostly of its range."""
  declared = dict(fields.flat(FIELDS)).get(name)
  if isinstance(default, tuple):
    return tuple_of(rng, PLAUSIBLE[tuple])
  if declared and type(declared.allowed) is tuple:  # and not a Range
    return rng.choice(list(map(str, declared.allowed)))
  return rng.choice([str(default), *PLAUSIBLE.get(type(default), ('1', '2'))])


def tuple_of(rng, items):
  """Returns a text of up to three items, in one of the ways to write them."""
  items = [rng.choice(items) for _ in range(rng.randint(0, 3))]
  return rng.choice(('({},)', '[{}]', '{}', '({})')).format(','.join(items))


def value_of(rng, name, default):
  """Returns a random text for a field."""
  kind = rng.choices(('plausible', 'number', 'huge', 'odd', 'tuple'),
                     (60, 10, 10, 14, 6))[0]
  if kind == 'plausible':
    return plausible(rng, name, default)
  if kind == 'tuple':
    return tuple_of(rng, ITEMS)
  return rng.choice({'number': NUMBERS, 'huge': HUGE, 'odd': ODD}[kind])


def case(seed, number):
  """Returns (config file and method, field -> text) of a case."""
  rng = random.Random(f'{seed} {number}')
  method = rng.choice(METHODS)
  defaults = fields_of(method)
  # All refuse whatever is given for these.
  names = [name for name in sorted(defaults)
           if not name.startswith('recipe.') or rng.random() < 0.2]
  names = rng.sample(names, rng.choices((1, 2, 3), (50, 30, 20))[0])
  return f'{CONFIG}:{method}', {
      name: value_of(rng, name, defaults[name]) for name in names}


def flags_of(config, changes, workdir):
  """Returns the command line of a case."""
  return [f'--config={config}', f'--workdir={workdir}',
          *(f'--config.{name}={value}' for name, value in TINY.items()
            if name not in changes),
          *(f'--config.{name}={value}' for name, value in changes.items())]


def limit_memory(gigabytes):
  """Lets an allocation that is too large fail, and not end other processes."""
  resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)


def call_here(given, folder):
  """Calls main in this process; returns the exit code."""
  with (open(folder / 'out', 'a') as out,
        open(folder / 'err', 'a', errors='backslashreplace') as err,
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        contextlib.chdir(folder / 'home'),
        mock.patch.dict(os.environ, {'HOME': str(folder / 'home')})):
    try:
      return command.main(['main', *given])
    except BaseException:  # what would end a process of its own
      traceback.print_exc()
      return 1


def serve(pipe, gigabytes):
  """Calls main with the flags that come through the pipe, until it closes."""
  limit_memory(gigabytes)
  # A process of its own has the number of devices that its flags ask for.
  warnings.filterwarnings('ignore', message='config.parallel.cpu_devices')
  while True:
    try:
      given, folder = pipe.recv()
    except EOFError:
      return
    for stream, name in ((1, 'out'), (2, 'err')):  # of libraries in C++
      with open(folder / name, 'ab') as file:
        os.dup2(file.fileno(), stream)
    pipe.send(call_here(given, folder))
    jax.clear_caches()


class Worker:
  """A process that calls main, which is started anew when it has died."""

  def __init__(self, args):
    self._args, self._process, self._calls = args, None, 0

  def _start(self):
    context = multiprocessing.get_context('spawn')
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
        target=serve, args=(theirs, self._args.memory), daemon=True)
    self._process.start()
    theirs.close()
    self._calls = 0

  def call(self, given, folder):
    """Returns the exit code; None: the limit ended it."""
    if self._process is None:
      self._start()
    self._pipe.send((given, folder))
    self._calls += 1
    # The first call also waits for the imports.
    code = None
    if self._pipe.poll(self._args.limit + 60 * (self._calls == 1)):
      try:
        code = self._pipe.recv()
      except EOFError:
        self._process.join()
        code = self._process.exitcode
    if code is None or code < 0 or self._calls >= self._args.calls:
      self.end()
    return code

  def end(self):
    """Ends the process."""
    if self._process is not None:
      self._process.kill()
      self._process.join()
      self._process = None


def call_alone(given, folder, args):
  """Runs a case in a process of its own; returns the exit code or None."""
  with open(folder / 'out', 'wb') as out, open(folder / 'err', 'wb') as err:
    try:
      return subprocess.run(
          [sys.executable, '-m', 'mtl_jax.main', *given], stdout=out,
          stderr=err, cwd=folder / 'home', timeout=args.limit + 60,
          env={**os.environ, 'HOME': str(folder / 'home'),
               'MPLCONFIGDIR': args.out},
          preexec_fn=lambda: limit_memory(args.memory)).returncode
    except subprocess.TimeoutExpired:
      return None


def outcome(code, folder):
  """Returns (kind, what is wrong or was said) of a case that has ended."""
  out = (folder / 'out').read_text(errors='replace')
  err = (folder / 'err').read_text(errors='replace')
  left = [str(p.relative_to(folder)) for p in folder.rglob('*')
          if p.name not in ('out', 'err', 'home')]
  began = 'Starting.' in out
  lines = err.strip().splitlines()
  if code is None:
    return ('long' if began and not err else 'fault'), f'no end; {err[-300:]}'
  if code == 0:
    return ran(folder, err)
  if code != 2:
    return 'fault', f'exit code {code}: ' + '\n'.join(lines[-3:])
  if len(lines) != 1 or not err.startswith('mtl_jax: '):
    return 'fault', f'not one line: {err[-600:]}'
  if began and not any(name.endswith('.tmp') for name in left):
    return 'stopped', lines[0]
  if left:
    return 'fault', f'left {left[:4]}: {lines[0]}'
  return 'refused', lines[0]


def ran(folder, err):
  """Returns the outcome of exit code 0."""
  def refuse(constant):
    raise ValueError(f'{constant} is no JSON')
  try:
    for name in ('test.json', 'config.json', 'data.json', 'env.json'):
      json.loads((folder / 'run' / name).read_text(), parse_constant=refuse)
    for line in (folder / 'run/metrics.jsonl').read_text().splitlines():
      json.loads(line, parse_constant=refuse)
  except (OSError, ValueError) as error:
    return 'fault', f'exit code 0, but {error}'
  return ('fault', f'said {err[-600:]}') if err else ('run', '')


def run_case(number, args, call):
  """Runs a case; returns (kind, text, its command)."""
  folder = pathlib.Path(tempfile.mkdtemp(dir=args.out))
  (folder / 'home').mkdir()
  config, changes = case(args.seed, number)
  given = flags_of(config, changes, folder / 'run')
  try:
    kind, text = outcome(call(given, folder), folder)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  return kind, text, in_ascii(flags_of(config, changes, 'RUN'))


def in_ascii(given):
  """Returns the flags as one line that every terminal can show."""
  return shlex.join(given).encode('ascii', 'backslashreplace').decode(
      ).replace('\n', '\\n')


def report(number, kind, text, shown, counts, show):
  """Counts a case; prints it, unless it ended well and `show` is False."""
  counts[kind] += 1
  if show or kind not in ('run', 'refused'):
    print(f'{kind} {number}: {shown}\n    {text}', flush=True)
  elif sum(counts.values()) % 50 == 0:
    print(dict(counts), flush=True)


def work(numbers, args, counts, call=None):
  """Runs the cases whose numbers are left, one after another.

  Args:
    numbers: deque of numbers of cases.
    args: of the command line.
    counts: Counter of the kinds of outcomes.
    call: (flags, folder) -> exit code; None: in a Worker, and the first
      args.processes cases in processes of their own.
  """
  worker = Worker(args)
  while numbers:
    try:
      number = numbers.popleft()
    except IndexError:  # another thread has taken the last one
      break
    if call is not None:
      chosen = call
    elif number < args.processes:
      chosen = lambda given, folder: call_alone(given, folder, args)
    else:
      chosen = worker.call
    report(number, *run_case(number, args, chosen), counts, args.show)
  worker.end()


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--cases', type=int, default=500)
  parser.add_argument('--processes', type=int, default=40)
  parser.add_argument('--workers', type=int, default=2,
                      help='0: in this process')
  parser.add_argument('--calls', type=int, default=60,
                      help='cases of a worker before it is started anew')
  parser.add_argument('--limit', type=float, default=120, help='seconds')
  parser.add_argument('--memory', type=float, default=6, help='GiB')
  parser.add_argument('--show', action='store_true', help='all cases')
  parser.add_argument('--only', type=int, nargs='*', help='numbers of cases')
  return parser.parse_args(argv)


def main(argv=None):
  """Runs all cases; returns 1 if there is a fault."""
  args = parse(argv)
  numbers = collections.deque(
      range(args.cases) if args.only is None else args.only)
  counts = collections.Counter()
  with tempfile.TemporaryDirectory() as args.out:
    if not args.workers:
      work(numbers, args, counts, call_here)
    threads = [threading.Thread(target=work, args=(numbers, args, counts))
               for _ in range(args.workers)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  print(f'seed {args.seed}: {sum(counts.values())} cases, '
        + ', '.join(f'{counts[kind]} {kind}' for kind in (
            'run', 'refused', 'stopped', 'long', 'fault')))
  return int(counts['fault'] > 0)


if __name__ == '__main__':
  sys.exit(main())
