"""Read pictures safely: any image file becomes an array.

`decode` reads all of them: the published files of data sets, their built
records and a user's own pictures. The last become images like those that a
backbone was trained on.

    support/cat/*.jpg support/dog/*.jpg      a folder for each class
    query/*.jpg, or query/cat/*.jpg ..       unlabelled, or labelled
"""

import concurrent.futures
import io
import os
import warnings
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from mtl_jax.errors import UserError, first_line

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.tif', '.tiff', '.ppm',
            '.pgm', '.webp')
_READABLE = f'images are {", ".join(SUFFIXES)}'
# Whatever a file is called, no other decoder of Pillow's is tried: some of
# them start programs.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'TIFF', 'PPM', 'WEBP')


class Unreadable(ValueError):
  """Says in one line why a picture cannot be decoded."""


class NoImage(Unreadable):
  """The bytes are no picture of a known format."""


class Files(NamedTuple):
  """Image files, and the folder of each where folders are classes."""

  paths: list  # [I]
  labels: list  # [I], name of the class, or None
  notices: list[str]  # what was left out


class Pictures(NamedTuple):
  """Images as the backbone takes them."""

  files: list[str]  # [I]
  images: np.ndarray  # uint8 [I, h, w, c]
  labels: np.ndarray  # int32 [I] in 0..N-1; -1 where not known, or another
  classes: tuple[str, ...]  # [N]
  names: list  # [I], the class as its folder has it, or None


def decode(source):
  """Decodes a picture safely: every reader of pictures calls this.

  Args:
    source: encoded bytes, or an open file of them.

  Returns:
    Pillow's image, loaded, in its own mode and size.

  Raises:
    NoImage: it has none of the formats in _FORMATS.
    Unreadable: it is truncated or damaged, or has more than 179 million pixels,
      which Pillow takes for a decompression bomb.
  """
  try:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes)
                       else source, formats=_FORMATS)
    image.load()
    return image
  except Image.UnidentifiedImageError as error:
    raise NoImage('it is no image') from error
  except Exception as error:  # decoders raise what they like
    raise Unreadable(first_line(error)) from error


def png(pixels, compress_level=6):
  """Encodes uint8 [h, w], [h, w, 1] or [h, w, 3] as the bytes of a PNG."""
  if pixels.shape[2:] == (1,):
    pixels = pixels[..., 0]
  encoded = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(pixels)).save(
      encoded, 'PNG', compress_level=compress_level)
  return encoded.getvalue()


def read_support(folder, image_shape, *, invert=False):
  """Reads labelled images: Pictures, classes in the order of their names.

  Args:
    folder: with a sub-folder of images for each class.
    image_shape: (h, w, c) to bring them to, see `prepare`.
    invert: as in `prepare`.

  Raises:
    UserError: as `list_support` and `prepare`.
  """
  files = list_support(folder)
  return load(files, sorted(set(files.labels)), image_shape, invert=invert)


def read_query(query, classes, image_shape, *, invert=False):
  """Reads images to be classified: Pictures, with `labels` where known.

  Args:
    query: a folder, or a list of folders and files.
    classes: of the support.
    image_shape, invert: as in `read_support`.

  Raises:
    UserError: as `list_query` and `prepare`.
  """
  return load(list_query(query), classes, image_shape, invert=invert)


def load(files, classes, image_shape, *, invert=False):
  """Reads what `list_support` or `list_query` found, in threads."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Pillow's, about files it reads anyway
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      images = list(pool.map(
          lambda path: prepare(path, image_shape, invert=invert), files.paths))
  number = {name: i for i, name in enumerate(classes)}
  return Pictures(
      [str(path) for path in files.paths], np.stack(images),
      np.array([number.get(name, -1) for name in files.labels], np.int32),
      tuple(classes), files.labels)


def list_support(folder):
  """Finds the images of a support folder: Files, sorted by class and name.

  Raises:
    UserError: no such folder, fewer than two sub-folders, one without images.
  """
  folder = _folder('--support', folder)
  subfolders = subfolders_of(folder)
  wanted = 'it must hold one folder of images for each class'
  if not subfolders:
    raise UserError(f'--support {folder} has no folders in it: {wanted}')
  if len(subfolders) == 1:
    raise UserError(f'--support {folder} has one class only, '
                    f'{subfolders[0].name!r}: {wanted}, at least two')
  paths, labels, notices = [], [], []
  for subfolder in subfolders:
    images, others = images_of(subfolder)
    if not images:
      raise UserError(f'--support {folder}: the class {subfolder.name!r} has '
                      'no images directly in its folder'
                      f'{_such_as(others, " but others")} ({_READABLE})')
    paths += images
    labels += [subfolder.name] * len(images)
    notices += left_out(subfolder, others)
  loose = [path for path in folder.iterdir() if _is_image(path)]
  if loose:
    notices.append(f'--support {folder}: {len(loose)} images lie beside the '
                   f'class folders and were left out{_such_as(loose)}')
  return Files(paths, labels, notices)


def list_query(query):
  """Finds images to be classified: Files, sorted within each folder.

  Those in a sub-folder have its name for a label.

  Raises:
    UserError: a path does not exist, or there is no image.
  """
  given = [query] if isinstance(query, str | os.PathLike) else query
  paths, labels, notices = [], [], []
  for path in map(epath.Path, given):
    if path.is_file():
      paths.append(path)
      labels.append(None)
      continue
    folder = _folder('--query', path)
    for label, place in [(None, folder)] + [
        (subfolder.name, subfolder) for subfolder in subfolders_of(folder)]:
      images, others = images_of(place)
      paths += images
      labels += [label] * len(images)
      notices += left_out(place, others)
      if label and not images:
        notices.append(f'{place} has no images directly in it: left out')
  if not paths:
    raise UserError(f'--query {", ".join(map(str, given))} has no images, '
                    f'directly or in its folders ({_READABLE}): name a folder '
                    'of images, or files')
  return Files(paths, labels, notices)


def prepare(path, image_shape, *, invert=False):
  """Reads one picture as uint8 [h, w, c].

  The picture is turned as its EXIF orientation says, laid on white where it is
  transparent, and converted to grey (1 channel, ITU-R 601 weights) or RGB (3).
  Its largest centred part of the wanted shape is resized by LANCZOS. An image
  that has the wanted size and channels is not changed.

  Args:
    path: the file.
    image_shape: (h, w, c).
    invert: exchange black and white.

  Raises:
    UserError: not readable, truncated, or pixels without a range.
  """
  height, width, channels = image_shape
  image = upright(path)
  try:
    image = _flat(image).convert({1: 'L', 3: 'RGB'}[channels])
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    image = ImageOps.invert(image) if invert else image
    return np.asarray(image, np.uint8).reshape(image_shape)
  except Exception as error:  # Pillow raises what it likes
    raise _cannot_read(path, error) from error


def upright(path):
  """Returns Pillow's image of a file, turned as its EXIF orientation says.

  Raises:
    UserError: not readable, truncated, or pixels without a range.
  """
  try:
    with epath.Path(path).open('rb') as file:
      image = ImageOps.exif_transpose(decode(file))
    if image.mode == 'F':
      raise Unreadable('pixels are floats: save it with 8 bits per channel')
    return image
  except NoImage as error:
    raise UserError(f'{path} is no image that can be read ({_READABLE}): '
                    'replace or remove it') from error
  except Exception as error:  # Pillow raises what it likes
    raise _cannot_read(path, error) from error


def _cannot_read(path, error):
  return UserError(f'{path} cannot be read ({first_line(error)}): replace or '
                   'remove it')


def look_inverted(images, mean):
  """Finds dark ink on white where the training images were ink on black.

  Args:
    images: uint8 [I, h, w, c].
    mean: of the training pixels / 255, [c]; ink on black has a low one.

  Returns:
    bool [I]; all False unless the network was trained on ink on black.
  """
  if images.shape[-1] != 1 or mean[0] >= 0.5:
    return np.zeros(len(images), bool)
  border = np.concatenate([
      images[:, 0, :, 0], images[:, -1, :, 0], images[:, :, 0, 0],
      images[:, :, -1, 0]], axis=1)
  return np.median(border, axis=1) > 127


def _flat(image):
  """Returns an image of 8 bits per channel without transparency."""
  if image.mode.startswith('I'):  # 16 bits, also where Pillow says 32
    eight = np.clip(np.asarray(image).astype(np.int64) // 256, 0, 255)
    return Image.fromarray(eight.astype(np.uint8))
  if not image.has_transparency_data:
    return image
  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image).convert('RGB')


def _folder(flag, path):
  path = epath.Path(path)
  if not path.exists():
    raise UserError(f'{flag} {path} is not there: name a folder of images')
  if not path.is_dir():
    raise UserError(f'{flag} {path} is no folder: name a folder of images')
  try:
    list(path.iterdir())
  except OSError as error:
    raise UserError(f'{flag} {path} cannot be read ({error.strerror}): make it '
                    'readable, or name another folder') from error
  return path


def subfolders_of(folder):
  """Returns the folders in a folder, sorted, without hidden ones."""
  return [path for path in _listed(folder) if path.is_dir()]


def _is_image(path):
  return (path.suffix.lower() in SUFFIXES and path.is_file()
          and not path.name.startswith('.'))


def images_of(folder):
  """Returns (images, other files) of a folder, sorted, without hidden ones."""
  files = [path for path in _listed(folder) if path.is_file()]
  return ([path for path in files if _is_image(path)],
          [path for path in files if not _is_image(path)])


def _listed(folder):
  try:
    return sorted(path for path in folder.iterdir()
                  if not path.name.startswith('.'))
  except OSError as error:
    raise UserError(f'{folder} cannot be read ({error.strerror}): make it '
                    'readable, or remove it') from error


def left_out(folder, others):
  """Returns [a line on the files that are no images], or [] without any."""
  if not others:
    return []
  return [f'{folder}: {len(others)} files are no images by their names and '
          f'were left out{_such_as(others)}']


def _such_as(paths, before=''):
  return f',{before} such as {sorted(paths)[0].name}' if paths else ''
