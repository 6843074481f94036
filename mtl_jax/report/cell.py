"""The record of a finished test: what it scored, and what the training cost.

`of_run` makes one of a workdir, for each number of shots. A record is plain
JSON and holds all that a page of many runs needs, so that the workdirs
themselves need not be kept.
"""

import json

import numpy as np

from mtl_jax import files
from mtl_jax.config import to_json
from mtl_jax.errors import UserError, first_line
from mtl_jax.report import compare
from mtl_jax.run import metrics, score, workdir
from mtl_jax.train.step import steps_per_epoch

COST = 'cost.json'  # in a workdir: what was measured of its step
_LOSSES = 100  # points of the curve of losses


def of_run(path):
  """Returns the records of a workdir, one for each number of tested shots.

  Args:
    path: the workdir; seconds are those of its records, and 'flops_per_step'
      and 'parameters' those of its COST, if it has one.

  Raises:
    UserError: it holds no finished test.
  """
  test = compare.read(path)
  folder = files.at(path)
  config = workdir.saved_config(folder)
  try:
    environment = json.loads((folder / workdir.ENV).read_text())
    cost = json.loads((folder / COST).read_text()) if (
        folder / COST).exists() else {}
    training = _training(config, metrics.read(folder), environment, cost)
    training['best_step'] = test.result['checkpoint_step']
    return [_record(test, config, training, environment, shots)
            for shots in dict.fromkeys((
                test.result['shots'], *config.eval.also_shots))]
  except (OSError, ValueError, KeyError, AttributeError) as error:
    raise UserError(f'{path} holds no whole run ({type(error).__name__}: '
                    f'{first_line(error)}): test it again') from error


def _record(test, config, training, environment, shots):
  """Returns the record of one number of shots."""
  c, first = test.result, test.result['shots']
  ours = {}  # label without its shots -> accuracy of each task
  for label, accuracies in test.accuracies.items():
    name, other = score.split_label(label)
    if (other or first) == shots:
      ours[name] = label, accuracies
  label, accuracies = ours[c['head']]
  answers = c['ways'] * c['queries']
  return {
      'cell': {'scale': config.recipe.scale, 'benchmark': c['trained_on'],
               'method': c['method'], 'shots': shots, 'seed': config.seed},
      'published': None,
      'test': {
          **c['scores'][label], 'head': c['head'], 'ways': c['ways'],
          'shots': shots, 'queries': c['queries'],
          'num_tasks': c['num_tasks'],
          'tasks_sha256': c['tasks_sha256'][str(shots)],
          'batch_norm': c['batch_norm'], 'data': c['data'],
          'split': c['split'],
          'correct': np.rint(accuracies * answers).astype(int).tolist(),
          'scores': {name: c['scores'][label]
                     for name, (label, _) in ours.items()},
          'convergence': c['convergence']},
      'training': training,
      'config': json.loads(to_json(config)),
      'provenance': {
          'commit': None, 'changed': None, 'command': None, 'date': None,
          'versions': environment['packages'],
          'python': environment['python'],
          'platform': environment['platform'],
          'device': environment['devices'][0],
          'devices': len(environment['devices']),
          'processor': environment.get('processor'),
          'settings_sha256': c['training']['settings_sha256']}}


def _training(config, records, environment, cost):
  """Returns what a training took, from its records.

  Seconds are the steps at their median pace: the first record of each start has
  the compilation in it, and the next one what a stop has taken.
  """
  # An older version did not say how many tasks a step had.
  tasks = environment.get('meta_batch') or config.train.meta_batch
  images = tasks * config.train.ways * (
      config.train.shots + config.train.queries)
  steps = [r for r in records if 'tasks_per_second' in r]
  # Seeds that were trained side by side share the time.
  paces = [tasks / r['tasks_per_second'] / r.get('seeds', 1) for r in steps]
  pace = float(np.median(paces[1:] or paces)) if paces else 0.
  last = steps[-1]['step'] if steps else 0
  validations = [r for r in records if 'validation_accuracy' in r]
  epoch = steps_per_epoch(config.train.epoch_tasks, tasks)
  losses = [[r['step'], r['loss']] for r in steps]
  return {
      'steps': last, 'epochs': last / epoch, 'tasks_per_step': tasks,
      'images_per_step': images, 'images': last * images,
      'images_per_epoch': epoch * images, 'seconds': last * pace,
      'validation_seconds': sum(r['validation_seconds'] for r in validations),
      'flops_per_step': cost.get('flops_per_step'),
      'unknown_loops': cost.get('unknown_loops'),
      'parameters': cost.get('parameters'),
      'curve': [{
          'step': r['step'], 'seconds': r['step'] * pace,
          'validation_accuracy': r['validation_accuracy'],
          'validation_ci95': r['validation_ci95']} for r in validations],
      'losses': losses[::max(1, -(-len(losses) // _LOSSES))]}
