"""The temperature of `mtl_jax.adapt`: right, bounded, and of use."""

import itertools

import jax
import numpy as np
import pytest
import scipy.optimize

from mtl_jax.adapt import calibrate, learner
from mtl_jax.heads import centroid, ridge

LABELS = np.repeat([0, 1, 2], [3, 4, 9])


def test_folds_hold_out_every_class_and_no_image_twice():
  kept, held = calibrate.folds(LABELS, 3, 10)
  assert kept.shape == (3, 11) and held.shape == (3, 5)
  assert len(np.unique(held)) == held.size
  for fitted, rest in zip(kept, held, strict=True):
    assert sorted([*fitted, *rest]) == list(range(16))
    assert np.bincount(LABELS[rest]).tolist() == [1, 1, 3]


def test_a_large_support_is_held_out_once():
  """Fails if the time grows with the number of folds as well."""
  kept, held = calibrate.folds(np.repeat([0, 1], 600), 2, 10)
  assert kept.shape == (1, 960) and held.shape == (1, 240)


def noise(scale, size=40, seed=0):
  """Returns logits [size, 3] of which some are wrong, and the truth."""
  rng = np.random.default_rng(seed)
  truth = rng.integers(0, 3, size)
  return scale * (2 * np.eye(3)[truth] + rng.normal(size=(size, 3))), truth


@pytest.mark.parametrize('scale', [1e-4, 1., 300.])
def test_the_temperature_has_the_least_loss(scale):
  logits, truth = noise(scale)
  weights = np.linspace(1, 2, 40)
  images = sum(weights) ** 2 / sum(weights ** 2)
  right = (images + 1) / (images + 2)
  targets = np.where(np.eye(3)[truth] > 0, right, (1 - right) / 2)

  def loss(log_t):
    logp = np.asarray(jax.nn.log_softmax(logits / np.exp(log_t)), np.float64)
    return -weights @ (targets * logp).sum(1)

  center = np.log(scale)
  best = scipy.optimize.minimize_scalar(
      loss, bounds=(center - 4, center + 4), method='bounded').x
  with jax.enable_x64(True):
    found = calibrate.least_loss(logits, truth, weights)
  np.testing.assert_allclose(np.log(found), best, atol=2e-3)


def test_it_is_finite_where_all_or_none_is_recognised():
  truth = np.array([0, 1, 2])
  for logits in (np.eye(3)[truth], np.eye(3)[truth - 1], np.zeros((3, 3))):
    assert 1e-6 <= calibrate.least_loss(logits, truth, np.ones(3)) <= 1e6
  assert calibrate.least_loss(np.eye(3), truth, np.ones(3)) > 0.1


def test_what_chance_explains_is_taken_away():
  assert calibrate.shrunk(5., lambda factor: 0.4) == 1
  assert calibrate.shrunk(5., lambda factor: 1.) == 3
  assert calibrate.shrunk(0., lambda factor: 100.) == pytest.approx(0.005)


@pytest.mark.parametrize('head', [centroid, ridge])
@pytest.mark.parametrize('spread', [0.5, 2.])
def test_the_loss_on_new_images_falls(head, spread):
  """Fails if the probabilities of new images become worse.

  Classes are Gaussians, close to each other or far apart.
  """
  rng = np.random.default_rng(0)
  centres = spread * rng.normal(size=(5, 20)) / 4
  draw = lambda count: (centres.repeat(count, 0)
                        + rng.normal(size=(5 * count, 20))).astype(np.float32)
  labels = np.repeat(np.arange(5), 6).astype(np.int32)
  fit = jax.jit(lambda x, y, ways, weights: (head.fit(x, y, ways), {}),
                static_argnums=2)
  part = learner.Learner(head.__name__, {}, False, None, fit, head.logits)
  support = draw(6)
  found, _ = calibrate.temperature(part, support, labels, 5, False)
  assert (found['held_out'], found['folds']) == (30, 6)
  assert found['log_loss_after'] <= found['log_loss_before']
  logits = learner.logits_of(part, head.fit(support, labels, 5), draw(40))
  truth = np.repeat(np.arange(5), 40)
  before, after = (calibrate.log_loss(x, truth, np.ones(200)) for x in (
      logits, logits / found['temperature']))
  assert after < before


def of_logits(logits, residuals=lambda fold: {}):
  """A learner whose inputs are its logits; `residuals` of each fit."""
  folds = itertools.count()
  return learner.Learner(
      'logistic', {}, True, None,
      lambda *_: (None, residuals(next(folds))), lambda state, x: x), logits


@pytest.mark.parametrize('few', [3, 10])
def test_few_images_of_one_class_say_little(few):
  """Fails if many images of another class are taken for evidence of it.

  The logits are those of calibrated probabilities, so that 1 is the best
  temperature. The log loss on as many new images grows little.
  """
  rng = np.random.default_rng(few)
  lost = []
  for _ in range(60):
    sizes = np.array([few, 300])
    labels = np.repeat([0, 1], sizes)
    # Two normal distributions, 2 apart: their log odds are 2 x.
    draw = lambda labels: 2 * (1 - 2 * labels + rng.normal(size=len(labels)))
    logits = lambda odds: np.stack([odds, 0 * odds], 1)
    found, _ = calibrate.temperature(
        *of_logits(logits(draw(labels))), labels, 2, True)
    new = np.repeat([0, 1], 500)
    odds = logits(draw(new))
    lost.append(calibrate.log_loss(odds / found['temperature'], new,
                                   np.ones(1000))
                - calibrate.log_loss(odds, new, np.ones(1000)))
  assert np.mean(lost) < {3: 0.012, 10: 0.006}[few]


@pytest.mark.parametrize('bad', [np.nan, 0.5])
def test_a_fit_that_has_not_converged_calibrates_nothing(bad):
  labels = np.repeat([0, 1, 2], 4)
  residuals = lambda fold: {'weights': bad if fold == 2 else 1e-5}
  found, why = calibrate.temperature(
      *of_logits(np.eye(3)[labels], residuals), labels, 3, False)
  assert found is None
  assert why == 'a fit without some images has not converged'
