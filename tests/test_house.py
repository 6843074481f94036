"""The structure that CONTRIBUTING.md describes is the one that there is."""

import house
import pytest

MEASURED = house.measure()


@pytest.mark.parametrize('rule', [
    'upward import edges', 'functions above 60 lines',
    'files below run/ that take a whole config'])
def test_the_rules_of_the_house_hold(rule):
  assert MEASURED[rule] == []


def test_every_import_is_seen():
  """Fails if the rule on upward imports is checked on an empty set."""
  assert ('run.loop', 'train.step') in MEASURED['import edges']
  assert house.floor('train.step') > house.floor('run.loop')
