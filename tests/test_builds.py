"""A full disk, a kill and a second build, in processes of their own."""

import json
import re

import builds
import cifar100_fake
import command
import numpy as np
import own_source
import pytest
import tiered_imagenet_fake

from mtl_jax.data import store as stores


def expected(name, store):
  """Returns the first image of a store, made without a build."""
  if name == 'folder':
    return own_source.pixels(store.split, 0, 0)
  if name == 'tiered_imagenet':
    return tiered_imagenet_fake.pixels(store.split)[0]
  return cifar100_fake.images()[cifar100_fake.TABLE.fine.index(
      store.class_names[0]), 0]


@pytest.fixture(scope='module', params=builds.SOURCES)
def built(request, tmp_path_factory):
  """Returns the name, the folder, and what the processes printed."""
  folder = tmp_path_factory.mktemp(request.param)
  result = command.run([request.param, str(folder)],
                       program=('tests/builds.py',))
  assert result.returncode == 0, result.stderr
  return request.param, folder, json.loads(result.stdout)


def assert_whole(name, folder, data, monkeypatch):
  """Fails unless a data set is built, with the right images."""
  builds.SOURCES[name][1](monkeypatch, folder / data)
  path = str(folder / 'files') if name == 'folder' else name
  for split in ('train', 'validation', 'test'):
    store = stores.load(path, split)
    np.testing.assert_array_equal(store.images[0], expected(name, store))
  assert not list((folder / data).rglob('incomplete*'))


def test_a_full_disk_gets_one_line_and_leaves_nothing(built):
  """Fails if half a data set looks whole, or fills the disk for ever."""
  _, folder, ((code, _, error),) = *built[:2], built[2]['full']
  line, = error.splitlines()
  assert code == 2
  assert re.search('cannot be written .*File too large', line)
  assert 'to a folder with room' in line
  assert [path.name for path in (folder / 'full').rglob('*')
          if path.is_file()] == ['.lock']


def test_a_killed_build_starts_again(built, monkeypatch):
  name, folder, result = built
  (killed, *_), (again, *_, error) = result['killed']
  assert (killed, again, error) == (-9, 0, '')
  assert_whole(name, folder, 'killed', monkeypatch)


def test_a_second_build_waits_and_takes_what_the_first_made(
    built, monkeypatch):
  """Fails if it removes what the first one writes, or writes it again."""
  name, folder, result = built
  assert [(code, error) for code, _, error in result['two']] == [(0, '')] * 2
  assert_whole(name, folder, 'two', monkeypatch)
