"""Reads the two pickled layouts of mini-ImageNet without running their code."""

import numpy as np

from mtl_jax.data import pickled
from mtl_jax.data.pickled import AGAIN as _AGAIN
from mtl_jax.errors import UserError, first_line


def _wnid(key):
  """Returns the name of a class."""
  name = pickled.text(key)
  if not isinstance(name, str) or not name.isprintable():
    raise ValueError(f'a class named {name!r:.40}')
  return str(name)


def _check_ids(path, key, ids, num_images):
  """Raises UserError unless every row belongs to one class."""
  seen = np.zeros(num_images, np.int64)
  for wnid, of_class in ids.items():
    outside = [i for i in of_class if not 0 <= i < num_images]
    if outside:
      raise UserError(f'{path}: class {wnid} has image {outside[-1]}, but '
                      f'there are {num_images}: {_AGAIN}')
    np.add.at(seen, of_class, 1)
    if (seen[of_class] > 1).any():
      again = next(i for i in of_class if seen[i] > 1)
      raise UserError(f'{path}: image {again} of class {wnid} is listed '
                      f'twice in {key}: {_AGAIN}')
  if not seen.all():
    raise UserError(f'{path}: {int((seen == 0).sum())} of {num_images} images '
                    f'are of no class in {key}: {_AGAIN}')


def load_cache(file):
  """Reads mini-imagenet-cache-SPLIT.pkl (Ren et al. 2018).

  Args:
    file: published.File.

  Returns:
    images: uint8 [I, h, w, 3].
    ids: wnid -> rows of images, in the order of the file.

  Raises:
    UserError: anything else in the file.
  """
  path = file.path
  images, class_dict = pickled.load(file, 'image_data', 'class_dict')
  pickled.check_images(path, 'image_data', images)
  if not isinstance(class_dict, dict):
    raise UserError(f'{path}: class_dict is a {type(class_dict).__name__}, '
                    f'not a dict: {_AGAIN}')
  ids, left = {}, 2 * len(images)  # rows listed twice get their own line
  try:
    for key, of_class in class_dict.items():
      ids[_wnid(key)] = rows = pickled.integers(of_class, left)
      left -= len(rows)
  except Exception as error:  # values of any kind may lie in it
    raise UserError(f'{path}: class_dict holds other things than lists of '
                    f'numbers ({first_line(error)}): {_AGAIN}') from error
  _check_ids(path, 'class_dict', ids, len(images))
  return images, ids


def load_category_split(file):
  """Reads miniImageNet_category_split_SPLIT.pickle (Gidaris & Komodakis 2018).

  Args, returns, raises: as `load_cache`.
  """
  path = file.path
  images, labels, numbers = pickled.load(
      file, 'data', 'labels', 'catname2label')
  pickled.check_images(path, 'data', images)
  try:
    labels = pickled.integers(labels, 2 * len(images))
  except Exception as error:
    raise UserError(f'{path}: labels is no list of integers '
                    f'({first_line(error)}): {_AGAIN}') from error
  if len(labels) != len(images):
    raise UserError(f'{path}: {len(images)} images have {len(labels)} labels: '
                    f'{_AGAIN}')
  try:
    wnids = dict(zip(pickled.integers(list(numbers.values()), len(numbers)),
                     map(_wnid, numbers), strict=True))
    ids = {}
    for i, label in enumerate(labels):
      ids.setdefault(wnids[label], []).append(i)
  except Exception as error:
    raise UserError(f'{path}: labels and catname2label do not agree '
                    f'({first_line(error)}): {_AGAIN}') from error
  return images, ids
