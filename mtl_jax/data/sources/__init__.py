"""The data sets, by name: those of the package and a user's own.

`config.data.name` holds 'name' (its first variant) or 'name/variant' of
SOURCES, the path of a Python file that defines SOURCE, or the path of a folder
of images. A new data set is one file or folder here and one line in SOURCES.
"""

import hashlib
import os
import pathlib
import re
from typing import NamedTuple

from mtl_jax import files, registry
from mtl_jax.data.source import DataSource
from mtl_jax.data.sources import (
  cifar100,
  folder,
  glyphs,
  mini_imagenet,
  omniglot,
  tiered_imagenet,
)
from mtl_jax.data.sources.folder.options import divide, parse
from mtl_jax.errors import UserError, check_choice

SOURCES = {source.name: source for source in (
    glyphs.SOURCE, mini_imagenet.SOURCE, tiered_imagenet.SOURCE,
    omniglot.SOURCE, cifar100.CIFAR_FS, cifar100.FC100)}
FIELD = 'config.data.name'
_OWN = 'own_'


class Chosen(NamedTuple):
  """A source and the variant of it that a name means."""

  source: DataSource
  variant: str  # '' where the source has none


def names():
  """Returns all registered names, sorted."""
  return sorted(
      name if i == 0 else f'{name}/{variant}'
      for name, source in SOURCES.items()
      for i, variant in enumerate(source.variants or ('',)))


def find(name, field=FIELD, also=()):
  """Returns what a name means, as Chosen.

  Args:
    name: as `config.data.name`.
    field: that holds it, for messages.
    also: other values of the field, for messages.

  Raises:
    UserError: an unknown name, or a user's file that does not exist, cannot be
      run or defines no DataSource.
  """
  base, variant = _divided(name)
  if registry.is_own(base):
    source = registry.find(field, base, SOURCES, ('SOURCE',)).SOURCE
    if not isinstance(source, DataSource):
      raise UserError(f'{field}: SOURCE of {base} is of type '
                      f'{type(source).__name__}: must be a DataSource of '
                      'mtl_jax.data.source')
    source = source._replace(name=own_name(base))
  elif base in SOURCES:
    source = registry.find(field, base, SOURCES, ())
  elif name and files.at(name).is_dir():
    return Chosen(folder.source(files.at(name), own_name(name)), '')
  elif name and files.at(divide(name)[0]).is_dir():
    path, given = divide(name)
    return Chosen(folder.source(files.at(path), own_name(name),
                                parse(given)), '')
  else:
    check_choice(field, name, [
        *also, *names(), 'the path of a folder of images or of a .py file'])
  if variant:
    check_choice(field, name, [f'{base}/{known}' for known in source.variants])
  return Chosen(source, variant or next(iter(source.variants), ''))


def check_name(field, name, also=()):
  """Raises UserError unless `name` is a data set's, or one of `also`."""
  if name not in also:
    find(name, field, also)


def is_own(source):
  """Returns whether a source that `find` returned is a user's own."""
  return source.name.startswith(_OWN)


def own_name(path):
  """Returns the name of the built data of a user's file or folder.

  No registered name begins so, and another path gives another name.
  """
  path = os.fsencode(files.at(path))
  stem = re.sub(r'\W', '_', pathlib.PurePath(os.fsdecode(path)).stem,
                flags=re.ASCII)
  return f'{_OWN}{stem[:40]}_{hashlib.sha256(path).hexdigest()[:12]}'


def _divided(name):
  """Returns (path or registered name, variant)."""
  path, own, variant = name.rpartition(f'{registry.SUFFIX}/')
  if own:
    return path + registry.SUFFIX, variant
  if registry.is_own(name):
    return name, ''
  base, _, variant = name.partition('/')
  return base, variant
