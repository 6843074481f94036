"""Reads the two pickled layouts of mini-ImageNet without running their code."""

import numpy as np

from mtl_jax.data.sources.mini_imagenet import unpickle
from mtl_jax.data.sources.mini_imagenet.lists import refuse_html
from mtl_jax.errors import UserError, first_line

_AGAIN = 'fetch the file again'


def _text(key):
  return key.decode('latin1') if isinstance(key, bytes) else key


def _load(file, *wanted):
  """Returns the values of `wanted` keys of the dict in a pickle."""
  path = file.path
  try:
    data = file.read()
    refuse_html(path, data[:200])
    content = unpickle.load(data)
    if not isinstance(content, dict):
      raise UserError(f'holds a {type(content).__name__}, not a dict '
                      f'with {", ".join(wanted)}')
    content = {_text(key): unpickle.plain(x) for key, x in content.items()}
  except UserError as error:
    raise (error if str(error).startswith(str(path)) else
           UserError(f'{path} {error}: {_AGAIN} from where it was published')
           ) from error
  except OSError as error:
    raise UserError(f'{path} cannot be read ({first_line(error)}): make it '
                    f'readable, or {_AGAIN}') from error
  except MemoryError as error:
    raise UserError(f'{path} does not fit into memory: use the layout of '
                    'lists and images, which is read one by one') from error
  except Exception as error:  # damaged bytes may raise anything
    raise UserError(f'{path} cannot be unpickled ({first_line(error)}): it '
                    f'was cut short or damaged, {_AGAIN}') from error
  missing = [key for key in wanted if key not in content]
  if missing:
    raise UserError(f'{path} lacks {missing[0]} (it has '
                    f'{", ".join(map(repr, content))[:80]}): {_AGAIN}')
  return [content[key] for key in wanted]


def _check_images(path, key, images):
  if not isinstance(images, np.ndarray):
    raise UserError(f'{path}: {key} is a {type(images).__name__}, not an '
                    f'array: {_AGAIN}')
  shape = 'x'.join(map(str, images.shape))
  if images.dtype != np.uint8:
    raise UserError(f'{path}: {key} is of {images.dtype}, not uint8 (0 to '
                    f'255): {_AGAIN} as it was published')
  if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
    raise UserError(f'{path}: {key} has the shape {shape}, not images x '
                    f'height x width x 3: {_AGAIN} as it was published')


def _integers(values, most):
  """Returns a list of integers from a list, tuple, range or array of them.

  Args:
    values: of a pickle.
    most: how many there may be; a range has no size in the file.

  Raises:
    ValueError: they are something else.
  """
  values = unpickle.plain(values)
  if not isinstance(values, list | tuple | range | np.ndarray):
    raise ValueError(f'a {type(values).__name__} where integers should be')
  if len(values) > most:
    raise ValueError(f'more than {most} integers')
  integers = values.tolist() if isinstance(values, np.ndarray) else list(values)
  if not all(isinstance(i, int | np.integer) for i in integers):
    raise ValueError('other things than integers')
  return [int(i) for i in integers]


def _wnid(key):
  """Returns the name of a class."""
  name = _text(key)
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
  images, class_dict = _load(file, 'image_data', 'class_dict')
  _check_images(path, 'image_data', images)
  if not isinstance(class_dict, dict):
    raise UserError(f'{path}: class_dict is a {type(class_dict).__name__}, '
                    f'not a dict: {_AGAIN}')
  ids, left = {}, 2 * len(images)  # rows listed twice get their own line
  try:
    for key, of_class in class_dict.items():
      ids[_wnid(key)] = rows = _integers(of_class, left)
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
  images, labels, numbers = _load(file, 'data', 'labels', 'catname2label')
  _check_images(path, 'data', images)
  try:
    labels = _integers(labels, 2 * len(images))
  except Exception as error:
    raise UserError(f'{path}: labels is no list of integers '
                    f'({first_line(error)}): {_AGAIN}') from error
  if len(labels) != len(images):
    raise UserError(f'{path}: {len(images)} images have {len(labels)} labels: '
                    f'{_AGAIN}')
  try:
    wnids = dict(zip(_integers(list(numbers.values()), len(numbers)),
                     map(_wnid, numbers), strict=True))
    ids = {}
    for i, label in enumerate(labels):
      ids.setdefault(wnids[label], []).append(i)
  except Exception as error:
    raise UserError(f'{path}: labels and catname2label do not agree '
                    f'({first_line(error)}): {_AGAIN}') from error
  return images, ids
