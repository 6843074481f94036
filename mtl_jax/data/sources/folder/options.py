"""What a name says of a folder of images: PATH:seed=1,shares=60/20/20."""

import re
from typing import NamedTuple

from mtl_jax.errors import UserError

_OPTIONS = re.compile(r'(?s)(.+?):(\w+=[^=]*(?:,\w+=[^=]*)*)')


class Options(NamedTuple):
  """How the images of a folder are taken; see docs/own.md."""

  seed: int = 0  # of the split of the classes
  shares: tuple[float, ...] = (64, 16, 20)  # of classes for each split
  group: bool = False  # classes of one folder stay together
  merge: bool = False  # folders of splits hold the same classes
  least: int = 1  # images of a class, which is left out otherwise
  broken: bool = False  # images that cannot be read are left out
  size: int | None = None  # pixels of a side; None: chosen from the images
  list: str = ''  # file of a list, from the folder
  image: str = ''  # its column of names; '': found
  label: str = ''  # its column of classes; '': found


def divide(name):
  """Returns (path, text of the options) of a name."""
  match = _OPTIONS.fullmatch(name)
  return (match[1], match[2]) if match else (name, '')


def parse(text):
  """Returns the Options of a text such as 'seed=1,shares=60/20/20'.

  Raises:
    UserError: an unknown option, or a value that it may not have.
  """
  given = {}
  for part in filter(None, text.split(',')):
    name, _, value = part.partition('=')
    if name not in _READ:
      raise UserError(f'config.data.name: the option {name} is unknown: a '
                      f'folder of images has {", ".join(_READ)}')
    read, right = _READ[name]
    try:
      given[name] = read(value)
    except (ValueError, KeyError) as error:
      raise UserError(f'config.data.name: {name} is {value!r}: must be {right}'
                      ) from error
  return Options(**given)


def _shares(text):
  shares = tuple(float(part) for part in text.split('/'))
  if len(shares) != 3 or not all(0 < share < 1e9 for share in shares):
    raise ValueError
  return shares


def _at_least(least, most=2**31):
  def read(text):
    number = int(text)
    if not least <= number < most:
      raise ValueError
    return number
  return read


def _some(text):
  if not text:
    raise ValueError
  return text


_TRUTH = {'yes': True, 'no': False}.__getitem__, 'yes or no'
_NAME = _some, 'a name'
_READ = {
    'seed': (_at_least(0), 'a whole number from 0 on'),
    'shares': (_shares, 'three numbers above 0, such as 64/16/20'),
    'group': _TRUTH, 'merge': _TRUTH,
    'least': (_at_least(1), 'a whole number from 1 on'),
    'broken': ({'refuse': False, 'skip': True}.__getitem__, 'refuse or skip'),
    'size': (_at_least(8, 1025), 'a whole number from 8 to 1024'),
    'list': _NAME, 'image': _NAME, 'label': _NAME}
