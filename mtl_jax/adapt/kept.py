"""A head file: a classifier that is kept and used again without its support.

It is a file of safetensors: arrays, and JSON in its metadata. Nothing in it can
be executed. A Python file that it names is executed only if the user names it.
"""

import math

import jax
import numpy as np

from mtl_jax import files, heads, registry, weight_files
from mtl_jax.adapt import classifier as classifiers
from mtl_jax.adapt import learner as learners
from mtl_jax.adapt import results
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters
from mtl_jax.heads.options import balance
from mtl_jax.weight_files import safetensors

SUFFIX = '.safetensors'
_KEY, _VERSION = 'mtl_jax_head', 1  # in the metadata
_FITTED = 'give its checkpoint, or fit a head to this one by --support'


def check_name(path):
  """Returns the epath of a head file that may be written.

  Raises:
    UserError: its name does not end in .safetensors, its folder cannot be
      written, or another file is there.
  """
  path = files.at(path)
  results.check_folder('--save_head', path.parent)
  if path.suffix != SUFFIX:
    raise UserError(f'--save_head is {str(path)!r}: the name must end in '
                    f'{SUFFIX}')
  if path.is_dir():
    raise UserError(f'--save_head {path} is a folder: name a file')
  if path.exists():
    try:
      _read('--save_head', path)
    except UserError as error:
      raise UserError(f'--save_head {path}: the file there is no head file '
                      'and would be lost: name another') from error
  return path


def save(path, model, classifier, invert):
  """Writes a head file.

  Args:
    path: of `check_name`.
    model: Trained.
    classifier: Classifier of it.
    invert: whether black and white of all images are exchanged.

  Raises:
    UserError: it cannot be written.
  """
  leaves = jax.tree.leaves(jax.device_get(classifier.state))
  about = {'version': _VERSION, **classifier.about, 'inverted': invert,
           'image_shape': model.data['image_shape'],
           'network': classifiers.fingerprint(model, classifier.learner.name)}
  arrays = {f'state_{i}': np.asarray(leaf) for i, leaf in enumerate(leaves)}
  files.make(path.parent)
  files.write(path, safetensors.pack(
      {'marks': classifier.marks, **arrays}, {_KEY: files.json_text(about)}))


def load(path, model, head=None):
  """Reads a head file.

  Args:
    path: of the file.
    model: Trained, of the checkpoint that it was fitted to.
    head: the .py file of a user's own head that was fitted; None: it was not.

  Returns:
    (Classifier, whether black and white of all images are exchanged).

  Raises:
    UserError: it is no head file, is damaged, or belongs to another network.
  """
  path = files.at(path)
  about, arrays = _read('--load_head', path)
  if registry.is_own(about['head']):
    about['head'] = _named(path, about['head'], head)
  elif head is not None:
    raise UserError(f'--head does not go with --load_head {path}: the file '
                    f'holds what {about["head"]} has fitted')
  elif about['head'] not in (adapters.OWN, *heads.HEADS):
    raise UserError(f'--load_head {path} holds the head {about["head"]!r}, '
                    f'which this version does not have: {_FITTED}')
  network = classifiers.fingerprint(model, about['head'])
  if about['network'] != network:
    raise UserError(
        f'--load_head {path} belongs to another network ({about["method"]} '
        f'with {about["model"]} trained on {about["trained_on"]}, step '
        f'{about["checkpoint_step"]}) than --checkpoint: its weights, its '
        f'options or its files are not the same; {_FITTED}')
  head, options = learners.choose(model.config, about['head'],
                                  about['batch_norm'])
  learner = learners.make(model, head, options)
  try:
    leaves, tree = jax.tree.flatten(_shapes(learner, model, about))
    state = [arrays[f'state_{i}'] for i in range(len(leaves))]
    if len(arrays) != len(leaves) + 1 or any(
        x.shape != leaf.shape or x.dtype != leaf.dtype
        for x, leaf in zip(state, leaves, strict=True)):
      raise ValueError('arrays')
  except Exception as error:  # of `fit`, which may raise anything
    raise UserError(f'--load_head {path}: its arrays are not those of its head '
                    f'in this version: {_FITTED}') from error
  for own in ('version', 'network', 'image_shape'):
    del about[own]
  invert = about.pop('inverted')
  return classifiers.Classifier(
      learner, jax.device_put(jax.tree.unflatten(tree, state)), about,
      arrays['marks']), invert


def _named(path, recorded, head):
  """Returns the .py file of a user's own head, which must have been named."""
  if head is None:
    raise UserError(
        f'--load_head {path} was fitted by the Python file {recorded}, which '
        f'would be executed: if you trust it, name it by --head={recorded}')
  heads.find(head, '--head')
  return head


def _shapes(learner, model, about):
  """Returns the shapes of the state of a learner."""
  size, ways = sum(about['classes'].values()), len(about['classes'])
  images = jax.ShapeDtypeStruct((size, *model.data['image_shape']), np.uint8)
  labels = jax.ShapeDtypeStruct((size,), np.int32)

  def fit(images, labels):
    weights = balance(labels, ways) if about['weighted'] else None
    return learner.fit(learner.inputs(images), labels, ways, weights)[0]

  return jax.eval_shape(fit, images, labels)


def _read(flag, path):
  """Returns (about, name -> array) of a head file; UserError if it is none."""
  try:
    weights = weight_files.read(path)
  except UserError as error:
    raise UserError(f'{flag} {error}') from error
  about = weight_files.json_of(weights, _KEY)
  try:
    if about is None:
      raise ValueError('no head')
    _check(about, weights.arrays)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f'{flag} {path} is no head file of this version: name a '
                    'file that --save_head has written') from error
  return about, weights.arrays


def _check(about, arrays):
  """Raises an error unless the head file has what `save` writes."""
  sizes = about['classes'].values()
  temperature = about['calibration'] and about['calibration']['temperature']
  texts = ('head', 'network', 'method', 'model', 'trained_on', 'count_alike')
  if not (about['version'] == _VERSION
          and all(isinstance(about[name], str) for name in texts)
          and isinstance(about['options'], dict)
          and isinstance(about['batch_norm'], str | None)
          and isinstance(about['residuals'], dict)
          and all(isinstance(about[name], bool)
                  for name in ('weighted', 'inverted', 'normalise_features'))
          and len(sizes) > 1 and all(type(n) is int and n > 0 for n in sizes)
          and arrays['marks'].shape == (sum(sizes), 16)
          and arrays['marks'].dtype == np.uint8
          and (temperature is None or 0 < temperature < math.inf)):
    raise ValueError('contents')
