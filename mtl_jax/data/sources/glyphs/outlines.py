"""Which letters form a class, and which split a class is in.

The letters are those of the DejaVu faces that matplotlib ships. Alphabets
borrow each other's shapes (Latin A, Cyrillic A and Greek Alpha are one
drawing), so a split by alphabet alone would show shapes of the training split
again at test time. Letters whose outlines agree in any face are therefore one
class, and a class is in one split.
"""

import collections
import functools
import pathlib
import unicodedata
from typing import NamedTuple

import numpy as np

from mtl_jax import errors

MIN_FACES = 4
# Without Lm: modifier letters are small copies of other letters.
CATEGORIES = ('Lu', 'Ll', 'Lt', 'Lo')
# Alphabets by the words that start the Unicode names of their letters. A shared
# outline belongs to the first alphabet that has it.
SPLITS = {  # in the order of data/source.py
    'train': ('LATIN', 'GREEK', 'CYRILLIC', 'CANADIAN SYLLABICS', 'ARABIC',
              'LISU'),
    'validation': ('GEORGIAN', 'OLD ITALIC', 'COPTIC'),
    'test': ('ARMENIAN', 'HEBREW', 'LAO'),
}
_ALPHABETS = [(split, words) for split in SPLITS for words in SPLITS[split]]


class GlyphClass(NamedTuple):
  """A class: the letter that is drawn, and all letters of its outline."""
  split: str
  alphabet: str
  letter: str
  letters: tuple[str, ...]

  @property
  def name(self) -> str:
    """Names the class as in 'Latin/U+0041'."""
    return f'{self.alphabet}/U+{ord(self.letter):04X}'


@functools.lru_cache(maxsize=1)
def faces() -> dict[str, pathlib.Path]:
  """Finds the DejaVu faces of the installed matplotlib, sorted by name."""
  import matplotlib  # takes a while, and most commands need no letter
  folder = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf')
  fonts = {file.stem: file for file in sorted(folder.glob('DejaVu*.ttf'))}
  if len(fonts) < MIN_FACES:
    raise errors.UserError(
        f'{folder} has {len(fonts)} of the DejaVu faces that matplotlib '
        f'ships; glyphs needs {MIN_FACES}: install matplotlib with pip')
  return fonts


@functools.cache
def _font(face: str):
  from matplotlib import ft2font
  return ft2font.FT2Font(str(faces()[face]))


@functools.cache
def _characters(face: str) -> frozenset[str]:
  return frozenset(map(chr, _font(face).get_charmap()))


def outline(face: str, letter: str) -> bytes:
  """Returns the unhinted outline as a key that ignores its position.

  The key holds the sorted points (on the curve and control points) in font
  units, counted from the corner of their bounding box: two letters have the
  same key when one is the other moved, in whatever order their contours are
  stored. An empty glyph gives b''.
  """
  from matplotlib import ft2font, path
  font = _font(face)
  font.load_char(ord(letter), flags=ft2font.LoadFlags.NO_SCALE)
  points, codes = font.get_path()
  points = points[codes != path.Path.CLOSEPOLY]  # has no coordinates
  if not len(points):
    return b''
  units = np.rint((points - points.min(axis=0)) * 64).astype(np.int64)
  return np.sort((units[:, 0] << 32) + units[:, 1]).tobytes()


def _rank(letter: str) -> int | None:
  name = unicodedata.name(letter, '')
  for rank, (_, words) in enumerate(_ALPHABETS):
    if name.startswith(words + ' '):
      return rank
  return None


@functools.lru_cache(maxsize=1)
def letters() -> dict[str, int]:
  """Lists the letters of at least MIN_FACES faces, with their alphabet.

  Returns:
    letter -> position of its alphabet in the order of `SPLITS`, the letters
    sorted by alphabet, then code point.
  """
  counts = collections.Counter(c for face in faces() for c in _characters(face))
  ranks = {c: _rank(c) for c, n in counts.items()
           if n >= MIN_FACES and unicodedata.category(c) in CATEGORIES}
  return dict(sorted(((c, r) for c, r in ranks.items() if r is not None),
                     key=lambda item: (item[1], item[0])))


@functools.lru_cache(maxsize=1)
def _scan():
  """Returns letter -> faces, and the pairs of letters that share an outline."""
  drawn, pairs = collections.defaultdict(list), []
  for face in faces():
    first = {}
    for letter in letters():
      key = outline(face, letter) if letter in _characters(face) else b''
      if key:
        drawn[letter].append(face)
        pairs.append((first.setdefault(key, letter), letter))
  return {c: tuple(f) for c, f in drawn.items()}, pairs


def faces_of(letter: str) -> tuple[str, ...]:
  """Lists the faces that have the letter, with an outline."""
  return _scan()[0][letter]


def _groups(items, pairs):
  """Groups `items` that `pairs` connect; a group keeps the order of items."""
  parent = {item: item for item in items}

  def root(item):
    while parent[item] != item:
      parent[item] = item = parent[parent[item]]
    return item

  for a, b in pairs:
    parent[root(b)] = root(a)
  groups = collections.defaultdict(list)
  for item in items:
    groups[root(item)].append(item)
  return list(groups.values())


@functools.lru_cache(maxsize=1)
def classes() -> tuple[GlyphClass, ...]:
  """Lists all classes, sorted by split (train, validation, test) and name."""
  ranks = letters()
  drawn, pairs = _scan()
  glyphs = []
  for group in _groups([c for c in ranks if c in drawn], pairs):
    # The first letter is of the group's first alphabet: see `letters`.
    split, words = _ALPHABETS[ranks[group[0]]]
    alphabet = words.capitalize().replace(' ', '_')
    glyphs.append(GlyphClass(split, alphabet, group[0], tuple(group)))
  order = list(SPLITS)
  return tuple(sorted(glyphs, key=lambda c: (order.index(c.split), c.name)))
