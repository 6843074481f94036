"""Several seeds of one config, by config.seeds.

    seed_0/ seed_1/ ..    the workdir of each seed, as that of config.seed
    seeds.md seeds.json   the table of their scores, which main.py writes
"""

import contextlib
import copy
import os
import re

from mtl_jax import files, processes
from mtl_jax.errors import UserError
from mtl_jax.run import agreement, loop, parts, workdir

TABLE = 'seeds.md', 'seeds.json'
_OF_SEED = re.compile(r'seed_\d+')


def train_and_evaluate(config, path):
  """Trains and tests a run for each of config.seeds, or resumes them.

  One after another they are, to the bit, the runs of config.seed. Side by side
  (config.parallel.seeds) they differ from these by round-off.

  Args:
    config: see config/fields.py.
    path: the workdir of all.

  Returns:
    The contents of test.json, seed by seed.

  Raises:
    UserError: what a user can mend, in one line, before anything is written.
  """
  config = agreement.check(config)
  path = files.at(path)
  configs = [of_seed(config, seed) for seed in config.seeds]
  paths = [files.at(folder) for folder in folders(config, path)]

  def check_all():
    check(path)
    for one, folder in zip(configs, paths, strict=True):
      workdir.check(folder, one)

  processes.by_leader(check_all)
  run = parts.make_run(configs[0])
  with contextlib.ExitStack() as stack:
    processes.by_leader(lambda: stack.enter_context(workdir.alone(path)))
    if config.parallel.seeds == 'together':
      return loop.side_by_side(run, configs, paths)
    results = []
    for one, folder in zip(configs, paths, strict=True):
      loop.say(one, f'Seed {one.seed}, {len(results) + 1} of {len(configs)}')
      results += loop.side_by_side(run, [one], [folder])
    return results


def folders(config, path):
  """Returns the workdir of each of config.seeds, in a workdir of all."""
  return [os.path.join(path, f'seed_{seed}') for seed in config.seeds]


def of_seed(config, seed):
  """Returns the config of one seed, as if it had been set alone."""
  one = copy.deepcopy(config)
  one.seed, one.seeds = seed, ()
  if 'recipe' in one:
    one.recipe.command_line = tuple(
        'seed' if name == 'seeds' else name
        for name in one.recipe.command_line)
  return one


def check(path):
  """Raises UserError unless a folder can be the workdir of several seeds."""
  if not path.exists():
    return
  if not path.is_dir():
    raise UserError(f'{path} is a file: --workdir must be a folder')
  if (path / workdir.CONFIG).exists():
    raise UserError(f'{path} is the workdir of a run of one seed: choose '
                    'another --workdir for config.seeds')
  names = sorted(p.name for p in path.iterdir())
  others = [name for name in names if not (
      name in (*TABLE, files.LOCK) or name.endswith('.tmp'))]
  if others and not any(map(_OF_SEED.fullmatch, names)):
    raise UserError(f'{path} holds {others[0]} and no runs of several seeds: '
                    'choose an empty or a new --workdir')
