"""Classify pictures by a run's backbone and a head fitted to examples."""

import hashlib
import inspect
import io
import json
import math
import os
import pathlib

import jax
import numpy as np
from etils import epath

from mtl_jax import fields, files, heads, registry
from mtl_jax.adapt import sheet
from mtl_jax.data import pictures
from mtl_jax.errors import UserError, check_choice, first_line
from mtl_jax.evaluate import adapters
from mtl_jax.heads.options import check_size
from mtl_jax.run import trained, workdir

# Images of every forward pass, so that no prediction depends on how many
# images there are.
BATCH = 32
_TABLES = ('predictions.json', 'predictions.csv', 'predictions.png')
_CONFUSION = 'confusion.png'


def adapt(checkpoint, support, query, *, head=None, out=None, invert=False,
          balanced=True):
  """Learns the classes of `support` and classifies the images of `query`.

  Args:
    checkpoint: workdir of a run, whose best epoch is used.
    support: folder with a folder of images for each class.
    query: folder, or list of folders and files.
    head: of heads.HEADS, or a user's .py file; None: the first that the run
      was tested with.
    out: folder for predictions.csv, predictions.json, predictions.png and,
      where the query is labelled, confusion.png; None: nothing is written.
    invert: exchange black and white in all images.
    balanced: whether all classes count alike, however many support images they
      have; otherwise all images do.

  Returns:
    The contents of predictions.json.

  Raises:
    UserError: folders, files, checkpoint or head that cannot be used; then
      nothing has been written.
  """
  config = workdir.saved_config(checkpoint)
  head, options = choose_head(config, head)
  support_files = pictures.list_support(support)
  query_files = pictures.list_query(query)
  check_size(head, len(support_files.labels),
             getattr(heads.find(head), 'MOST', math.inf))
  classes = sorted(set(support_files.labels))
  if out is not None:
    out = _check_out(out, [support, *_as_list(query)])
    before = _check_results(out, query_files, classes)
  # Before the network is loaded: an unreadable picture is named at once.
  image_shape = trained.read_data(files.at(checkpoint))['image_shape']
  support, query = (
      pictures.load(files, classes, image_shape, invert=invert)
      for files in (support_files, query_files))
  model = trained.load(checkpoint, config)
  probabilities, residuals = predict(
      model, head, options, support, query, balanced=balanced)
  result = {
      'checkpoint': str(checkpoint), 'checkpoint_step': model.step,
      'trained_on': model.data['name'], 'method': config.method.name,
      'model': config.model.name, 'head': head, 'options': options,
      'normalise_features': config.eval.normalise_features,
      'inverted': invert, 'count_alike': count_alike(head, balanced),
      'residuals': residuals,
      'converged': converged(residuals),
      'classes': {name: support_files.labels.count(name) for name in classes},
      'score': score(query, probabilities.argmax(1)),
      'notices': [*support_files.notices, *query_files.notices,
                  *support.notices, *query.notices,
                  *_notices(model, support, query, residuals, invert)],
      'predictions': _predictions(classes, query, probabilities)}
  if out is not None:
    write(out, result, support, query, before)
  return result


def _predictions(classes, query, probabilities):
  """Returns a row per query image for predictions.json."""
  return [
      {'file': file, 'predicted': classes[row.argmax()], 'true': name,
       # The shortest decimal that is this float32.
       'probabilities': {c: float(str(p)) for c, p in zip(
           classes, row, strict=True)}}
      for file, name, row in zip(query.files, query.names, probabilities,
                                 strict=True)]


def choose_head(config, head=None):
  """Returns (name, options) of a head, by default the run's first.

  Raises:
    UserError: there is no such head, or none is named.
  """
  if head is None:
    head = next(filter(adapters.is_head, config.eval.heads), None)
    if head is None:
      raise UserError('--head is missing: the run was tested with '
                      f'{", ".join(config.eval.heads)}; choose one of '
                      f'{", ".join(heads.HEADS)}')
  if not registry.is_own(head):
    check_choice('--head', head, heads.HEADS)
  # A run of an older version may lack a head, or an option of it.
  saved = config.heads.get(head, {})
  return head, fields.defaults(heads.find(head, '--head').OPTIONS) | dict(saved)


def count_alike(head, balanced=True):
  """Returns what counts alike for a head: classes, images, or unknown.

  Unknown: the head is a user's, and its `fit` takes no weights.
  """
  if 'example_weights' not in inspect.signature(
      heads.find(head, '--head').fit).parameters:
    return 'unknown'
  return 'classes' if balanced else 'images'


def predict(model, head, options, support, query, *, balanced=True):
  """Returns softmax of the head's logits [Q, N], and its residuals by name.

  Classes of unequal size count alike if `balanced` and if the head can.

  Raises:
    UserError: the head gives numbers that are not finite.
  """
  module = heads.find(head)
  num_ways = len(support.classes)
  fitted, rest = (_features(model, part.images) for part in (support, query))
  unequal = len(set(np.bincount(support.labels))) > 1
  if unequal and count_alike(head, balanced) == 'classes':
    options = options | {'example_weights': np.asarray(
        heads.balance(support.labels, num_ways))}

  @jax.jit
  def run(fitted, labels, rest):
    params = module.fit(fitted, labels, num_ways, **options)
    return (jax.nn.softmax(module.logits(params, rest)),
            module.diagnostics(params, fitted, labels, **options))

  probabilities, residuals = jax.device_get(run(fitted, support.labels, rest))
  if not np.isfinite(probabilities).all():
    raise UserError(f'--head {head} gives numbers that are not finite on this '
                    'support: choose another of ' + ', '.join(heads.HEADS))
  # JSON has no number for what is not finite.
  return probabilities, {k: float(v) if np.isfinite(v) else None
                         for k, v in residuals.items()}


def _features(model, images):
  """Returns the features [I, D] of any number of images."""
  features = []
  for start in range(0, len(images), BATCH):
    batch = images[start:start + BATCH]
    missing = BATCH - len(batch)
    features.append(np.asarray(model.features(
        np.pad(batch, [(0, missing)] + [(0, 0)] * 3)))[:len(batch)])
  return np.concatenate(features)


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


def converged(residuals):
  """Returns whether a head's residuals are those of a good fit."""
  return all(value is not None and value <= heads.LARGE_RESIDUAL
             for value in residuals.values())


def _notices(model, support, query, residuals, invert):
  """Returns sentences on what makes the numbers doubtful."""
  notices = []
  strange = sorted(set(filter(None, query.names)) - set(query.classes))
  if strange:
    count = sum(name in strange for name in query.names)
    notices.append(
        f'{count} query images are of classes that --support does not have '
        f'({", ".join(strange[:5])}{", .." if len(strange) > 5 else ""}): '
        'left out of the accuracy')
  mark = lambda image: hashlib.sha256(image).digest()
  seen = set(map(mark, support.images))
  same = sum(mark(image) in seen for image in query.images)
  if same:
    notices.append(f'{same} query images are support images as well: it '
                   'means little that they are recognised')
  light = [file for part in (support, query) for file, is_inverted in zip(
      part.files, pictures.look_inverted(part.images, model.data['mean']),
      strict=True) if is_inverted]
  if light:
    notices.append(
        f'{len(light)} images have a white background, such as {light[0]}, and '
        'this run was trained on white ink on black: '
        + ('leave out --invert' if invert else 'try --invert'))
  if not converged(residuals):
    notices.append('the head has not converged (residuals: '
                   f'{sheet.numbers(residuals)}): do not trust these numbers')
  return notices


def _as_list(query):
  return [query] if isinstance(query, str | os.PathLike) else list(query)


def _check_out(out, inputs):
  """Returns --out as a path.

  Raises:
    UserError: results cannot be written there, or would be read as input.
  """
  if '://' in str(out):
    return epath.Path(out)
  try:
    path = pathlib.Path(out).expanduser().resolve()
    for folder in (pathlib.Path(given).expanduser().resolve()
                   for given in inputs):
      if folder.is_dir() and path.is_relative_to(folder):
        raise UserError(f'--out {out} is within {folder}: the next start would '
                        'read the results as your pictures; choose another '
                        'folder')
    nearest = next(p for p in (path, *path.parents) if p.exists())
    is_folder = nearest.is_dir()
  except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
    reason = getattr(error, 'strerror', None) or first_line(error)
    raise UserError(f'--out {out} cannot be read ({reason}): name another '
                    'folder') from error
  if not is_folder:
    raise UserError(f'--out {out}: {nearest} is a file; name a folder')
  if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
    raise UserError(f'--out {out}: {nearest} cannot be written; name another '
                    'folder')
  return epath.Path(path)


def _check_results(out, query_files, classes):
  """Returns the names of the results of an earlier start in a folder.

  Raises:
    UserError: a file there has the name of a result and is none, or is to be
      classified.
  """
  before = _results_in(out)
  labelled = not set(classes).isdisjoint(query_files.labels)
  given = {os.path.realpath(path) for path in query_files.paths}
  for name in (*_TABLES, *[_CONFUSION] * labelled):
    if not (out / name).exists():
      continue
    if name not in before:
      raise UserError(f'--out {out}: the {name} there is not of this command; '
                      'move it, or name another folder')
    if os.path.realpath(out / name) in given:
      raise UserError(f'--out {out}: {name} would be replaced, which --query '
                      'names; name another folder')
  return before


def _results_in(out):
  """Returns the names of the files that predictions.json was written with."""
  try:
    contents = json.loads((out / _TABLES[0]).read_text())
    # The keys are those of no other program.
    known = all(key in contents for key in (
        'checkpoint_step', 'trained_on', 'predictions'))
    return {*_TABLES, *[_CONFUSION] * bool(contents['score'])} if known else ()
  except (OSError, ValueError, TypeError, KeyError):
    return ()


def write(out, result, support, query, before=()):
  """Writes the results into a folder: the tables first, then the pictures.

  Args:
    out: the folder, an epath.
    result: of `adapt`.
    support, query: the Pictures.
    before: names of results there of an earlier start. A confusion.png among
      them is removed unless it is replaced, as it would show other results.

  Raises:
    UserError: the folder cannot be made or written.
  """
  try:
    out.mkdir(parents=True, exist_ok=True)
    if _CONFUSION in before and not result['score']:
      (out / _CONFUSION).unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f'--out {out} cannot be written ({error.strerror}): name '
                    'another folder') from error
  text = io.StringIO()
  json.dump(result, text, indent=2, allow_nan=False)  # in pieces: little memory
  files.write(out / 'predictions.json', text.getvalue())
  files.write(out / 'predictions.csv', sheet.table(result))
  files.write(out / 'predictions.png', sheet.sheet(result, support, query))
  if result['score']:
    files.write(out / _CONFUSION, sheet.confusion(result))
