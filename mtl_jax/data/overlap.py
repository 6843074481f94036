"""Which classes of a data set were trained on in another data set.

A class is known by its name: mini-ImageNet and tiered-ImageNet name classes by
their WordNet ids, CIFAR-FS and FC100 by those of CIFAR-100, and the splits of
Omniglot by alphabet and character. Names say little in a user's own data, so
their images are compared, too.
"""

import numpy as np

from mtl_jax.data import checking, sources
from mtl_jax.data.sources import omniglot
from mtl_jax.errors import UserError

_ALPHABETS = {'glyphs', 'omniglot'}  # classes are 'alphabet/letter'


def by_name(tested, trained):
  """Returns the tested classes that were trained on, by their names.

  In Omniglot a turned character is this character. Glyphs and Omniglot draw the
  same letters, but Omniglot does not say which one a character is. Between the
  two a class counts as trained on if its alphabet is: 'Greek', or 'Georgian' of
  glyphs and 'Mkhedruli_(Georgian)'.

  Args:
    tested, trained: (name of a data set, names of its classes).
  """
  (tested_name, tested_classes), (trained_name, trained_classes) = (
      tested, trained)
  bases = {name.partition('/')[0] for name in (tested_name, trained_name)}
  known_as = (_script if bases == _ALPHABETS else
              omniglot.character_of if bases == {'omniglot'} else str)
  known = set(map(known_as, trained_classes))
  return tuple(name for name in tested_classes if known_as(name) in known)


def by_image(tested, trained):
  """Returns the tested classes with an image that was trained on.

  Args:
    tested, trained: Stores with images of one shape; equal are those whose
      pixels are.
  """
  same = np.isin(checking.exact(tested.images), checking.exact(trained.images))
  labels = np.searchsorted(tested.offsets, np.flatnonzero(same), 'right') - 1
  return tuple(tested.class_names[label] for label in np.unique(labels))


def is_own(name):
  """Returns whether a name is not that of a registered data set."""
  try:
    return sources.is_own(sources.find(name).source)
  except UserError:  # a folder or file that is gone
    return True


def _script(name):
  """Returns what names an alphabet in glyphs and in Omniglot."""
  alphabet = name.partition('/')[0]
  # 'Old_Church_Slavonic_(Cyrillic)', 'Malay_(Jawi_-_Arabic)', and Cree and
  # others as 'Blackfoot_(Canadian_Aboriginal_Syllabics)'.
  words = alphabet.rpartition('(')[2].rstrip(')').split('_')
  return words[0] if words[0] == 'Canadian' else words[-1]
