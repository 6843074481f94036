"""Tasks as files, so that other programs can be tested on the same tasks.

    {"data": .., "split": .., "tests": [
      {"ways": 5, "shots": 1, "queries": 15, "tasks": [
        [{"class": "n01930112",
          "support": ["n0193011200000003.jpg"], "query": [..]}, ..], ..]}]}

An image is named by its published file. Where the data set has no file names,
it is named by its number within its class.
"""

import json

import numpy as np

from mtl_jax import files
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError, first_line

_FIELD = 'config.eval.read_episodes'


def to_json(store, protocols, image_ids, directory=None):
  """Returns the tasks of protocols as text.

  Args:
    store: the split.
    protocols: with `ways`, `shots` and `queries`.
    image_ids: for each protocol the images of its tasks, int [T, N, K + Q].
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

  Args:
    path: the file.
    store, protocols, directory: as in `to_json`.

  Raises:
    UserError: the file cannot be read, or is of another data set, or has no
      such tasks.
  """
  try:
    content = json.loads(files.at(path).read_text())
    split = (content['data'], content['split'])
    tests = {(t['ways'], t['shots'], t['queries']): t['tasks']
             for t in content['tests']}
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(f'{_FIELD}: {path} cannot be read ({first_line(error)}): '
                    'it must be a test_episodes.json that '
                    'config.eval.write_episodes wrote') from error
  if split != (store.name, store.split):
    raise UserError(f'{_FIELD}: {path} has tasks of '
                    f'{"/".join(map(str, split))}, not of '
                    f'{store.name}/{store.split}: name a file of this split')
  numbers = _image_numbers(store, directory)
  image_ids = []
  for p in protocols:
    wanted = (p.ways, p.shots, p.queries)
    if wanted not in tests:
      raise UserError(
          f'{_FIELD}: {path} has tasks of (ways, shots, queries) '
          f'{", ".join(map(str, tests))}, not of {wanted}: set '
          'config.eval.ways, shots and queries to those of the file')
    if not tests[wanted]:
      raise UserError(f'{_FIELD}: {path} has no tasks of (ways, shots, '
                      f'queries) {wanted}: there must be at least one')
    try:
      image_ids.append(_image_ids(tests[wanted], wanted, numbers))
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(f'{_FIELD}: {path} has an image or class that '
                      f'{store.name} does not have, or twice, or a task of '
                      f'another size ({first_line(error)}): write the file '
                      'again with config.eval.write_episodes') from error
  return image_ids


def _image_numbers(store, directory):
  """Returns (class, image name) -> number of the image in the store."""
  names = stores.image_names(store, directory)
  return {(name, names[i]): i for m, name in enumerate(store.class_names)
          for i in range(store.offsets[m], store.offsets[m + 1])}


def _image_ids(tasks, size, numbers):
  """Returns the images of tasks, int [T, N, K + Q].

  Args:
    tasks: as in the file.
    size: (N, K, Q), which every task must have.
    numbers: of `_image_numbers`.

  Raises:
    KeyError, TypeError, ValueError: an unknown image, another size, or a class
      or image twice in a task.
  """
  for task in tasks:
    for c in task:
      own_size = len(task), len(c['support']), len(c['query'])
      if own_size != size:
        ways, shots, queries = own_size
        raise ValueError(f'{ways} ways, {shots} shots, {queries} queries')
    if len({c['class'] for c in task}) < len(task):
      raise ValueError('a class twice in a task')
  ids = np.array([
      [[numbers[c['class'], name] for name in c['support'] + c['query']]
       for c in task] for task in tasks], np.int32)
  # Classes differ, so an image that a task has twice is twice in its class.
  if (np.diff(np.sort(ids)) == 0).any():
    raise ValueError('an image twice in a task')
  return ids
