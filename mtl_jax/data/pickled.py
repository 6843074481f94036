"""Reads pickles of published images without running their code."""

import numpy as np

from mtl_jax import unpickle
from mtl_jax.data import published
from mtl_jax.errors import UserError, first_line

AGAIN = 'fetch the file again'


def text(key):
  """Returns a key as text; Python 2 wrote bytes."""
  return key.decode('latin1') if isinstance(key, bytes) else key


def load(file, *wanted):
  """Returns the values of some keys of the dict in a pickle.

  Args:
    file: published.File.
    *wanted: the keys, as text.

  Raises:
    UserError: the file is no such pickle.
  """
  content = value(file)
  if not isinstance(content, dict):
    raise UserError(f'{file.path} holds a {type(content).__name__}, not a dict '
                    f'with {", ".join(wanted)}: {AGAIN} from where it was '
                    'published')
  missing = [key for key in wanted if key not in content]
  if missing:
    raise UserError(f'{file.path} lacks {missing[0]} (it has '
                    f'{", ".join(map(repr, content))[:80]}): {AGAIN}')
  return [content[key] for key in wanted]


def value(file, large=False, scratch=None):
  """Returns what a pickle holds; of a dict, the keys are text.

  Args:
    file: published.File.
    large: whether to map the file into memory and not to read it.
    scratch: as of published.mapped.

  Raises:
    UserError: the file cannot be read, or is no pickle of plain values.
  """
  path = file.path
  try:
    data = published.mapped(file, scratch) if large else file.read()
    published.refuse_html(path, bytes(data[:200]))
    content = unpickle.load(data)
    if isinstance(content, dict):
      content = {text(key): unpickle.plain(x) for key, x in content.items()}
    return content
  except UserError as error:
    raise (error if str(error).startswith(str(path)) else
           UserError(f'{path} {error}: {AGAIN} from where it was published')
           ) from error
  except OSError as error:
    raise UserError(f'{path} cannot be read ({first_line(error)}): make it '
                    f'readable, or {AGAIN}') from error
  except MemoryError as error:
    raise UserError(f'{path} does not fit into memory: use a layout of single '
                    'images, which are read one by one') from error
  except Exception as error:  # damaged bytes may raise anything
    raise UserError(f'{path} cannot be unpickled ({first_line(error)}): it '
                    f'was cut short or damaged, {AGAIN}') from error


def check_images(path, key, images):
  """Raises UserError unless images are uint8 [I, h, w, 3].

  Args:
    path, key: of the file and of the array in it, for messages.
    images: what it holds.
  """
  if not isinstance(images, np.ndarray):
    raise UserError(f'{path}: {key} is a {type(images).__name__}, not an '
                    f'array: {AGAIN}')
  shape = 'x'.join(map(str, images.shape))
  if images.dtype != np.uint8:
    raise UserError(f'{path}: {key} is of {images.dtype}, not uint8 (0 to '
                    f'255): {AGAIN} as it was published')
  if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
    raise UserError(f'{path}: {key} has the shape {shape}, not images x '
                    f'height x width x 3: {AGAIN} as it was published')


def integers(values, most):
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
