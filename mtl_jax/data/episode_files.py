"""Tasks as files, so that other programs can be tested on the same ones.

    {"data": .., "split": .., "tests": [
      {"ways": 5, "shots": 1, "queries": 15, "tasks": [
        [{"class": "n01930112",
          "support": ["n0193011200000003.jpg"], "query": [..]}, ..], ..]}]}

An image has the name of its published file, or its number within its class
where the data set has no file names.
"""

import json

import numpy as np
from etils import epath

from mtl_jax.data import store as stores
from mtl_jax.errors import UserError, first_line


def to_json(store, protocols, image_ids, directory=None):
  """Returns the tasks of some protocols as text.

  Args:
    store: the split.
    protocols: with `ways`, `shots` and `queries`.
    image_ids: for each protocol int [T, N, K + Q].
    directory: TFDS data_dir of the store.
  """
  names = stores.image_names(store, directory)
  of_image = np.searchsorted(store.offsets, np.arange(len(store.images)),
                             'right') - 1

  def of_class(ids, shots):
    return {'class': store.class_names[of_image[ids[0]]],
            'support': [names[i] for i in ids[:shots]],
            'query': [names[i] for i in ids[shots:]]}

  return json.dumps({
      'data': store.name, 'split': store.split,
      'tests': [{'ways': p.ways, 'shots': p.shots, 'queries': p.queries,
                 'tasks': [[of_class(ids, p.shots) for ids in task]
                           for task in tasks]}
                for p, tasks in zip(protocols, image_ids, strict=True)]})


def read(path, store, protocols, directory=None):
  """Reads what `to_json` wrote: for each protocol int [T, N, K + Q].

  Raises:
    UserError: unreadable, of another data set, or without such tasks.
  """
  try:
    content = json.loads(epath.Path(path).read_text())
    source = (content['data'], content['split'])
    tests = {(t['ways'], t['shots'], t['queries']): t['tasks']
             for t in content['tests']}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f'config.eval.read_episodes: {path} cannot be read '
                    f'({first_line(error)}): it must be a test_episodes.json '
                    'that config.eval.write_episodes wrote') from error
  if source != (store.name, store.split):
    raise UserError(f'config.eval.read_episodes: {path} has tasks of '
                    f'{"/".join(map(str, source))}, not of '
                    f'{store.name}/{store.split}')
  numbers = {}
  names = stores.image_names(store, directory)
  for m, name in enumerate(store.class_names):
    for i in range(store.offsets[m], store.offsets[m + 1]):
      numbers[name, names[i]] = i
  ids = []
  for p in protocols:
    wanted = (p.ways, p.shots, p.queries)
    if wanted not in tests:
      raise UserError(
          f'config.eval.read_episodes: {path} has tasks of (ways, shots, '
          f'queries) {", ".join(map(str, tests))}, not of {wanted}')
    try:
      for task in tests[wanted]:
        for c in task:
          if (len(task), len(c['support']), len(c['query'])) != wanted:
            raise ValueError(f'{len(task)} ways, {len(c["support"])} shots, '
                             f'{len(c["query"])} queries')
      ids.append(np.array([
          [[numbers[c['class'], name] for name in c['support'] + c['query']]
           for c in task] for task in tests[wanted]], np.int32))
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(f'config.eval.read_episodes: {path} has an image or '
                      f'class that {store.name} does not have, or a task of '
                      f'another size ({first_line(error)})') from error
  return ids
