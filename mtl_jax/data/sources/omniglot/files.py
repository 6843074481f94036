"""Finds, checks and reads the published files of Omniglot."""

import collections
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_jax import files
from mtl_jax.data import pictures
from mtl_jax.errors import UserError, first_line

HOMEPAGE = 'https://github.com/brendenlake/omniglot'
PUBLISHED_SIZE = 105
SIZE = 28
IMAGES_PER_CLASS = 20
# The filter of most published pipelines, such as those of MAML and iMAML.
# Pillow would ignore it on 1-bit images: they become grey first.
FILTER = Image.Resampling.LANCZOS

ZIPS = ('images_background', 'images_evaluation', 'images_background_small1',
        'images_background_small2')
SMALL = {
    'images_background_small1': (
        'Balinese', 'Early_Aramaic', 'Greek', 'Korean', 'Latin'),
    'images_background_small2': (
        'Greek', 'Japanese_(katakana)', 'Latin', 'Sanskrit', 'Tagalog'),
}


class Source(NamedTuple):
  """A published zip, or the folder that it unpacks to."""
  path: pathlib.Path
  drawings: dict[str, list[str]]  # 'Alphabet/characterNN' -> names of files
  read: Callable[[str], bytes]


def read(folder, name, wanted, evaluation):
  """Reads the wanted characters.

  Args:
    folder: of the zips.
    name: of the data set, for messages.
    wanted: 'Alphabet/characterNN' -> split.
    evaluation: the alphabets of images_evaluation.zip, for messages.

  Returns:
    'Alphabet/characterNN' -> uint8 [20, 28, 28] in the order of the drawers,
    ink 255 on 0.

  Raises:
    UserError: no zip, a zip, character or drawing that is not as published.
  """
  sources = [_open(path) for path in _find(folder)]
  held = {c.split('/')[0] for source in sources for c in source.drawings}
  missing = {c.split('/')[0]: split for c, split in wanted.items()
             if c.split('/')[0] not in held}
  if missing:
    raise UserError(_where_to_find(folder, name, missing, evaluation))
  return {character: _read_character(sources, character)
          for character in wanted}


def _find(folder):
  """Returns the path of each published zip that exists, or of its folder."""
  paths = []
  for name in ZIPS:
    candidates = [path for pattern in (
        f'{name}.zip', f'*/{name}.zip', name, f'*/{name}')
        for path in sorted(folder.glob(pattern))]
    paths += candidates[:1]
  if not paths:
    raise UserError(
        f'{folder} holds none of {", ".join(f"{z}.zip" for z in ZIPS)}: '
        f'download them from {HOMEPAGE} (folder python) into it')
  return paths


def _open(path):
  """Returns the Source of a zip or folder."""
  if path.is_dir():
    names = [str(p.relative_to(path)) for p in path.rglob('*.png')]
    open_file = lambda name: open(path / name, 'rb')
  else:
    try:
      archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
      raise UserError(f'{path} is {_what_else(path, error)}: download it again '
                      f'from {HOMEPAGE} (folder python)') from error
    names, open_file = archive.namelist(), archive.open
  drawings = collections.defaultdict(list)
  for name in sorted(names):
    parts = pathlib.PurePath(name).parts
    # An archiver's own files, such as __MACOSX/._0108_01.png, are no drawings.
    if name.endswith('.png') and len(parts) > 2 and parts[-1][0] != '.':
      drawings['/'.join(parts[-3:-1])].append(name)
  return Source(path, dict(drawings), lambda name: pictures.encoded(
      lambda: open_file(name)))


def _what_else(path, error):
  """Says what a file is that should be a zip."""
  if isinstance(error, OSError):
    return f'not readable ({first_line(error)})'
  with open(path, 'rb') as file:
    start = file.read(512)
  if files.is_html(start):
    return 'an HTML page, not a zip'
  size = f'{path.stat().st_size:,} bytes'
  return (f'a zip that is cut off ({size})' if start.startswith(b'PK') else
          f'not a zip ({size})')


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
    names = source.drawings.get(character, [])
    # A zip that holds an alphabet holds all of its characters.
    if not names and not any(c.startswith(character.split('/')[0] + '/')
                             for c in source.drawings):
      continue
    if len(names) != IMAGES_PER_CLASS:
      raise UserError(
          f'{source.path}: {character} has {len(names)} drawings, not '
          f'{IMAGES_PER_CLASS}: {_again(source)}')
    images = np.stack([_read_drawing(source, name) for name in names])
    if first is None:
      first, first_path = images, source.path
    elif (images != first).any():
      raise UserError(f'{character} differs between {first_path} and '
                      f'{source.path}: {_again(source)}')
  return first


def _read_drawing(source, name):
  """Returns a drawing, inverted and resized: uint8 [28, 28]."""
  where = source.path / name
  try:
    image = pictures.decode(source.read(name))
    paper = np.asarray(image.convert('L'))
  except (OSError, ValueError, RuntimeError, EOFError, zlib.error,
          zipfile.BadZipFile) as error:
    raise UserError(f'{where} cannot be read ({first_line(error)}): '
                    f'{_again(source)}') from error
  if paper.shape != (PUBLISHED_SIZE, PUBLISHED_SIZE):
    raise UserError(f'{where} is {image.width}x{image.height}, not '
                    f'{PUBLISHED_SIZE}x{PUBLISHED_SIZE}: {_again(source)}')
  # A published drawing is 81% to 98% paper.
  if paper.mean() < 255 / 2:
    raise UserError(
        f'{where} is white ink on black (mean {paper.mean() / 255:.2f}, '
        f'published is black on white): invert it, or {_again(source)}')
  resized = Image.fromarray(255 - paper).resize((SIZE, SIZE), FILTER)
  return np.asarray(resized)


def _again(source):
  name = source.path.name.removesuffix('.zip')
  return (f'download {name}.zip again from {HOMEPAGE} (folder python)' if
          source.path.suffix == '.zip' else f'unpack {name}.zip again')
