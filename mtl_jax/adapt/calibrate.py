"""The temperature that calibrates probabilities, by cross-validation.

A classifier is fitted again to parts of the support, and classifies the images
that it was not fitted to. The temperature T is that by which softmax(logits /
T) has the least log loss on them (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017, section 4.2). It changes no prediction.
"""

import numpy as np

from mtl_jax import heads
from mtl_jax.adapt import learner as learners
from mtl_jax.evaluate import adapters

FEWEST = 3  # images that every class must have
_FOLDS = {True: 3, False: 10}  # of a method's own adaptation; of a head
_LARGE, _FOLDS_OF_LARGE = 1000, 5  # images; one of these folds is used
_RANGE = np.log(1e6)  # of the temperature, either way
_HALVINGS = 60


def why_not(sizes, classes, wanted):
  """Returns why a support cannot calibrate probabilities, or ''.

  Args:
    sizes: images of each class.
    classes: their names.
    wanted: whether they are to be calibrated at all.
  """
  if not wanted:
    return 'as --uncalibrated says'
  least = int(np.argmin(sizes))
  if sizes[least] < FEWEST:
    return (f'{classes[least]} has {sizes[least]} support images, and every '
            f'class needs at least {FEWEST}')
  return ''


def temperature(learner, inputs, labels, num_ways, balanced):
  """Finds the temperature of a learner on a support.

  Args:
    learner: Learner.
    inputs, labels: of the support, [S, ..] and int [S].
    num_ways: N.
    balanced: whether classes count alike, in the fits and in the log loss.

  Returns:
    ({temperature, log_loss_before, log_loss_after, held_out, folds}, ''), the
    log losses those of the held-out images in nats; or (None, why not), where
    a fit of a fold is of no use.
  """
  kept, held = folds(labels, num_ways,
                     _FOLDS[learner.name == adapters.OWN])
  logits = []
  for fitted, rest in zip(kept, held, strict=True):
    weights = None
    if balanced and len(set(np.bincount(labels[fitted]))) > 1:
      weights = np.asarray(heads.balance(labels[fitted], num_ways))
    state, residuals = learner.fit(
        inputs[fitted], labels[fitted], num_ways, weights)
    if learners.converged(learners.numbers(residuals)) is False:
      return None, 'a fit without some images has not converged'
    logits.append(learners.logits_of(learner, state, inputs[rest]))
  logits = np.concatenate(logits).astype(np.float64)
  if not np.isfinite(logits).all():
    return None, 'numbers are not finite without some images'
  truth = labels[held.ravel()]
  weights = np.ones(len(truth))
  if balanced:
    weights = 1 / np.bincount(truth, minlength=num_ways)[truth]
  before = log_loss(logits, truth, weights)
  factor = shrunk(1 / least_loss(logits, truth, weights), lambda factor: (
      before - log_loss(factor * logits, truth, weights)) * worth(weights))
  return {'temperature': 1 / factor, 'log_loss_before': before,
          'log_loss_after': log_loss(factor * logits, truth, weights),
          'held_out': len(truth), 'folds': len(held)}, ''


def worth(weights):
  """Returns how many images of equal weight say as much as weighted ones.

  It is Kish's effective sample size (Survey Sampling, 1965, section 11.7): the
  weighted mean of so many has the same variance.
  """
  return weights.sum() ** 2 / np.sum(weights ** 2)


def shrunk(factor, gain):
  """Returns a factor of the logits nearer to 1, as far as chance explains it.

  A factor that is fitted to H images gains half a nat in their log likelihood
  by chance. James and Stein's estimator takes that share away.

  Args:
    factor: with the least loss.
    gain: factor -> by how many nats the log likelihood grows.
  """
  gained = gain(factor)
  share = 1 - 0.5 / gained if gained > 0.5 else 0.
  return 1 + share * (factor - 1)


def folds(labels, num_ways, most):
  """Divides a support into fits and held-out images.

  Of each class a fold holds out one image in as many as there are folds. So all
  folds have the same shapes, and each is compiled once.

  Args:
    labels: int [S], each class at least twice.
    num_ways: N.
    most: folds, at most.

  Returns:
    (kept [F, S - H], held [F, H]), rows of the support.
  """
  sizes = np.bincount(labels, minlength=num_ways)
  large = len(labels) > _LARGE
  count = min(sizes.min(), _FOLDS_OF_LARGE if large else most)
  rng = np.random.default_rng(0)
  by_class = [rng.permutation(np.flatnonzero(labels == n))
              for n in range(num_ways)]
  held = np.array([
      np.concatenate([rows[fold::count][:len(rows) // count]
                      for rows in by_class])
      for fold in range(1 if large else count)])
  kept = np.array([np.setdiff1d(np.arange(len(labels)), rows)
                   for rows in held])
  return kept, held


def log_loss(logits, truth, weights):
  """Returns the weighted mean of -log softmax(logits)[truth], in nats."""
  logp = logits - logits.max(1, keepdims=True)
  logp = logp - np.log(np.exp(logp).sum(1, keepdims=True))
  return float(np.average(-logp[np.arange(len(truth)), truth],
                          weights=weights))


def least_loss(logits, truth, weights):
  """Returns the temperature with the least log loss, of 1e-6..1e6.

  One more image is counted, of which nothing is known: its class has an even
  chance to be another one than predicted. Without it, the temperature would be
  zero where all held-out images are recognised. (Platt's targets for support
  vector machines, 1999, are the same for two classes.)

  The loss is convex in 1 / T, so its slope has one zero, which is bisected.
  """
  count, num_ways = logits.shape
  right = (worth(weights) + 1) / (worth(weights) + 2)
  targets = np.full(logits.shape, (1 - right) / (num_ways - 1))
  targets[np.arange(count), truth] = right

  def slope(log_factor):
    """Returns the derivative of the loss by the factor of the logits."""
    scaled = np.exp(log_factor) * logits
    p = np.exp(scaled - scaled.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return weights @ np.sum((p - targets) * logits, 1)

  low, high = -_RANGE, _RANGE
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    low, high = (low, middle) if slope(middle) > 0 else (middle, high)
  return float(np.exp(-(low + high) / 2))
