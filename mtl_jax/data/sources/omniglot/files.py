"""Finds, checks and reads the published files of Omniglot."""

import pathlib
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax.data import pictures, published
from mtl_jax.data.source import PublishedFile
from mtl_jax.errors import UserError, first_line

HOMEPAGE = 'https://github.com/brendenlake/omniglot'
PUBLISHED_SIZE = 105
SIZE = 28
IMAGES_PER_CLASS = 20
# The filter of most published pipelines, such as those of MAML and iMAML.
# Pillow would ignore it on 1-bit images: they become grey first.
FILTER = Image.Resampling.LANCZOS
_CHARACTER = re.compile(r'character\d\d')

ZIPS = ('images_background', 'images_evaluation', 'images_background_small1',
        'images_background_small2')
# As in TFDS's list of checksums.
_PUBLISHED = tuple(
    PublishedFile(f'{name}.zip', size, f'sha256 {checksum}',
                  f'{HOMEPAGE}/raw/master/python/{name}.zip')
    for name, (size, checksum) in zip(ZIPS, (
        (9_464_212, 'ad41ab679c8b5d90b271ef46be6987cc'
         '81211774a695c29dcc5367b2b26ee640'),
        (6_462_886, '1f61a8f3366785b057fc117d9228e78a'
         '16e3d976c8953b2a10fcc74cf0609cee'),
        (1_319_022, 'f38eb80f801274ac2b4dff5b24289016'
         'bfaba4a7d5bb50deebf27104ad6cb8a4'),
        (1_580_917, '3ccaa407515a8778e5d0861875af38b1'
         '7e418f301ad5bb3b5a6b65d901a41c7f')), strict=True))
LAYOUTS = {
    'for omniglot, zips or what they unpack to': _PUBLISHED[2:],
    'for omniglot/vinyals and omniglot/lake': _PUBLISHED[:2],
}
SMALL = {
    'images_background_small1': (
        'Balinese', 'Early_Aramaic', 'Greek', 'Korean', 'Latin'),
    'images_background_small2': (
        'Greek', 'Japanese_(katakana)', 'Latin', 'Sanskrit', 'Tagalog'),
}


class Source(NamedTuple):
  """A folder of alphabets: a published zip, what it unpacks to, or another."""
  path: pathlib.Path  # of the zip, or of the folder
  name: str  # of ZIPS, '' for another
  drawings: dict[str, list[published.File]]  # 'Alphabet/characterNN' -> files


def read(folder, name, wanted, evaluation):
  """Reads the wanted characters.

  Args:
    folder: of the zips, or of what they unpack to, at any depth.
    name: of the data set, for messages.
    wanted: 'Alphabet/characterNN' -> split.
    evaluation: the alphabets of images_evaluation.zip, for messages.

  Returns:
    'Alphabet/characterNN' -> uint8 [20, 28, 28] in the order of the drawers,
    ink 255 on 0.

  Raises:
    UserError: no zip, a zip, character or drawing that is not as published.
  """
  sources = _find(folder, {c.split('/')[0] for c in wanted})
  held = {c.split('/')[0] for source in sources for c in source.drawings}
  missing = {c.split('/')[0]: split for c, split in wanted.items()
             if c.split('/')[0] not in held}
  if missing:
    raise UserError(_where_to_find(folder, name, missing, evaluation))
  return {character: _read_character(sources, character)
          for character in wanted}


def _find(folder, alphabets):
  """Returns the Sources that hold one of `alphabets`.

  Of the copies of a published zip, one in its own zip is taken, or else the
  nearest one.
  """
  found = published.look(folder, ('.png',))
  for path, what in found.damaged.items():
    if path.stem in ZIPS:
      raise UserError(f'{path} is {what}: {_again(path.stem, True)}')
  sources = {}
  for file in found.files:
    above = file.folder.parents[1]
    if file.folder.parent.name in alphabets and _CHARACTER.match(
        file.folder.name):
      source = sources.setdefault(above, Source(
          file.holder if file.zip else above, _published(folder, above), {}))
      source.drawings.setdefault('/'.join(file.folder.parts[-2:]), []).append(
          file)
  if not sources:
    raise UserError(
        f'{folder} holds none of {", ".join(f"{z}.zip" for z in ZIPS)}: '
        f'download them from {HOMEPAGE} (folder python) into it')
  chosen = {}
  for above, source in sorted(sources.items(), key=lambda item: (
      item[1].path.name not in (f'{z}.zip' for z in ZIPS),
      len(item[0].parts), item[0])):
    chosen.setdefault(source.name or above, source)
  return list(chosen.values())


def _published(folder, above):
  """Returns which of ZIPS the path of a folder of alphabets names, or ''."""
  names = [part.removesuffix('.zip') for part in above.parts[
      len(folder.parent.parts):]]
  return next((name for name in reversed(names) if name in ZIPS), '')


def _where_to_find(folder, name, missing, evaluation):
  """Returns the message about missing alphabets (with their split)."""
  def holders(alphabet):
    small = [z for z, alphabets in SMALL.items() if alphabet in alphabets]
    full = f'images_{"evaluation" if alphabet in evaluation else "background"}'
    return ' or '.join(f'{z}.zip' for z in (*small, full))

  listed = [f'{alphabet} ({split}; in {holders(alphabet)})'
            for alphabet, split in list(missing.items())[:3]]
  if len(missing) > 3:
    listed.append(f'{len(missing) - 3} more')
  return (f'{folder} holds no files of {len(missing)} alphabets of {name}: '
          f'{", ".join(listed)}: download from {HOMEPAGE} (folder python)')


def _read_character(sources, character):
  """Returns a character's images; copies in several zips must agree."""
  first = None
  for source in sources:
    drawings = source.drawings.get(character, [])
    # Who holds an alphabet holds all of its characters.
    if not drawings and not any(c.startswith(character.split('/')[0] + '/')
                                for c in source.drawings):
      continue
    if len(drawings) != IMAGES_PER_CLASS:
      raise UserError(
          f'{source.path}: {character} has {len(drawings)} drawings, not '
          f'{IMAGES_PER_CLASS}: {_again(source.name, _is_zip(source))}')
    images = np.stack([_read_drawing(source, file) for file in drawings])
    if first is None:
      first, first_path = images, source.path
    elif (images != first).any():
      raise UserError(f'{character} differs between {first_path} and '
                      f'{source.path}: '
                      + _again(source.name, _is_zip(source)))
  return first


def _read_drawing(source, file):
  """Returns a drawing, inverted and resized: uint8 [28, 28]."""
  where, again = file.path, _again(source.name, _is_zip(source))
  try:
    image = pictures.decode(file.image())
    paper = np.asarray(image.convert('L'))
  except (ValueError, *published.ERRORS) as error:
    raise UserError(f'{where} cannot be read ({first_line(error)}): {again}'
                    ) from error
  if paper.shape != (PUBLISHED_SIZE, PUBLISHED_SIZE):
    raise UserError(f'{where} is {image.width}x{image.height}, not '
                    f'{PUBLISHED_SIZE}x{PUBLISHED_SIZE}: {again}')
  # A published drawing is 81% to 98% paper.
  if paper.mean() < 255 / 2:
    raise UserError(
        f'{where} is white ink on black (mean {paper.mean() / 255:.2f}, '
        f'published is black on white): invert it, or {again}')
  resized = Image.fromarray(255 - paper).resize((SIZE, SIZE), FILTER)
  return np.asarray(resized)


def _is_zip(source):
  return source.path.suffix == '.zip'


def _again(name, is_zip):
  """Says how files are had anew; `name` of ZIPS, or ''."""
  if not name:
    return f'fetch the files again from {HOMEPAGE} (folder python)'
  return (f'download {name}.zip again from {HOMEPAGE} (folder python)'
          if is_zip else f'unpack {name}.zip again')
