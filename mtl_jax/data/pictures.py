"""Read pictures safely: any image file becomes an array.

`decode` reads all of them: the published files of data sets, their built
records and a user's own pictures. The last become images like those that a
backbone was trained on.

    support/cat/*.jpg support/dog/*.jpg      a folder for each class
    query/*.jpg, or query/cat/*.jpg ..       unlabelled, or labelled
"""

import collections
import concurrent.futures
import contextlib
import io
import os
import warnings
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image, ImageOps, JpegImagePlugin

from mtl_jax import progress
from mtl_jax.errors import UserError, first_line

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.tif', '.tiff', '.ppm',
            '.pgm', '.webp')
_READABLE = f'images are {", ".join(SUFFIXES)}'
# Whatever a file is called, no other decoder of Pillow's is tried: some of
# them start programs.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'GIF', 'TIFF', 'PPM', 'WEBP')
LARGE = 32_000_000  # pixels; a larger picture is shrunk before all else
_AT_ONCE = 64_000_000  # pixels that all threads decode at a time
_DECODED = 1_200_000_000  # bytes that one picture may take
_ENCODED = 2**26  # bytes of one in a zip, which may unpack to any number
_FINER = 8  # how many times the wanted size a shrunk picture has, at least
_MODES = {1: 'L', 3: 'RGB'}  # by channels
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 0x0102, 0x0106  # tags
_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations


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
  guessed: list = ()  # [I], bits per pixel where they had to be guessed


def decode(source):
  """Decodes a picture of a data set safely, at most LARGE pixels.

  Args:
    source: encoded bytes, or an open file of them.

  Returns:
    Pillow's image, loaded, in its own mode and size.

  Raises:
    NoImage: it has none of the formats in _FORMATS.
    Unreadable: it is truncated or damaged, or has too many pixels.
  """
  try:
    image = _open(source)
    pixels = image.width * image.height
    if pixels > LARGE:
      raise Unreadable(f'it has {pixels} pixels, more than {LARGE}')
    image.load()
    return image
  except Image.UnidentifiedImageError as error:
    raise NoImage('it is no image') from error
  except Exception as error:  # decoders raise what they like
    raise Unreadable(first_line(error)) from error


def encoded(open_file):
  """Returns the bytes of a picture.

  Args:
    open_file: () -> the open file; that of a zip may unpack to any number.

  Raises:
    Unreadable: there are more than 64 MiB.
  """
  with open_file() as file:
    content = file.read(_ENCODED + 1)
  if len(content) > _ENCODED:
    raise Unreadable(f'it has more than {_ENCODED >> 20} MiB')
  return content


def _open(source):
  """Returns Pillow's image, of which only the head has been read.

  All pictures of all data are opened here.
  """
  return Image.open(io.BytesIO(source) if isinstance(source, bytes)
                    else source, formats=_FORMATS)


def shape(content):
  """Returns (h, w, c) of an encoded picture of 8 bits, as its head says.

  Raises:
    NoImage: it has none of the formats in _FORMATS, or its numbers are no
      brightness in 0..255: 1 or 16 bits, or numbers of a palette.
  """
  try:
    image = _open(content)
  except Image.UnidentifiedImageError as error:
    raise NoImage('it is no image') from error
  if image.mode in ('1', 'P', 'PA') or image.mode[0] in 'IF':
    raise NoImage(f'it has the mode {image.mode}, not grey or colour of 8 bits')
  return (image.height, image.width, len(image.getbands()))


def png(pixels, compress_level=6):
  """Encodes uint8 [h, w], [h, w, 1] or [h, w, 3] as the bytes of a PNG."""
  encoded = io.BytesIO()
  _of_pixels(pixels).save(encoded, 'PNG', compress_level=compress_level)
  return encoded.getvalue()


def _of_pixels(pixels):
  """Returns uint8 [h, w], [h, w, 1] or [h, w, 3] as Pillow's image."""
  if pixels.shape[2:] == (1,):
    pixels = pixels[..., 0]
  return Image.fromarray(np.ascontiguousarray(pixels))


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


def load(files, classes, image_shape, *, invert=False, show=False):
  """Reads what `list_support` or `list_query` found, in threads.

  Args:
    files: Files.
    classes: whose places are the labels.
    image_shape, invert: as in `prepare`.
    show: whether a terminal may show the progress.

  Raises:
    UserError: as `prepare`.
  """
  one = lambda path: prepare_and_guess(path, image_shape, invert=invert)
  images, bits = zip(*in_threads(one, files.paths, show), strict=True)
  number = {name: i for i, name in enumerate(classes)}
  return Pictures(
      [text(path) for path in files.paths], np.stack(images),
      np.array([number.get(name, -1) for name in files.labels], np.int32),
      tuple(classes), files.labels, bits)


def in_threads(function, paths, show=False):
  """Returns [function(path), ..] of files of pictures.

  Large pictures are read one at a time, and others by so few threads that they
  need no more memory than those.

  Args:
    function: that decodes a picture, such as `prepare`.
    paths: of the files.
    show: whether a terminal may show the progress.

  Raises:
    UserError: as `prepare`.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Pillow's, about files it reads anyway
    pixels = {path: pixels_of(path) for path in paths}
    small = [path for path in pixels if pixels[path] <= LARGE]
    most = max((pixels[path] for path in small), default=1)
    workers = max(1, min(os.cpu_count(), _AT_ONCE // max(most, 1)))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      done = progress.each(pool.map(function, small), 'reading',
                           total=len(small), show=show)
      read = dict(zip(small, done, strict=True))
    large = [path for path in pixels if path not in read]
    read |= {path: function(path) for path in progress.each(
        large, 'reading large pictures', show=show and large)}
  return [read[path] for path in paths]


def guesses(paths, bits):
  """Returns a line for each number of bits that was guessed.

  Args:
    paths: of images.
    bits: of each the guess, None without one.
  """
  return [
      f'{count} images have 16 bits or more per pixel and use {guess} of them, '
      f'such as {text(paths[bits.index(guess)])}: they were read as {guess} '
      'bits, or they would be nearly black'
      for guess, count in sorted(collections.Counter(
          filter(None, bits)).items())]


def text(path):
  r"""Returns a name or a path as text that can be printed and drawn.

  Bytes that are no UTF-8, line breaks and other signs without a shape become
  escapes such as \xe9 and \n.
  """
  name = os.fsencode(path).decode('utf-8', 'backslashreplace')
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


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
    labels += [text(subfolder.name)] * len(images)
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
  for path in map(_at, given):
    if path.is_file():
      paths.append(path)
      labels.append(None)
      continue
    folder = _folder('--query', path)
    for label, place in [(None, folder)] + [
        (text(subfolder.name), subfolder)
        for subfolder in subfolders_of(folder)]:
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


def list_below(flag, folder):
  """Finds all images of a folder, at any depth: Files.

  The label of an image is the path of its own folder within `folder`.

  Args:
    flag: that names the folder, for messages.
    folder: path.

  Raises:
    UserError: no such folder, or no image in it.
  """
  folder = os.fspath(_folder(flag, folder))
  paths = list(below(folder))
  if not paths:
    raise UserError(f'{flag} {text(folder)} has no images, directly or in its '
                    f'folders ({_READABLE})')
  own = lambda path: os.path.relpath(os.path.dirname(path), folder)
  return Files(paths, [text(own(path)).removeprefix('.') for path in paths], [])


def prepare(path, image_shape, *, invert=False):
  """Reads one picture as uint8 [h, w, c].

  The picture is turned as its EXIF orientation says, laid on white where it is
  transparent, and converted to grey (1 channel, ITU-R 601 weights) or RGB (3).
  Its largest centred part of the wanted shape is resized by LANCZOS. An image
  that has the wanted size and channels is not changed. A picture of more than
  LARGE pixels is first shrunk to eight times the wanted size or more, by means
  over blocks of pixels.

  Args:
    path: the file.
    image_shape: (h, w, c).
    invert: exchange black and white.

  Raises:
    UserError: not readable, truncated, too large, or pixels without a range.
  """
  return prepare_and_guess(path, image_shape, invert=invert)[0]


def prepare_and_guess(path, image_shape, *, invert=False):
  """Returns `prepare`, and the bits per pixel where they had to be guessed."""
  with _readable(path) as file:
    image = _open_any_size(file)
    if image.width * image.height > LARGE:
      image, bits, guessed = _shrunk(
          image, _MODES[image_shape[2]], image_shape[1::-1])
      image = ImageOps.exif_transpose(image)
    else:
      image.load()
      bits, guessed = _bits(image)
      image = _flat(ImageOps.exif_transpose(image), bits)
    pixels = _fit(image, image_shape, invert)
  return pixels, bits if guessed else None


def fit(pixels, image_shape, *, invert=False):
  """Brings uint8 [h, w, c] to another (h, w, c), as `prepare` does."""
  return _fit(_of_pixels(pixels), image_shape, invert)


def _fit(image, image_shape, invert):
  """Returns an image of 8 bits per channel as uint8 [h, w, c]."""
  height, width, channels = image_shape
  image = ImageOps.fit(image.convert(_MODES[channels]), (width, height),
                       Image.Resampling.LANCZOS)
  image = ImageOps.invert(image) if invert else image
  return np.asarray(image, np.uint8).reshape(image_shape)


def pixels_of(path):
  """Returns the number of pixels of a file, which its head states.

  Raises:
    UserError: as `prepare`.
  """
  with _readable(path) as file:
    image = _open_any_size(file)
    return image.width * image.height


def _open_any_size(file):
  """Returns `_open` of a file; a JPEG may be larger than Pillow allows."""
  try:
    return _open(file)
  except Image.DecompressionBombError as error:
    file.seek(0)
    if file.read(2) != b'\xff\xd8':
      raise Unreadable('it has more than 179 million pixels, which only a JPEG '
                       'may have') from error
    file.seek(0)
    return JpegImagePlugin.JpegImageFile(file)


def _shrunk(image, mode, size):
  """Loads and shrinks a large picture.

  Args:
    image: of `_open_any_size`.
    mode: to convert it to, L or RGB.
    size: (w, h) that it will be resized to.

  Returns:
    (image, *`_bits`).

  Raises:
    Unreadable: it takes more than _DECODED bytes.
  """
  width, height = (_FINER * side for side in size)
  taken = _coefficients(image)
  if isinstance(image, JpegImagePlugin.JpegImageFile):
    image.draft(None, (width, height))  # decodes every eighth pixel, or so
  each = {'1': 1, 'L': 1, 'P': 1, 'I;16': 2}.get(image.mode, 4)
  # WebP's decoder keeps several copies.
  each = 16 if image.format == 'WEBP' else each
  taken += each * image.width * image.height
  if taken > _DECODED:
    raise Unreadable(f'it would take {taken / 1e9:.1f} GB: save it smaller, or '
                     'as a JPEG that is not progressive')
  image.load()
  bits = _bits(image)
  factor = max(1, min(image.width // width, image.height // height))
  small = Image.new(mode, (-(-image.width // factor),
                           -(-image.height // factor)))
  rows = factor * max(1, 1_000_000 // (factor * image.width))
  for top in range(0, image.height, rows):
    band = image.crop((0, top, image.width, min(top + rows, image.height)))
    small.paste(_flat(band, bits[0]).convert(mode).reduce(factor),
                (0, top // factor))
  small.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
  return small, *bits


def _coefficients(image):
  """Returns the bytes of what a progressive JPEG keeps of all its pixels."""
  if not image.info.get('progressive'):
    return 0
  samples = [across * down for _, across, down, _ in image.layer]
  return 2 * image.width * image.height * sum(samples) / max(samples)


def look(path, image_shape):
  """Decodes a picture as `prepare` does; returns what it is.

  Height and width are those of the file, turned as its EXIF orientation says.

  Args:
    path: the file.
    image_shape: (h, w, c) that it may be brought to.

  Returns:
    (h, w, whether it is grey, bits per pixel where they had to be guessed).

  Raises:
    UserError: as `prepare`.
  """
  with _readable(path) as file:
    image = _open_any_size(file)
    height, width, mode = image.height, image.width, image.mode
    if width * height > LARGE:
      _, bits, guessed = _shrunk(image, 'L', image_shape[1::-1])
    else:
      image.load()
      bits, guessed = _bits(image)
    if image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
      height, width = width, height
  grey = mode in ('1', 'L', 'LA') or mode.startswith('I')
  return height, width, grey, bits if guessed else None


@contextlib.contextmanager
def _readable(path):
  """Yields an open file; UserError for whatever is raised while it is read."""
  try:
    # One that waits for its writer, as a FIFO, would never end.
    if os.path.exists(path) and not os.path.isfile(path):
      raise NoImage('no regular file')
    with epath.Path(path).open('rb') as file:
      yield file
  except (NoImage, Image.UnidentifiedImageError) as error:
    raise UserError(f'{text(path)} is no image that can be read ({_READABLE}): '
                    'replace or remove it') from error
  except Exception as error:  # Pillow raises what it likes
    raise UserError(f'{text(path)} cannot be read ({first_line(error)}): '
                    'replace or remove it') from error


def _bits(image):
  """Returns (bits per pixel that an image uses, whether that is a guess).

  A TIFF may hold the 12 bits of a camera in 16 and not say so. If its largest
  value fits into 8, 12 or 14 bits, we take it for an image of so many.

  Raises:
    Unreadable: floats or large integers, which have no range; or 16 bits of
      which the largest is black.
  """
  if image.mode == 'F':
    raise Unreadable('pixels are floats: save it with 8 bits per channel')
  if not image.mode.startswith('I'):
    _check_depth(image)
    return 8, False
  if image.format != 'TIFF':
    return 16, False  # also where Pillow says 32
  if image.tag_v2.get(_PHOTOMETRIC) == 0:  # Pillow turns 8 bits, not these
    raise Unreadable('its largest value is black: save it with 8 bits, or '
                     'with black as zero')
  stated = image.tag_v2.get(_BITS, (16,))[0]
  if stated < 16:
    return stated, False
  values = np.asarray(image)  # Pillow finds no extrema of big-endian ones
  least, most = int(values.min()), int(values.max())
  if least < 0 or most >= 2**16:
    raise Unreadable('pixels are integers of 32 bits: save it with 8 or 16 '
                     'bits per channel')
  bits = next(bits for bits in (8, 12, 14, 16) if most < 2**bits)
  return (bits, True) if 0 < most and bits < 16 else (16, False)


def _check_depth(image):
  """Raises Unreadable where only the empty bits of colours were read.

  Of 16 bits per channel Pillow keeps the upper 8.
  """
  if image.format != 'TIFF' or image.tag_v2.get(_BITS, (8,))[0] != 16:
    return
  most = max(np.ravel(image.getextrema()))
  if 0 < most < 2**4:
    raise Unreadable('it uses 12 of its 16 bits per channel: save it with 8')


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


def _flat(image, bits):
  """Returns an image of 8 bits per channel without transparency."""
  if image.mode.startswith('I'):
    eight = np.asarray(image).astype(np.int64) // 2**(bits - 8)
    return Image.fromarray(np.clip(eight, 0, 255).astype(np.uint8))
  if not image.has_transparency_data:
    return image
  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image).convert('RGB')


def _at(path):
  """Returns the epath of what a user named; `~` is the home folder."""
  return epath.Path(os.path.expanduser(path))


def _folder(flag, path):
  path = _at(path)
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
  """Returns (images, other files) of a folder, sorted, without hidden ones.

  A link to a file that is gone is among the others.
  """
  images, others = [], []
  for path in _listed(folder):
    if not path.is_dir():
      (images if _is_image(path) else others).append(path)
  return images, others


def below(folder):
  """Yields the paths of images in a folder at any depth, sorted by folder.

  Hidden files and folders are left out, and links to folders not followed.
  """
  for place, folders, names in os.walk(folder):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    yield from (os.path.join(place, name) for name in sorted(names)
                if name.lower().endswith(SUFFIXES)
                and not name.startswith('.'))


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
  return [f'{folder}: {len(others)} files are no images by their names, or '
          f'links to nothing, and were left out{_such_as(others)}']


def _such_as(paths, before=''):
  return f',{before} such as {sorted(paths)[0].name}' if paths else ''
