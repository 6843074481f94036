"""The built data are read by TFDS itself, and by TensorFlow where it is."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT

from mtl_jax.data import store as stores

NAME = 'glyphs/tiny'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns the folder in which a data set is built."""
  folder = tmp_path_factory.mktemp('tfds')
  stores.prepare(NAME, folder)
  return folder


def assert_same(dataset, store):
  """Fails unless records, in their order, are the images of a store."""
  np.testing.assert_array_equal([np.asarray(record['image'])
                                 for record in dataset], store.images)


def test_tfds_reads_the_records_without_this_package(folder):
  """Fails if only our own builder reads what is built."""
  built = tfds.builder(NAME, data_dir=folder)
  assert type(built).__module__.startswith('tensorflow_datasets')
  assert_same(built.as_data_source(split='validation'),
              stores.load(NAME, 'validation', folder))


def test_tensorflow_reads_them_as_documented(folder, tmp_path):
  """Fails if the lines of docs/runs.md do not end in the same images."""
  pytest.importorskip('tensorflow')
  pytest.importorskip('importlib_resources')
  text = (ROOT / 'docs/runs.md').read_text().partition('With TensorFlow')[2]
  code = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
  assert "'tensorflow_datasets'" in code and "'tfrecords'" in code
  names = {}
  exec(code.replace("'tensorflow_datasets'", repr(str(folder))).replace(
      "'tfrecords'", repr(str(tmp_path))), names)
  store = stores.load(NAME, 'test', folder)
  assert_same(names['read']('test'), store)
  assert_same(names['test'], store)
  assert list(tmp_path.rglob('*.tfrecord*'))
