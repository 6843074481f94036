"""A method that adapts its layers, through the whole of a run."""

import json
import os

import jax
import numpy as np
import pytest
from etils import epath
from tiny_run import config_of

from mtl_jax.config.check import validate
from mtl_jax.data import augment, episodes
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import measure
from mtl_jax.run import build, loop, protocols, report, trained


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns (workdir, config, what the run returned) of a short MAML run."""
  config = config_of(
      'maml', method__test_steps=2, eval__heads=('own', 'logistic'),
      eval__baselines=True, train__max_epochs=1)
  path = epath.Path(tmp_path_factory.mktemp('maml') / 'run')
  # Relative, as a user of the library may name it.
  return path, config, loop.train_and_evaluate(config, os.path.relpath(path))


def test_the_score_is_that_of_the_methods_own_adaptation(run):
  path, config, result = run
  assert set(result['scores']) == {'own', 'logistic', 'untrained',
                                   'raw_pixels'}
  model = trained.load(path)
  store = stores.load(config.data.name, 'test')
  key = episodes.stream_key(config.eval.seed, episodes.Stream.TEST)
  expected = []
  own = jax.jit(lambda support, query: model.algorithm.predict(
      model.algorithm.adapt(model.variables, key, support,
                            episodes.labels(5, 2), 5), query))
  for task in episodes.task_keys(key, 0, config.eval.tasks):
    _, ids = episodes.sample(task, jax.numpy.asarray(store.offsets), ways=5,
                             images_per_class=5)
    images = np.asarray(augment.normalise(store.images[np.asarray(ids)],
                                          store.mean, store.std))
    logits = own(images[:, :2].reshape(-1, 28, 28, 1),
                 images[:, 2:].reshape(-1, 28, 28, 1))
    expected.append(np.mean(np.argmax(logits, -1) == np.repeat(range(5), 3)))
  scores = np.load(path / 'tasks.npz')['own']
  np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_the_score_says_which_statistics_it_rests_on(run):
  path, _, result = run
  assert json.loads((path / 'test.json').read_text())[
      'batch_norm'] == 'transductive'
  assert 'BatchNorm: transductive' in report.scores(result)


def test_the_untrained_start_adapts_in_the_same_way(run):
  """Fails if the untrained score comes from another head than the run's."""
  path, config, _ = run
  model = trained.load(path)
  start = build.initial_state(config, model.algorithm,
                                model.data['image_shape']).variables
  scores = measure.meta_test(
      model.algorithm, start, stores.load(config.data.name, 'test'),
      protocols.test(config)[0], {'untrained': ('own', {})})
  np.testing.assert_array_equal(scores['untrained'],
                                np.load(path / 'tasks.npz')['untrained'])


def test_other_ways_are_refused_for_its_head_alone(run):
  path, config, _ = run
  config = config.copy_and_resolve_references()
  config.eval.ways = 4
  with pytest.raises(UserError, match='maml adapts by itself'):
    validate(config)
  config.eval.heads = ('logistic',)
  validate(config)
