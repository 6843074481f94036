"""Reads the two pickled layouts of mini-ImageNet without running their code."""

import collections
import pickle

import numpy as np

from mtl_jax.data.sources.mini_imagenet.lists import refuse_html
from mtl_jax.errors import UserError, first_line

_AGAIN = 'fetch the file again'


def _latin1(text, encoding='latin1'):
  if encoding not in ('latin1', 'latin-1'):
    raise pickle.UnpicklingError(f'text in {encoding}')
  return text.encode('latin1')


# All that a pickle of arrays, dicts, lists and numbers asks for.
_ALLOWED = {
    ('_codecs', 'encode'): _latin1,
    ('numpy', 'dtype'): np.dtype,
    ('numpy', 'ndarray'): np.ndarray,
}
for _core in ('numpy.core', 'numpy._core'):
  _ALLOWED |= {
      (f'{_core}.multiarray', '_reconstruct'): np.empty(0).__reduce__()[0],
      (f'{_core}.multiarray', 'scalar'): np.int64(0).__reduce__()[0],
      (f'{_core}.numeric', '_frombuffer'): np.empty(0).__reduce_ex__(5)[0],
  }


class _Unpickler(pickle.Unpickler):
  """Admits nothing but arrays and built-in values."""

  def find_class(self, module, name):
    if (module, name) not in _ALLOWED:
      raise UserError(f'asks for {module}.{name}, which no pickle of images '
                      f'needs and which may run any code: {_AGAIN} from '
                      'where it was published')
    return _ALLOWED[module, name]


def _text(key):
  return key.decode('latin1') if isinstance(key, bytes) else key


def _load(path, *wanted):
  """Returns the values of `wanted` keys of the dict in a pickle."""
  try:
    with path.open('rb') as file:
      refuse_html(path, file.read(200))
      file.seek(0)
      # Strings of Python 2 become bytes: an array then keeps the memory.
      content = _Unpickler(file, encoding='bytes').load()
  except UserError as error:
    raise UserError(str(error) if str(error).startswith(str(path))
                    else f'{path} {error}') from error
  except OSError as error:
    raise UserError(f'{path} cannot be read ({first_line(error)}): make it '
                    f'readable, or {_AGAIN}') from error
  except MemoryError as error:
    raise UserError(f'{path} does not fit into memory: use the layout of '
                    'lists and images, which is read one by one') from error
  except Exception as error:  # damaged bytes may raise anything
    raise UserError(f'{path} cannot be unpickled ({first_line(error)}): it '
                    f'was cut short or damaged, {_AGAIN}') from error
  if not isinstance(content, dict):
    raise UserError(f'{path} holds a {type(content).__name__}, not a dict '
                    f'with {", ".join(wanted)}: {_AGAIN}')
  content = {_text(key): value for key, value in content.items()}
  missing = [key for key in wanted if key not in content]
  if missing:
    raise UserError(f'{path} lacks {missing[0]} (it has '
                    f'{", ".join(map(str, content))[:80]}): {_AGAIN}')
  return [content[key] for key in wanted]


def _check_images(path, key, images):
  if not isinstance(images, np.ndarray):
    raise UserError(f'{path}: {key} is a {type(images).__name__}, not an '
                    f'array: {_AGAIN}')
  shape = 'x'.join(map(str, images.shape))
  if images.dtype != np.uint8:
    raise UserError(f'{path}: {key} is of {images.dtype}, not uint8 (0 to '
                    f'255): {_AGAIN} as it was published')
  if images.ndim != 4 or images.shape[-1] != 3:
    raise UserError(f'{path}: {key} has the shape {shape}, not images x '
                    f'height x width x 3: {_AGAIN} as it was published')


def _check_ids(path, key, ids, num_images):
  """Raises UserError unless every row belongs to one class."""
  seen = np.zeros(num_images, np.int64)
  for wnid, of_class in ids.items():
    if any(not 0 <= i < num_images for i in of_class):
      raise UserError(f'{path}: class {wnid} has image {max(of_class)}, but '
                      f'there are {num_images}: {_AGAIN}')
    np.add.at(seen, of_class, 1)
    if (seen[of_class] > 1).any():
      again = next(i for i in of_class if seen[i] > 1)
      raise UserError(f'{path}: image {again} of class {wnid} is listed '
                      f'twice in {key}: {_AGAIN}')
  if not seen.all():
    raise UserError(f'{path}: {int((seen == 0).sum())} of {num_images} images '
                    f'are of no class in {key}: {_AGAIN}')


def load_cache(path):
  """Reads mini-imagenet-cache-SPLIT.pkl (Ren et al. 2018).

  Returns:
    images: uint8 [I, h, w, 3].
    ids: wnid -> rows of images, in the order of the file.

  Raises:
    UserError: anything else in the file.
  """
  images, class_dict = _load(path, 'image_data', 'class_dict')
  _check_images(path, 'image_data', images)
  if not isinstance(class_dict, dict):
    raise UserError(f'{path}: class_dict is a {type(class_dict).__name__}, '
                    f'not a dict: {_AGAIN}')
  try:
    ids = {_text(wnid): [int(i) for i in of_class]
           for wnid, of_class in class_dict.items()}
  except (TypeError, ValueError) as error:
    raise UserError(f'{path}: class_dict holds other things than lists of '
                    f'numbers ({first_line(error)}): {_AGAIN}') from error
  _check_ids(path, 'class_dict', ids, len(images))
  return images, ids


def load_category_split(path):
  """Reads miniImageNet_category_split_SPLIT.pickle (Gidaris & Komodakis 2018).

  Returns, raises: as `load_cache`.
  """
  images, labels, numbers = _load(path, 'data', 'labels', 'catname2label')
  _check_images(path, 'data', images)
  if len(labels) != len(images):
    raise UserError(f'{path}: {len(images)} images have {len(labels)} labels: '
                    f'{_AGAIN}')
  try:
    wnids = {int(number): _text(wnid) for wnid, number in numbers.items()}
    ids = collections.defaultdict(list)
    for i, label in enumerate(labels):
      ids[wnids[int(label)]].append(i)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f'{path}: labels and catname2label do not agree '
                    f'({first_line(error)}): {_AGAIN}') from error
  return images, dict(ids)
