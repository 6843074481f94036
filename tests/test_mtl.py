"""MTL's loss, against a computation by hand."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mtl_jax import algorithms, models
from mtl_jax.config import base_config, set_method
from mtl_jax.data import episodes

NUM_CLASSES = 7


def build(**changes):
  return algorithms.create('mtl', models.create('conv4', width=4,
                                                pool='global'),
                           NUM_CLASSES, 3, **changes)


def episode(class_ids):
  images = jax.random.normal(jax.random.key(1), (3, 4, 16, 16, 1))
  return episodes.split(images, jnp.array(class_ids), shots=1)


@pytest.mark.parametrize('loss, normalise', [
    ('cross_entropy', True), ('cross_entropy', False), ('squared', True)])
# Ids below the number of ways, out of order: where the reference's in-place
# remapping sends images to a wrong row.
@pytest.mark.parametrize('class_ids', [(2, 0, 1), (6, 3, 0)])
def test_label_i_belongs_to_the_row_of_its_class(loss, normalise, class_ids):
  algorithm = build(loss=loss, normalise_train_features=normalise)
  task = episode(class_ids)
  variables = algorithm.init(jax.random.key(0), task.support_x)
  value, aux = algorithm.loss(variables, jax.random.key(2), task, 0)

  images, labels = map(np.asarray, episodes.joined(task))
  features, _ = models.create('conv4', width=4, pool='global').apply(
      {'params': variables['params']['backbone'],
       'batch_stats': variables['batch_stats']},
      images, train=True, mutable=['batch_stats'])
  features = np.asarray(features, np.float64)
  if normalise:
    features /= np.linalg.norm(features, axis=1, keepdims=True)
  rows = np.asarray(variables['params']['rows'], np.float64)
  expected, hits = [], 0
  for x, label in zip(features, labels, strict=True):
    logits = np.array([rows[c] @ x for c in class_ids])
    hits += np.argmax(logits) == label
    if loss == 'squared':
      expected.append(0.5 * np.sum((logits - np.eye(3)[label]) ** 2))
    else:
      expected.append(np.log(np.exp(logits).sum()) - logits[label])
  np.testing.assert_allclose(value, np.mean(expected), rtol=1e-4)
  total, count = aux.metrics['accuracy']
  assert (total, count) == (hits, 12)


def test_only_the_rows_of_the_task_get_a_gradient():
  algorithm, task = build(), episode((5, 2, 4))
  variables = algorithm.init(jax.random.key(0), task.support_x)
  gradient = jax.grad(lambda rows: algorithm.loss(
      {**variables, 'params': {**variables['params'], 'rows': rows}},
      jax.random.key(2), task, 0)[0])(variables['params']['rows'])
  moved = np.flatnonzero(np.abs(gradient).sum(1))
  assert moved.tolist() == [2, 4, 5]


def test_published_settings_name_every_field_of_the_config():
  for benchmark, shots, per_class, tasks in (
      ('mini_imagenet', 5, 10, 2), ('mini_imagenet', 1, 10, 6),
      ('tiered_imagenet', 5, 40, 1), ('cifar_fs', 1, 20, 2),
      ('fc100', 1, 5, 1), ('fc100', 5, 10, 6)):
    config = ml_collections.ConfigDict(base_config())
    set_method(config, 'mtl', benchmark=benchmark, shots=shots)
    assert config.train.shots + config.train.queries == per_class
    assert config.train.meta_batch == tasks
    assert config.method.normalise_train_features == (benchmark != 'fc100')
    assert not config.source.startswith('ours')
