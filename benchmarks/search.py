"""Chooses settings of the recipes for two CPU cores, on validation classes.

    python benchmarks/search.py --benchmarks=glyphs,omniglot --out=results

Every method gets the same four short trials on a benchmark: three outer
learning rates, each three times the one before; then, at the best of them,
another value of one setting of its own. A trial has a share of the steps of the
recipe, its schedule included: a quarter, and on mini-ImageNet 3/32. The
trial with the best accuracy on 200 validation tasks (5-way 5-shot, by the head
that the method validates) is chosen; no test class is looked at. The recipes
then have its values (tests/test_recipes.py).

Trials are kept in OUT/search/BENCHMARK/METHOD.json and not repeated, so the
command resumes where it stopped. Steps are counted, so a busy machine chooses
the same. --minutes ends it after the trial in progress. With --config.x=y flags
one trial with these values is made for each method; it is printed, not kept.
"""

import argparse
import ast
import json
import pathlib
import tempfile
import time

from mtl_jax import algorithms, devices, files
from mtl_jax.config import load_config
from mtl_jax.errors import UserError
from mtl_jax.run import loop, metrics

ROOT = pathlib.Path(__file__).parent.parent
# benchmark -> (config, share of the recipe's epochs, channels)
BENCHMARKS = {'glyphs': ('glyphs_5shot', 1 / 4, 32),
              'omniglot': ('omniglot_5shot', 1 / 4, 32),
              'mini_imagenet': ('mini_5shot_cpu', 3 / 32, 64)}
_ADAM = 1e-3, 3e-3, 1e-2
# Meta-MinibatchProx moves by this share of the way to the adapted networks.
_SHARES = 1 / 9, 1 / 3, 1.
# method -> what its fourth trial changes; a step has as many images.
FOURTH = {
    'mtl': {'train.ways': 20, 'train.meta_batch': 8},
    'whole_class': {'optimizer.weight_decay': 2e-3},
    'anil': {'method.inner_rate': 0.5},
    'metaoptnet': {'method.scale': 10.},
    'r2d2': {'method.regulariser': 5.},
    'maml': {'method.inner_rate': 0.1},
    'meta_sgd': {'method.inner_rate': 0.1},
    'imaml': {'method.l2': 2.},
    'minibatch_prox': {'method.inner_rate': 1e-2},
    'protonet': {'train.ways': 10, 'train.meta_batch': 2},
}
# Where a step has fewer images, or an image more features, so that the inner
# loop starts at another rate.
FOURTH_OF = {
    ('mtl', 'mini_imagenet'): {'train.ways': 8, 'train.meta_batch': 8},
    ('anil', 'mini_imagenet'): {'method.inner_rate': 3e-3},
    ('maml', 'mini_imagenet'): {'method.inner_rate': 0.1},
    ('meta_sgd', 'mini_imagenet'): {'method.inner_rate': 0.01},
    ('protonet', 'mini_imagenet'): {'method.scale': 1 / 16}}


def rates_of(method):
  """Returns the outer rates of the first three trials."""
  return _SHARES if method == 'minibatch_prox' else _ADAM


def config_of(method, benchmark, changes, share=None):
  """Returns the config of a trial: one epoch with validation at its end.

  Args:
    method, benchmark: whose recipe is the start.
    changes: field -> value.
    share: of the recipe's tasks; None: that of BENCHMARKS.
  """
  name, usual, width = BENCHMARKS[benchmark]
  c = load_config(f'{ROOT}/configs/{name}.py:{method}')
  before = c.train.meta_batch
  c.model.width = width
  if benchmark == 'mini_imagenet':  # as in the trials that are kept
    c.augment.operations = 'crop', 'flip'
  c.update_from_flattened_dict(changes)
  tasks = (share or usual) * c.train.epoch_tasks * c.train.max_epochs
  # As many steps, whatever tasks they have.
  c.train.epoch_tasks = max(1, round(
      tasks / before)) * c.train.meta_batch
  c.train.max_epochs = c.optimizer.decay_epochs = 1
  c.validation.tasks, c.validation.queries = 200, 15
  c.eval.update({'split': 'validation', 'tasks': 1, 'baselines': False,
                 'heads': (c.validation.head,)})
  c.parallel.cpu_devices = 2
  c.log.every_steps, c.log.progress = 20, False
  return c


def trial(method, benchmark, changes, share=None):
  """Trains by some changes; returns the record of the trial."""
  config = config_of(method, benchmark, changes, share)
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    path = files.at(folder) / 'run'
    try:
      loop.train_and_evaluate(config, path)
    except UserError as error:
      return {'changes': changes, 'validation_accuracy': 0.,
              'failed': str(error)}
    records = metrics.read(path)
  validated = [r for r in records if 'validation_accuracy' in r]
  return {
      'changes': changes, 'steps': records[-1]['step'],
      'validation_accuracy': validated[-1]['validation_accuracy'],
      'validation_ci95': validated[-1]['validation_ci95'],
      'seconds': round(time.monotonic() - start, 1)}


def best(trials):
  """Returns the chosen trial."""
  return max(trials, key=lambda t: t['validation_accuracy'])


def wanted(method, benchmark, trials):
  """Returns the changes of the next trial, or None after the last one."""
  rates = rates_of(method)
  if len(trials) < len(rates):
    return {'optimizer.learning_rate': rates[len(trials)]}
  if len(trials) == len(rates):
    return best(trials)['changes'] | FOURTH_OF.get(
        (method, benchmark), FOURTH[method])
  return None


def search(method, benchmark, path, share, late):
  """Makes the trials of a method that are missing; returns all."""
  trials = json.loads(path.read_text()) if path.exists() else []
  while (changes := wanted(method, benchmark, trials)) and not late():
    trials.append(trial(method, benchmark, changes, share))
    print(f'{benchmark} {method} {trials[-1]}', flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(trials, indent=1) + '\n')
  return trials


def table(found):
  """Returns the lines of a Markdown table of (benchmark, method) -> trials."""
  lines = ['| benchmark | method | trials: accuracy on validation tasks '
           '| chosen |', '|---|---|---|---|']
  for (benchmark, method), trials in found.items():
    if not trials:
      continue
    text = lambda changes: ', '.join(
        f'{field.rpartition(".")[2]} {value:g}'
        for field, value in changes.items())
    tried = '; '.join(f'{text(t["changes"])}: '
                      f'{100 * t["validation_accuracy"]:.1f}' for t in trials)
    lines.append(f'| {benchmark} | {method} | {tried} | '
                 f'{text(best(trials)["changes"])} |')
  return '\n'.join(lines)


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--benchmarks', default='glyphs,omniglot,mini_imagenet')
  parser.add_argument('--methods', default=','.join(algorithms.METHODS))
  parser.add_argument('--minutes', type=float, default=float('inf'))
  parser.add_argument('--share', type=float, default=None,
                      help='of the steps of a recipe, in a trial')
  parser.add_argument('--out', default='results', type=pathlib.Path)
  args, more = parser.parse_known_args(argv)
  for benchmark in args.benchmarks.split(','):
    if benchmark not in BENCHMARKS:
      parser.error(f'--benchmarks: {benchmark} is none of '
                   + ', '.join(BENCHMARKS))
  args.changes = {}
  for flag in more:
    name, _, value = flag.partition('=')
    if not name.startswith('--config.') or not value:
      parser.error(f'{flag} is unknown')
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      pass  # a text
    args.changes[name.removeprefix('--config.')] = value
  return args


def main(argv=None):
  """Makes the trials that are missing and prints the table."""
  args = parse(argv)
  devices.split_cpu(2)
  start = time.monotonic()
  late = lambda: time.monotonic() - start > 60 * args.minutes
  found = {}
  for benchmark in args.benchmarks.split(','):
    for method in args.methods.split(','):
      if args.changes:
        print(f'{benchmark} {method} '
              f'{trial(method, benchmark, args.changes, args.share)}')
        continue
      path = args.out / 'search' / benchmark / f'{method}.json'
      found[benchmark, method] = search(method, benchmark, path, args.share,
                                        late)
  if found:
    print(table(found))


if __name__ == '__main__':
  main()
