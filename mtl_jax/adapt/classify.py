"""Classify pictures by a run's backbone, as a support shows its classes."""

import math
import os
from typing import NamedTuple

import numpy as np

from mtl_jax import fonts, heads
from mtl_jax.adapt import classifier as classifiers
from mtl_jax.adapt import kept, results, sheet
from mtl_jax.adapt import learner as learners
from mtl_jax.config import ConfigDict
from mtl_jax.data import pictures
from mtl_jax.evaluate import adapters
from mtl_jax.heads.options import check_size
from mtl_jax.run import trained, weights, workdir


class Ready(NamedTuple):
  """A classifier, ready for new pictures.

  model: Trained.
  classifier: Classifier.
  invert: whether black and white of all pictures are exchanged.
  support: Pictures; without images where the classifier was kept in a file.
  notices: sentences on what was left out or guessed of the support.
  """

  model: object
  classifier: object
  invert: bool
  support: pictures.Pictures
  notices: list[str]


def load(checkpoint):
  """Returns the Trained of --checkpoint, for everything in this room.

  Args:
    checkpoint: workdir of a run, whose best epoch is used; or a config, whose
      field `weights` names a file of weights.

  Raises:
    UserError: as trained.load and weights.load.
  """
  if isinstance(checkpoint, ConfigDict):
    return weights.load(checkpoint)
  return trained.load(checkpoint)


def learn(checkpoint, found, *, head=None, batch_norm=None, invert=False,
          balanced=True, calibrated=True, show=False):
  """Learns the classes of a support: Ready.

  Args:
    checkpoint: as in `load`.
    found: Files of pictures.list_support.
    head: of heads.HEADS, a user's .py file, or 'own', the method's own
      adaptation; None: see learner.choose.
    batch_norm: for 'own', in place of the method's statistics of BatchNorm.
    invert: exchange black and white in all images.
    balanced: whether all classes count alike, however many support images they
      have; otherwise all images do.
    calibrated: whether to calibrate probabilities by cross-validation.
    show: whether a terminal may show the progress.

  Raises:
    UserError: folders, files, checkpoint or head that cannot be used.
  """
  config = (checkpoint if isinstance(checkpoint, ConfigDict)
            else workdir.saved_config(checkpoint))
  name, options = learners.choose(config, head, batch_norm)
  classes = sorted(set(found.labels))
  learners.check_ways(config, name, len(classes))
  if name != adapters.OWN:
    check_size(name, len(found.labels),
               getattr(heads.find(name), 'MOST', math.inf))
  model = load(checkpoint)
  support = pictures.load(found, classes, model.data['image_shape'],
                          invert=invert, show=show)
  classifier = classifiers.fit(
      model, learners.make(model, name, options), support, balanced=balanced,
      calibrated=calibrated, show=show)
  classifiers.probabilities(classifier, support.images[:1])  # are finite
  return Ready(model, classifier, invert, support,
               [*(weights.lines(model, [name]) if model.weights else ()),
                *found.notices, *_of_pictures(support, model, invert)])


def recall(checkpoint, load_head, head=None):
  """Returns the Ready of a head file.

  Args:
    checkpoint: as in `load`, of what the head was fitted to.
    load_head: the file.
    head: the .py file of a head of your own; None for all others.

  Raises:
    UserError: as `kept.load` and trained.load.
  """
  model = load(checkpoint)
  classifier, invert = kept.load(load_head, model, head)
  nothing = np.zeros((0, *model.data['image_shape']), np.uint8)
  return Ready(model, classifier, invert, pictures.Pictures(
      [], nothing, np.zeros(0, np.int32),
      tuple(classifier.about['classes']), []), [])


def keep(ready, save_head):
  """Writes a Ready to a head file, of kept.check_name."""
  kept.save(save_head, ready.model, ready.classifier, ready.invert)


def adapt(checkpoint, support=None, query=None, *, load_head=None,
          save_head=None, out=None, show=False, **options):
  """Learns the classes of `support` and classifies the images of `query`.

  Args:
    checkpoint: as in `load`.
    support: folder with a folder of images for each class; None with
      load_head.
    query: folder, or list of folders and files.
    load_head: file of an earlier `save_head`, in place of a support.
    save_head: file to keep the classifier in, or None.
    out: folder for predictions.csv, predictions.json, predictions.png and,
      where the query is labelled, confusion.png; None: nothing is written.
    show: whether a terminal may show the progress.
    **options: of `learn`; with load_head only `head`, as of `recall`.

  Returns:
    The contents of predictions.json.

  Raises:
    UserError: folders, files, checkpoint or head that cannot be used; then
      nothing has been written.
  """
  found = pictures.list_query(query)
  before = ()
  if support is None:
    ready = recall(checkpoint, load_head, options.get('head'))
    folders, classes = [], ready.support.classes
  else:
    known = pictures.list_support(support)
    folders, classes = [support], known.labels
  if out is not None:
    out = results.check_out(out, [*folders, *as_list(query)])
    before = results.check_results(out, found, classes)
  if save_head is not None:
    save_head = kept.check_name(save_head)
  if support is not None:
    ready = learn(checkpoint, known, show=show, **options)
  result, query = classify(checkpoint, ready, found, show)
  if out is not None:
    result['notices'] += fonts.notices(
        {**result['classes'], **dict.fromkeys(filter(None, query.names))})
  if save_head is not None:
    keep(ready, save_head)
  if out is not None:
    results.write(out, result, ready.support, query, before)
  return result


def classify(checkpoint, ready, found, show=False):
  """Classifies pictures.

  Args:
    checkpoint: named in the result.
    ready: Ready.
    found: Files of pictures.list_query.
    show: whether a terminal may show the progress.

  Returns:
    (the contents of predictions.json, Pictures of the query).
  """
  model, classifier, invert, support, notices = ready
  query = pictures.load(found, support.classes, model.data['image_shape'],
                        invert=invert, show=show)
  probabilities = classifiers.probabilities(classifier, query.images, show)
  about = classifier.about
  return {
      'checkpoint': None if model.weights else str(checkpoint), **about,
      'inverted': invert,
      'score': score(query, probabilities.argmax(1)),
      'notices': [*notices, *found.notices,
                  *_of_pictures(query, model, invert),
                  *_notices(ready, query)],
      'predictions': [
          row(file, support.classes, p, name) for file, name, p in zip(
              query.files, query.names, probabilities, strict=True)]}, query


def row(file, classes, probabilities, name=None):
  """Returns what is said of one image, for JSON.

  Args:
    file: as it is to be named.
    classes: [N].
    probabilities: float32 [N].
    name: of its true class, or None.
  """
  return {'file': file, 'predicted': classes[probabilities.argmax()],
          'true': name,
          # The shortest decimal that is this float32.
          'probabilities': {c: float(str(p)) for c, p in zip(
              classes, probabilities, strict=True)}}


def score(query, predicted):
  """Returns accuracies and the confusion matrix, or None without labels.

  Images of classes that the support does not have are not counted.
  """
  known = query.labels >= 0
  if not known.any():
    return None
  num_ways = len(query.classes)
  confusion = np.zeros((num_ways, num_ways), int)
  np.add.at(confusion, (query.labels[known], predicted[known]), 1)
  counts = lambda correct, images: {
      'accuracy': float(correct / images), 'correct': int(correct),
      'images': int(images)}
  return {
      **counts(np.trace(confusion), confusion.sum()),
      'by_class': {name: counts(confusion[i, i], confusion[i].sum())
                   for i, name in enumerate(query.classes)
                   if confusion[i].any()},
      'confusion': confusion.tolist()}


def as_list(query):
  """Returns what --query names as a list."""
  return [query] if isinstance(query, str | os.PathLike) else list(query)


def white_background(invert):
  """Returns the end of a sentence on images with a white background."""
  return ('this run was trained on white ink on black: '
          + ('leave out --invert' if invert else 'try --invert'))


def _of_pictures(found, model, invert):
  """Returns sentences on how Pictures were read, and may be misread."""
  light = [file for file, is_inverted in zip(
      found.files, pictures.look_inverted(found.images, model.data['mean']),
      strict=True) if is_inverted]
  return [*pictures.guesses(found.files, found.guessed),
          *[f'{len(light)} images have a white background, such as '
            f'{light[0]}: {white_background(invert)}' for _ in light[:1]]]


def _notices(ready, query):
  """Returns sentences on what makes the numbers doubtful."""
  classifier = ready.classifier
  about, notices = classifier.about, []
  strange = sorted(set(filter(None, query.names)) - set(query.classes))
  if strange:
    count = sum(name in strange for name in query.names)
    notices.append(
        f'{count} query images are of classes that --support does not have '
        f'({", ".join(strange[:5])}{", .." if len(strange) > 5 else ""}): '
        'left out of the accuracy')
  seen = set(map(bytes, classifier.marks))
  same = sum(bytes(mark) in seen for mark in classifiers.marks(query.images))
  if same:
    notices.append(f'{same} query images are support images as well: it '
                   'means little that they are recognised')
  if classifier.learner.together:
    notices.append(
        f'the query images influence each other: {about["method"]} normalises '
        f'them together (BatchNorm: {about["batch_norm"]}), about '
        f'{classifier.learner.batch} at a time as in its test; '
        '--batch_norm=support changes that')
  if about['converged'] is False:
    notices.append('the head has not converged (residuals: '
                   f'{sheet.numbers(about["residuals"])}): do not trust these '
                   'numbers')
  return notices
