"""The contract of a data source: what a data set must say about itself.

A source of your own is a Python file that defines SOURCE, a DataSource, and is
named by its path: `--config.data.name=PATH/mine.py`.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mtl_jax.data import pictures

SPLITS = ('train', 'validation', 'test')


class Example(NamedTuple):
  """An image of a split."""

  class_name: str  # of the classes of its split
  image: bytes  # an encoded picture of the source's shape; PNG is lossless
  text: str = ''  # what DataSource.text says, such as the name of its file


class Request(NamedTuple):
  """What is to be checked or built."""

  variant: str  # of DataSource.variants; '' where there are none
  folder: pathlib.Path | None  # of published files; None: the source has none
  options: Mapping[str, str]  # a value of every option
  scratch: pathlib.Path | None = None  # for large temporary files


class Checked(NamedTuple):
  """What a check has found."""

  lines: Iterable[str] = ()  # for the user
  files: Any = None  # handed on to `build`
  image_shape: tuple[int, int, int] | None = None  # where the source has none
  metadata: Mapping[str, str] = {}  # kept with the built data


class PublishedFile(NamedTuple):
  """A file that a user must put somewhere, or files whose names are alike.

  name: below any folder. {a,b} stands for two files, * for any text, and WNID
    for n and eight digits.
  size: bytes; None: not known.
  checksum: such as 'md5 0123..' or 'sha256 0123..'; '': not known.
  url: its address.
  note: what else the user must know.
  """

  name: str
  size: int | None = None
  checksum: str = ''
  url: str = ''
  note: str = ''


def what_to_put(layouts):
  """Returns which files a user must put into a folder, as part of a sentence.

  Args:
    layouts: as of a DataSource.
  """
  return ', or '.join(
      ' and '.join(file.name + f' ({file.note})' * bool(file.note)
                   for file in files) for files in layouts.values())


def names_of(classes, split):
  """Returns the names of the classes of a split, or of several: 'train+test'.

  Args:
    classes: split -> names.
    split: one of SPLITS, or several joined by '+' as TFDS joins them.
  """
  return [name for part in split.split('+') for name in classes[part]]


def labels(classes):
  """Returns the names of all classes as TFDS keeps them: lines of UTF-8.

  Args:
    classes: split -> names.
  """
  return [pictures.text(name) for name in names_of(classes, '+'.join(SPLITS))]


def nothing_to_check(request):
  """Returns what the check of a source without files has found: nothing."""
  del request
  return Checked()


class DataSource(NamedTuple):
  """A data set.

  name: of its folder among the built data sets; a user's gets another one.
  classes: (variant) -> split -> names of its classes [M], in the order of
    their labels, for each of SPLITS; a class has one split.
  build: (Request, Checked.files, split) -> the Examples of a split; the images
    of a class stay in this order.
  image_shape: (h, w, c) of every image, c 1 or 3; None: `check` says it.
  mean, std: of the training pixels / 255, [c]; None: measured once and kept
    with the built data.
  check: (Request) -> Checked, before anything is written. Raises UserError for
    what is missing or damaged, and says what mends it.
  variants: name -> what it is; the first is taken where none is named.
  put: what the user must put into the folder of published files, which
    config.data.manual_dir, --manual_dir or $MTL_JAX_MANUAL names; '': no files
    are needed.
  layouts: what each accepted form of these files is called -> its
    PublishedFiles, all of which are needed; `what_to_put` makes `put` of it.
  options: name -> Field with a text, given as --name=value when it is built.
  text: name of the text that each Example carries.
  version: after a change the data are built again.
  """

  name: str
  classes: Callable[[str], Mapping[str, tuple[str, ...]]]
  build: Callable[[Request, Any, str], Iterable[Example]]
  image_shape: tuple[int, int, int] | None
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  check: Callable[[Request], Checked] = nothing_to_check
  variants: Mapping[str, str] = {}
  put: str = ''
  layouts: Mapping[str, tuple[PublishedFile, ...]] = {}
  options: Mapping[str, Any] = {}
  text: str = 'file_name'
  version: str = '1.0.0'
  description: str = ''
  homepage: str = ''
  license: str = ''
