"""Reads the published lists of mini-ImageNet."""

import csv
import io
import pathlib

from mtl_jax.data import published
from mtl_jax.data.sources.imagenet.wanted import IMAGES, WNID
from mtl_jax.errors import UserError, first_line

LISTS = ('use the lists of Ravi & Larochelle (2017), not those of Vinyals et '
         'al.: data/miniImagenet of '
         'github.com/twitter-research/meta-learning-lstm')


def read_csv(file):
  """Returns the (class, name) rows of a published list.

  A column whose first value is a WordNet id has the classes, one whose first
  value ends like an image has the names; others, such as a row's number, are
  left out.

  Args:
    file: published.File.

  Raises:
    UserError: it has no such columns, or a row is not like the others.
  """
  path = file.path
  try:
    content = file.read()
  except published.ERRORS as error:
    raise UserError(f'{path} cannot be read ({first_line(error)}): fetch it '
                    'again') from error
  published.refuse_html(path, content[:200])
  try:
    header, *rows = csv.reader(io.StringIO(content.decode('utf-8-sig')))
  except (ValueError, csv.Error) as error:
    raise UserError(f'{path} is {"no CSV" if content else "empty"}: '
                    f'{LISTS}') from error
  if header[:2] == ['filename', 'class']:
    raise UserError(f'{path} is a list of Vinyals et al. (2016), columns '
                    f'filename,class, with other classes: {LISTS}')
  first = next(filter(None, rows), [])
  if None not in _columns(header):  # it has no header
    first, rows = header, [header, *rows]
  of_class, of_name = _columns(first)
  if None in (of_class, of_name) and len(first) == len(header):
    raise UserError(f'{path} begins with {",".join(header)[:60]!r} and '
                    f'{",".join(first)[:60]!r}, not with filename,label and '
                    f'the name of an image and its class: {LISTS}')
  pairs = []
  for number, row in enumerate(rows, 1 + (rows[0] is not header)):
    if len(row) == len(header):
      wnid = row[of_class].strip()
      name = pathlib.PurePosixPath(row[of_name].strip()).name
      if WNID.match(name) and not name.startswith(wnid):
        raise UserError(f'{path}, line {number}: image {name} has the label '
                        f'{wnid}: {LISTS}')
      pairs.append((wnid, name))
    elif row:
      raise UserError(f'{path}, line {number} has {len(row)} columns, not '
                      f'{len(header)}: {LISTS}')
  return pairs


def _columns(row):
  """Returns which column has a class, and which an image; None: none has."""
  of_class = [i for i, text in enumerate(row) if WNID.fullmatch(text.strip())]
  of_name = [i for i, text in enumerate(row)
             if text.strip().lower().endswith(IMAGES)]
  return (of_class or [None])[0], (of_name or [None])[0]
