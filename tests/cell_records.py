"""Synthetic records of cells, with numbers whose answers are known by hand."""

import json

import numpy as np

from mtl_jax.config import base_config, set_method

TASKS, WAYS, QUERIES = 40, 5, 15
ANSWERS = WAYS * QUERIES
# method -> (validation at the end, ms per image, FLOPs per image)
METHODS = {
    'mtl': (0.62, 2., 1e9), 'anil': (0.58, 5., 1.5e9),
    'metaoptnet': (0.63, 7., 2e9), 'r2d2': (0.61, 4., 1.3e9),
    'maml': (0.57, 12., 6e9), 'meta_sgd': (0.56, 13., 6.2e9),
    'imaml': (0.55, 15., 8e9), 'minibatch_prox': (0.54, 9., 4e9),
    'protonet': (0.64, 1.5, 0.9e9), 'whole_class': (0.625, 1., 0.8e9)}


def record(method='mtl', seed=0, benchmark='glyphs', shots=5, scale='cpu',
           correct=None, **changes):
  """Returns a record; `changes` of fields such as training__seconds=8."""
  end, cost, flops = METHODS.get(method, (0.5, 3., 1e9))
  if correct is None:
    rng = np.random.default_rng([seed, shots, len(method)])
    easy = np.random.default_rng(shots).normal(0, 0.1, TASKS)
    correct = np.clip(np.rint(ANSWERS * (
        end + easy + rng.normal(0, 0.04, TASKS))), 0, ANSWERS).astype(int)
  steps, images = 2000 + 100 * shots, 200
  share = np.linspace(0.1, 1, 10)
  values = {
      'cell': {'scale': scale, 'benchmark': benchmark, 'method': method,
               'shots': shots, 'seed': seed},
      'published': None,
      'test': {
          'accuracy': float(np.mean(correct) / ANSWERS),
          'ci95': float(1.96 * np.std(np.divide(correct, ANSWERS), ddof=1)
                        / len(correct) ** 0.5),
          'head': 'own', 'ways': WAYS, 'shots': shots, 'queries': QUERIES,
          'num_tasks': len(correct), 'tasks_sha256': f'{benchmark} {shots}',
          'batch_norm': 'running', 'data': benchmark, 'split': 'test',
          'correct': [int(value) for value in correct],
          'scores': {'own': {'accuracy': 0.6, 'ci95': 0.01},
                     'untrained': {'accuracy': 0.3, 'ci95': 0.01}},
          'convergence': {}},
      'training': {
          'steps': steps, 'best_step': 1800, 'tasks_per_step': 4,
          'images_per_step': images, 'images': steps * images,
          'images_per_epoch': 40_000, 'epochs': steps * images / 40_000,
          'seconds': cost / 1000 * steps * images, 'validation_seconds': 90.,
          'flops_per_step': flops * images, 'parameters': 113_088,
          'curve': [{'step': int(steps * x),
                     'seconds': cost / 1000 * steps * images * x,
                     'validation_accuracy': float(
                         0.2 + (end - 0.2) * (1 - np.exp(-4 * x))
                         + 0.004 * np.sin(9 * x + seed)),
                     'validation_ci95': 0.01} for x in share],
          'losses': [[1, 1.6]]},
      'config': _config(method, shots),
      'provenance': {
          'commit': '0123456789abcdef', 'changed': False,
          'versions': {'jax': '0.10.2', 'numpy': '2.1.0'}, 'python': '3.11.2',
          'platform': 'Linux', 'device': 'cpu', 'devices': 2,
          'processor': 'some CPU', 'date': '2026-11-28',
          'command': f'python -m mtl_jax.main --config=glyphs_5shot:{method}',
          'settings_sha256': f'settings of {method} {benchmark} {shots}'}}
  for name, value in changes.items():
    section, _, field = name.partition('__')
    if field:
      values[section][field] = value
    else:
      values[section] = value
  return values


def write(folder, *records):
  """Writes records as reproduce.py names them; returns the folder."""
  for i, values in enumerate(records):
    path = folder / values['cell']['benchmark'] / f'{i:03d}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
  return folder


def _config(method, shots):
  c = base_config()
  set_method(c, method if method in METHODS else 'mtl', benchmark='glyphs',
             shots=5, scale='fast')
  c.method.name = method
  c.validation.shots = shots
  return json.loads(json.dumps(c.to_dict()))


def full(folder):
  """Writes ten methods, four columns, three seeds, with some missing."""
  paper = {'maml': (0.6311, 0.0092, 'Finn et al. 2017', 'CNN-4, 32 channels'),
           'protonet': (0.682, 0.0066, 'Snell et al. 2017', 'CNN-4'),
           'mtl': (0.7772, None, 'Wang et al. 2021', 'ResNet-12')}
  records, expected = [], []
  for benchmark in ('mini_imagenet', 'glyphs'):
    for shots in (1, 5):
      for method in METHODS:
        for seed in range(3):
          given = paper.get(method) if (benchmark, shots) == (
              'mini_imagenet', 5) else None
          records.append(record(
              method, seed, benchmark, shots, published=given and dict(zip(
                  ('accuracy', 'ci95', 'source', 'network'), given,
                  strict=True))))
  lost = [r for r in records if r['cell']['benchmark'] == 'mini_imagenet' and (
      r['cell']['method'] in ('imaml', 'meta_sgd') or r['cell']['seed'])]
  expected = [{**r['cell'], 'status': 'not run yet'} for r in records]
  expected += [{'scale': 'cpu', 'benchmark': 'tiered_imagenet', 'method': name,
                'shots': 5, 'seed': 0, 'status': 'data not at hand'}
               for name in METHODS]
  write(folder, *(r for r in records if r not in lost))
  (folder / 'cells.json').write_text(json.dumps(expected))
  return folder
