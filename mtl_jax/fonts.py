"""Fonts for the signs of names: Matplotlib's own, then those of the system.

Matplotlib is imported where it is needed: nothing else here takes as long.
"""

import functools
import itertools
import os

from PIL import ImageFont

# Fonts that have a box for every sign.
_WITHOUT_SHAPES = ('lastresort', 'adobeblank', 'notdef')


@functools.cache
def own():
  """Returns the path of the font that comes with Matplotlib."""
  import matplotlib
  return os.path.join(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf')


@functools.cache
def of(sign):
  """Returns the path of a font that holds a sign, or None.

  Of several fonts the one with the most signs is taken, upright and without
  serifs if possible, so that the signs of a script have one font.
  """
  if ord(sign) in _signs(own()):
    return own()
  return next((path for path in _system() if ord(sign) in _signs(path)), None)


@functools.cache
def _signs(path):
  """Returns the code points that a font holds; none if it cannot be used."""
  from matplotlib import ft2font
  try:
    ImageFont.truetype(path, 13).getlength('')  # some have fixed sizes only
    return frozenset(ft2font.FT2Font(path).get_charmap())
  except (OSError, RuntimeError, ValueError):
    return frozenset()


@functools.cache
def _system():
  """Returns the paths of the fonts of this system, the best first."""
  from matplotlib import font_manager

  def rank(path):
    name = os.path.basename(path).lower()
    return (any(style in name for style in ('bold', 'italic', 'oblique',
                                            'light', 'black', 'thin', 'mono')),
            'serif' in name and 'sans' not in name, -len(_signs(path)), path)

  return sorted(
      (path for path in font_manager.findSystemFonts()
       if not any(word in os.path.basename(path).lower()
                  for word in _WITHOUT_SHAPES)), key=rank)


def families(texts):
  """Returns the families of fonts for texts, as Matplotlib takes them."""
  from matplotlib import font_manager
  paths = dict.fromkeys([own(), *filter(None, map(of, sorted(set(
      ''.join(texts)))))])
  return [_family(path, font_manager.fontManager) for path in paths]


@functools.cache
def _family(path, manager):
  from matplotlib import ft2font
  manager.addfont(path)
  return ft2font.FT2Font(path).family_name


def shown(text):
  r"""Returns a text as it can be drawn: signs without a font as \u732b."""
  return ''.join(sign if of(sign) else ascii(sign)[1:-1] for sign in text)


def notices(texts):
  """Returns [a line on signs that no font holds], or []."""
  missing = [text for text in texts if shown(text) != text]
  if not missing:
    return []
  return [f'{len(missing)} names, such as {missing[0]}, have signs that no '
          f'font of this system has: pictures show {shown(missing[0])}; '
          'install a font that has them, such as Noto Sans CJK']


def length(text, size):
  """Returns the pixels of a text from left to right."""
  return sum(_sized(path, size).getlength(part) for path, part in _runs(text))


def write(draw, place, text, colour, size):
  """Draws a text by Pillow, its upper left corner at `place`.

  `text` may be a tuple of texts, drawn from left to right, whichever way the
  script of each runs.
  """
  left, top = place
  baseline = top + _sized(own(), size).getmetrics()[0]
  for part in text if isinstance(text, tuple) else (text,):
    for path, run in _runs(part):
      draw.text((left, baseline), run, colour, _sized(path, size), anchor='ls')
      left += _sized(path, size).getlength(run)


def fit(text, width, size):
  """Returns a text of at most `width` pixels, shortened in the middle."""
  for count in range(len(text), 0, -1):
    cut = short(text, count)
    if length(cut, size) <= width:
      return cut
  return text[:1]


def short(text, count):
  """Returns at most `count` characters: both ends, where names differ."""
  if len(text) <= count:
    return text
  tail = (count - 1) // 2
  return f'{text[:count - 1 - tail]}…{text[len(text) - tail:]}'


@functools.cache
def _sized(path, size):
  return ImageFont.truetype(path, size)


def _runs(text):
  """Yields (path of a font, part of the text that it draws)."""
  for path, signs in itertools.groupby(shown(text), of):
    yield path, ''.join(signs)
