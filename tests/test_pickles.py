"""mini-ImageNet: what a pickle may ask for. Hostile ones run and break nothing.

All of them are read in one other process, which a mistake would kill.
"""

import json
import pathlib

import command
import hostile_pickles
import numpy as np
import pytest

from mtl_jax import unpickle
from mtl_jax.data import published
from mtl_jax.data.sources.mini_imagenet import pickles
from mtl_jax.errors import UserError

HOSTILE = hostile_pickles.hostile(pathlib.Path('nowhere'))
HARMLESS = hostile_pickles.harmless()
HAND_MADE = [case for case in HOSTILE
             if case.partition(', ')[0] not in hostile_pickles.BASES]
# Their extra state is of no use to an array of bytes: it is left unread.
READ = ('objects by their flags', 'metadata')


@pytest.fixture(scope='module')
def outcome(tmp_path_factory):
  """Returns the folder, and what became of every pickle."""
  folder = tmp_path_factory.mktemp('pickles')
  result = command.run([str(folder)], ('tests/hostile_pickles.py',))
  assert result.returncode == 0, result.stderr[-2000:]
  return folder, json.loads(result.stdout)


def test_there_are_enough_hostile_pickles():
  assert len(HAND_MADE) > 150 and len(HOSTILE) - len(HAND_MADE) > 300


def test_nothing_in_a_pickle_is_executed(outcome):
  folder, _ = outcome
  assert [p.name for p in folder.iterdir()] == ['mini-imagenet-cache-val.pkl']


def test_hostile_pickles_take_little_memory(outcome):
  _, found = outcome
  assert found['memory'] < 400


def test_every_pickle_is_read_or_gets_one_line(outcome):
  """Fails if damaged bytes end in a traceback or are read wrongly."""
  _, found = outcome
  for case in HOSTILE:
    result = found['results'][case]
    assert isinstance(result, dict) or (
        result.startswith('UserError: ') and 'val.pkl' in result
        and len(result.splitlines()) == 1), (case, result)


@pytest.mark.parametrize('case', HAND_MADE)
def test_a_hand_made_pickle_is_refused(case, outcome):
  _, found = outcome
  assert isinstance(found['results'][case], dict) == (case in READ)


@pytest.mark.parametrize('case', HARMLESS)
def test_a_harmless_pickle_is_read(case, outcome):
  _, found = outcome
  assert found['results'][case] == {
      'images': hostile_pickles.IMAGES.tolist(),
      'ids': hostile_pickles.CONTENT['class_dict']}


@pytest.mark.parametrize('change, said', [
    ({'labels': 3}, 'labels is no list of integers .a int'),
    ({'labels': None}, 'labels is no list of integers .a NoneType'),
    ({'labels': b'ab'}, 'labels is no list of integers .a bytes'),
    ({'labels': [0, 1, None, 1]}, 'labels is no list of integers .other'),
    ({'labels': np.array(3)}, 'labels is no list of integers'),
    ({'labels': np.zeros(4)}, 'labels is no list of integers .other'),
    ({'labels': range(10**18)}, 'labels is no list of integers .more than 8'),
    ({'labels': [0, 1, 0]}, '4 images have 3 labels'),
    ({'labels': [0, 1, 0, 7]}, 'labels and catname2label do not agree .7'),
    ({'catname2label': None}, 'labels and catname2label do not agree'),
    ({'catname2label': {'n01': None}}, 'labels and catname2label do not'),
    ({'catname2label': {5: 0}}, 'labels and catname2label do not agree'),
    ({'data': None}, 'data is a NoneType, not an array')])
def test_labels_of_a_split_that_are_none_get_one_line(change, said, tmp_path):
  path = tmp_path / 'miniImageNet_category_split_val.pickle'
  content = {'data': hostile_pickles.IMAGES, 'labels': [0, 1, 0, 1],
             'catname2label': {'n01': 0, 'n02': 1}}
  file = published.File(path.parent, path.name)
  path.write_bytes(hostile_pickles.pickle.dumps(content))
  assert pickles.load_category_split(file)[1] == {'n01': [0, 2], 'n02': [1, 3]}
  path.write_bytes(hostile_pickles.pickle.dumps(content | change))
  with pytest.raises(UserError, match=f'val.pickle: {said}'):
    pickles.load_category_split(file)


def test_an_array_is_a_view_of_the_file():
  """Fails if a split is copied, or if an array can be written to."""
  large = np.zeros((100, 84, 84, 3), np.uint8)
  data = hostile_pickles.pickle.dumps(large, 4)
  array = unpickle.plain(unpickle.load(data))
  assert np.shares_memory(array, np.frombuffer(data, np.uint8))
  assert not array.flags.writeable
