"""The data set `omniglot`: handwritten characters of 50 alphabets.

Read from the published zips (Lake, Salakhutdinov & Tenenbaum, Science 2015),
which files.py finds and checks. See docs/omniglot.md.
"""

import json
import pathlib
import re
from typing import NamedTuple

import numpy as np

from mtl_jax.data import pictures
from mtl_jax.data.source import SPLITS, Checked, DataSource, Example
from mtl_jax.data.sources.omniglot import files
from mtl_jax.errors import UserError

# Quarter turns, counter-clockwise, that are further classes in training.
TURNS = (1, 2, 3)

_LISTS = json.loads((pathlib.Path(__file__).parents[2] / 'splits'
                     / 'omniglot.json').read_text(encoding='utf-8'))


def _characters():
  """Returns alphabet -> its characters, over the whole of Omniglot."""
  of_alphabet = {}
  for of_split in _LISTS['splits'].values():
    for alphabet, characters in of_split.items():
      of_alphabet.setdefault(alphabet, []).extend(characters)
  return {a: tuple(sorted(of_alphabet[a])) for a in sorted(of_alphabet)}


CHARACTERS = _characters()
BACKGROUND = tuple(_LISTS['lake_split']['background_alphabets'])
EVALUATION = tuple(_LISTS['lake_split']['evaluation_alphabets'])
_LAKE_VALIDATION = ('Armenian', 'Bengali', 'Early_Aramaic', 'Hebrew',
                    'Mkhedruli_(Georgian)')


def _vinyals(split):
  """Returns the characters of the split in use since Vinyals et al. 2016."""
  return tuple(f'{alphabet}/{character}' for alphabet, characters
               in _LISTS['splits'][split].items() for character in characters)


class Variant(NamedTuple):
  """What each split holds: alphabets, or characters as 'Greek/character03'."""
  description: str
  train: tuple[str, ...]
  validation: tuple[str, ...]
  test: tuple[str, ...]
  turned: bool = True  # whether turns of a character are classes in training


# A new split is a new entry here.
VARIANTS = {
    'small': Variant(
        'The alphabets of the two small background sets.',
        train=('Balinese', 'Early_Aramaic', 'Korean'),
        validation=('Greek', 'Latin'),
        test=('Japanese_(katakana)', 'Sanskrit', 'Tagalog')),
    'vinyals': Variant(
        'By character, 1028 / 172 / 423 before rotation.',
        train=_vinyals('train'), validation=_vinyals('val'),
        test=_vinyals('test')),
    'lake': Variant(
        'By alphabet, tested on the evaluation set.',
        train=tuple(a for a in BACKGROUND if a not in _LAKE_VALIDATION),
        validation=_LAKE_VALIDATION, test=EVALUATION),
}
VARIANTS |= {f'{name}_upright': variant._replace(
    description=f'{variant.description[:-1]}; no turned classes.', turned=False)
             for name, variant in VARIANTS.items()}


class Class(NamedTuple):
  """A class of the data set."""
  name: str  # 'Greek/character03' or, turned, 'Greek/character03/rot090'
  split: str
  character: str
  turns: int  # quarter turns


def character_of(name):
  """Returns the character of a class, turned or not, by the class' name."""
  return re.sub(r'/rot\d{3}$', '', name)


def turned_classes(variant):
  """Returns the Classes of a variant in the order of their labels.

  Raises:
    UserError: an entry that Omniglot does not have, or that is in two splits.
  """
  classes, split_of = [], {}
  for split in SPLITS:
    for character in sorted(_expand(variant, split)):
      if character in split_of:
        raise UserError(
            f'omniglot/{variant}: {character} is in the splits '
            f'{split_of[character]} and {split}: take it out of one')
      split_of[character] = split
      classes.append(Class(character, split, character, 0))
      if split == 'train' and VARIANTS[variant].turned:
        classes += [Class(f'{character}/rot{90 * turns:03d}', split, character,
                          turns) for turns in TURNS]
  return classes


def _classes(variant):
  return {split: tuple(c.name for c in turned_classes(variant)
                       if c.split == split) for split in SPLITS}


def _check(request):
  """Reads and checks all drawings."""
  wanted = {c.character: c.split for c in turned_classes(request.variant)}
  return Checked(files=files.read(
      request.folder, f'omniglot/{request.variant}', wanted, EVALUATION))


def _build(request, images, split):
  for c in turned_classes(request.variant):
    if c.split == split:
      for image in images[c.character]:
        yield Example(c.name, pictures.png(np.rot90(image, c.turns)),
                      c.character.split('/')[0])


def _expand(variant, split):
  """Yields the characters of a split's entries."""
  for entry in getattr(VARIANTS[variant], split):
    alphabet, _, character = entry.partition('/')
    known = CHARACTERS.get(alphabet, ())
    if not known or (character and character not in known):
      raise UserError(
          f'omniglot/{variant}: the {split} split names {entry!r}: '
          + (f'{alphabet} has character01 to {known[-1]}' if known else
             'Omniglot has no such alphabet, see data/splits/omniglot.json'))
    yield from ([entry] if character else
                [f'{alphabet}/{name}' for name in known])


SOURCE = DataSource(
    name='omniglot',
    classes=_classes,
    build=_build,
    image_shape=(files.SIZE, files.SIZE, 1),
    # Published pipelines do not normalise it.
    mean=(0.,),
    std=(1.,),
    check=_check,
    variants={name: variant.description for name, variant in VARIANTS.items()},
    put=f'the zips of {files.HOMEPAGE} (folder python): for the default '
        'images_background_small1.zip and images_background_small2.zip',
    layouts=files.LAYOUTS,
    text='alphabet',
    description='Characters drawn by 20 people each, split so that those of '
                'validation and test are never seen in training.',
    homepage=files.HOMEPAGE,
    license='MIT')
