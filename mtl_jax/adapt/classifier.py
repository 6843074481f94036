"""What classifies pictures: a learner, fitted to a support."""

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax import heads, registry
from mtl_jax.adapt import calibrate
from mtl_jax.adapt import learner as learners
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters


class Classifier(NamedTuple):
  """A learner with what it has learned.

  learner: Learner.
  state: of its `fit`.
  about: what a head file and predictions.json say of it, see `fit`.
  marks: uint8 [S, 16], of the support images, see `marks`.
  """

  learner: Any
  state: Any
  about: dict[str, Any]
  marks: np.ndarray


def fit(model, learner, support, *, balanced=True, calibrated=True,
        show=False):
  """Learns the classes of a support.

  Args:
    model: Trained.
    learner: Learner of the model.
    support: Pictures.
    balanced: whether all classes count alike, where the learner can do that.
    calibrated: whether to find a temperature.
    show: whether a terminal may show the progress.

  Returns:
    Classifier. Its `about` has the classes with their numbers of images, the
    names of what was fitted, options, residuals, and `calibration`: that of
    calibrate.temperature, or None; `uncalibrated` then says why.

  Raises:
    UserError: memory does not suffice.
  """
  labels, num_ways = support.labels, len(support.classes)
  sizes = np.bincount(labels, minlength=num_ways)
  balanced = balanced and learner.weighted
  weights = None
  if balanced and len(set(sizes)) > 1:
    weights = np.asarray(heads.balance(labels, num_ways))
  inputs = learners.inputs_of(learner, support.images, show)
  learners.check_memory(learner, inputs, labels, num_ways, weights)
  state, residuals = learner.fit(inputs, labels, num_ways, weights)
  residuals = learners.numbers(residuals)
  calibration = None
  why = calibrate.why_not(sizes, support.classes, calibrated)
  if not why:
    calibration, why = calibrate.temperature(learner, inputs, labels, num_ways,
                                             balanced)
  config = model.config
  about = {
      'checkpoint_step': model.step, 'weights': model.weights,
      'trained_on': model.data['name'],
      'method': config.method.name, 'model': config.model.name,
      'head': learner.name, 'options': learner.options,
      'batch_norm': (learner.options.get('batch_norm')
                     if learner.name == adapters.OWN else None),
      'normalise_features': config.eval.normalise_features,
      'count_alike': count_alike(learner, balanced),
      'weighted': weights is not None,
      'residuals': residuals, 'converged': learners.converged(residuals),
      'calibration': calibration, 'uncalibrated': why,
      'classes': dict(zip(support.classes, sizes.tolist(), strict=True))}
  return Classifier(learner, state, about, marks(support.images))


def probabilities(classifier, images, show=False):
  """Returns the probabilities of the classes, float32 [I, N].

  Args:
    classifier: Classifier.
    images: uint8 [I, h, w, c].
    show: whether a terminal may show the progress.

  Raises:
    UserError: numbers are not finite.
  """
  learner = classifier.learner
  logits = learners.logits_of(learner, classifier.state,
                              learners.inputs_of(learner, images, show))
  calibration = classifier.about['calibration']
  values = np.asarray(jax.nn.softmax(
      logits / np.float32(calibration['temperature'] if calibration else 1)))
  if not np.isfinite(values).all():
    raise UserError(f'--head {learner.name} gives numbers that are not finite '
                    'on this support: choose another of '
                    + ', '.join((*heads.HEADS, adapters.OWN)))
  return values


def count_alike(learner, balanced):
  """Returns what counts alike: classes, images, or unknown.

  Unknown: the head or the method is a user's, and takes no weights.
  """
  if not learner.weighted:
    return 'unknown'
  return 'classes' if balanced else 'images'


def marks(images):
  """Returns marks [I, 16], the same for the same pixels, uint8 each."""
  each = [hashlib.sha256(image).digest()[:16] for image in images]
  return np.frombuffer(b''.join(each), np.uint8).reshape(-1, 16)


def fingerprint(model, head):
  """Returns a hash of all that gives a fitted state its meaning.

  Args:
    model: Trained, whose weights, constants and options count. Files of a
      user's own count by their contents.
    head: name of a head, or 'own'.
  """
  config = model.config
  found = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables):
    leaf = np.asarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'
                 .encode())
    found.update(np.ascontiguousarray(leaf).data)
  found.update(json.dumps(
      [model.data[name] for name in ('image_shape', 'mean', 'std')]
      + [config.model.to_dict(), config.method.to_dict(), config.train.ways,
         config.eval.normalise_features], sort_keys=True).encode())
  for name in (config.model.name, config.method.name, head):
    if registry.is_own(name):
      found.update(pathlib.Path(name).expanduser().read_bytes())
  return found.hexdigest()
