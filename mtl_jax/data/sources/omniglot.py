"""The data set `omniglot`: handwritten characters of 50 alphabets.

Read from the published zips (Lake, Salakhutdinov & Tenenbaum, Science 2015),
which omniglot_files.py finds and checks. See docs/omniglot.md.
"""

import dataclasses
import io
import json
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from mtl_jax.data.sources import omniglot_files as files
from mtl_jax.errors import UserError

SPLITS = ('train', 'validation', 'test')
# Quarter turns, counter-clockwise, that are further classes in training.
TURNS = (1, 2, 3)

_LISTS = json.loads((pathlib.Path(__file__).parent.parent / 'splits'
                     / 'omniglot.json').read_text(encoding='utf-8'))


def _characters():
  """Returns alphabet -> its characters, over the whole of Omniglot."""
  found = {}
  for of_split in _LISTS['splits'].values():
    for alphabet, characters in of_split.items():
      found.setdefault(alphabet, []).extend(characters)
  return {a: tuple(sorted(found[a])) for a in sorted(found)}


CHARACTERS = _characters()
BACKGROUND = tuple(_LISTS['lake_split']['background_alphabets'])
EVALUATION = tuple(_LISTS['lake_split']['evaluation_alphabets'])
_LAKE_VALIDATION = ('Armenian', 'Bengali', 'Early_Aramaic', 'Hebrew',
                    'Mkhedruli_(Georgian)')


def _vinyals(split):
  """Returns the characters of the split in use since Vinyals et al. 2016."""
  return tuple(f'{alphabet}/{character}' for alphabet, characters
               in _LISTS['splits'][split].items() for character in characters)


@dataclasses.dataclass(kw_only=True)
class OmniglotConfig(tfds.core.BuilderConfig):
  """What each split holds: alphabets, or characters as 'Greek/character03'."""
  train: tuple[str, ...]
  validation: tuple[str, ...]
  test: tuple[str, ...]


class Class(NamedTuple):
  """A class of the data set."""
  name: str  # 'Greek/character03' or, turned, 'Greek/character03/rot090'
  split: str
  character: str
  turns: int  # quarter turns


class Omniglot(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of `omniglot`: 20 images a class, 28x28, ink 255 on 0.

  Args:
    manual_dir: folder with the published zips; None: $MTL_JAX_MANUAL.
    file_format: of TFDS; array_record needs no TensorFlow.
    **kwargs: of GeneratorBasedBuilder, among them `config` and `data_dir`.

  Raises:
    UserError: a split that cannot be meant; when it builds, files that are
      missing or damaged.
  """

  VERSION = tfds.core.Version('1.0.0')
  # A new split is a new entry here.
  BUILDER_CONFIGS = [
      OmniglotConfig(
          name='small',
          description='The alphabets of the two small background sets.',
          train=('Balinese', 'Early_Aramaic', 'Korean'),
          validation=('Greek', 'Latin'),
          test=('Japanese_(katakana)', 'Sanskrit', 'Tagalog')),
      OmniglotConfig(
          name='vinyals',
          description='By character, 1028 / 172 / 423 before rotation.',
          train=_vinyals('train'), validation=_vinyals('val'),
          test=_vinyals('test')),
      OmniglotConfig(
          name='lake',
          description='By alphabet, tested on the evaluation set.',
          train=tuple(a for a in BACKGROUND if a not in _LAKE_VALIDATION),
          validation=_LAKE_VALIDATION, test=EVALUATION),
  ]
  # TFDS would look for the file through a package that it does not require.
  code_path = epath.Path(__file__)
  # Nobody normalises it.
  MEAN = (0.,)
  STD = (1.,)

  def __init__(self, *, manual_dir=None, file_format='array_record', **kwargs):
    self._manual_dir = manual_dir
    self._images = None  # of every character, once they are read
    super().__init__(file_format=file_format, **kwargs)

  def classes(self) -> list[Class]:
    """Lists the classes of this config in the order of their labels."""
    config, found, split_of = self.builder_config, [], {}
    for split in SPLITS:
      for character in sorted(_expand(config, split)):
        if character in split_of:
          raise UserError(
              f'omniglot/{config.name}: {character} is in the splits '
              f'{split_of[character]} and {split}: take it out of one')
        split_of[character] = split
        found.append(Class(character, split, character, 0))
        found += [Class(f'{character}/rot{90 * turns:03d}', split, character,
                        turns) for turns in TURNS if split == 'train']
    return found

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Characters drawn by 20 people each, split so that those '
                    'of validation and test are never seen in training.',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(
                shape=(files.SIZE, files.SIZE, 1)),
            'label': tfds.features.ClassLabel(
                names=[c.name for c in self.classes()]),
            'alphabet': tfds.features.Text(),
        }),
        supervised_keys=('image', 'label'),
        homepage=files.HOMEPAGE,
        license='MIT',
        disable_shuffling=True,
    )

  def check_source(self):
    """Reads and checks all drawings, before anything is written."""
    if self._images is None:
      self._images = files.read(
          self._manual_dir, f'omniglot/{self.builder_config.name}',
          {c.character: c.split for c in self.classes()}, EVALUATION)

  def _split_generators(self, dl_manager):
    del dl_manager  # downloaded by hand
    self.check_source()
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split):
    for label, found in enumerate(self.classes()):
      if found.split != split:
        continue
      for number, image in enumerate(self._images[found.character]):
        yield label * files.IMAGES_PER_CLASS + number, {
            'image': _png(np.rot90(image, found.turns)),
            'label': label,
            'alphabet': found.character.split('/')[0],
        }


def _expand(config, split):
  """Yields the characters of a split's entries."""
  for entry in getattr(config, split):
    alphabet, _, character = entry.partition('/')
    known = CHARACTERS.get(alphabet, ())
    if not known or (character and character not in known):
      raise UserError(
          f'omniglot/{config.name}: the {split} split names {entry!r}: '
          + (f'{alphabet} has character01 to {known[-1]}' if known else
             'Omniglot has no such alphabet, see data/splits/omniglot.json'))
    yield from ([entry] if character else
                [f'{alphabet}/{one}' for one in known])


def _png(image: np.ndarray) -> io.BytesIO:
  """Encodes [h, w]; TFDS needs TensorFlow only to encode arrays itself."""
  encoded = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(encoded, 'PNG')
  encoded.seek(0)
  return encoded
