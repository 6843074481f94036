"""Says which class of tiered-ImageNet a label in its pickles means.

The labels of a split are numbers in the order in which its makers listed their
folders. `label_specific_str` says what each number is called: a WordNet id, or
the name of class_names.txt, whose lines are those of synsets.txt.
"""

import collections

from mtl_jax.data import pickled, published
from mtl_jax.data.sources.imagenet.wanted import WNID
from mtl_jax.errors import UserError, first_line

_NUMBERS = ('label_specific', 'labels')
_STRINGS = 'label_specific_str'


def read(file, split, wanted, names, texts):
  """Returns wnid -> rows of the images of a split, in the order of the file.

  Args:
    file: published.File of the labels.
    split: that it is of.
    wanted: Wanted.
    names: wnid -> what the class is called.
    texts: published.Files of class_names.txt and synsets.txt, or None.

  Returns:
    The rows, and how many there are.

  Raises:
    UserError: damaged labels, or labels that name no classes.
  """
  content = pickled.value(file)
  key = next((key for key in _NUMBERS if isinstance(content, dict)
              and key in content), None)
  if key is None:
    raise UserError(f'{file.path} has no {" or ".join(_NUMBERS)}: fetch it '
                    'again')
  try:
    numbers = pickled.integers(content[key], 2**24)
  except Exception as error:  # values of any kind may lie in it
    raise UserError(f'{file.path}: {key} is no list of integers '
                    f'({first_line(error)}): fetch it again') from error
  if _STRINGS not in content:
    raise UserError(
        f'{file.path} has numbers for classes but no {_STRINGS}, so nothing '
        'says which class a number means: put the file of this name of Ren et '
        'al. (2018), which has it, in its place')
  strings = content[_STRINGS]
  if not isinstance(strings, list | tuple) or not all(
      isinstance(pickled.text(text), str) for text in strings):
    raise UserError(f'{file.path}: {_STRINGS} is no list of names: fetch it '
                    'again')
  wnids = _wnids(list(map(pickled.text, strings)), file.path, split,
                 wanted.classes[split], [*names.items(), *_pairs(texts)])
  rows = {wnid: [] for wnid in wnids}
  for row, number in enumerate(numbers):
    if not 0 <= number < len(wnids):
      raise UserError(f'{file.path}: {key} has {number}, but {_STRINGS} has '
                      f'{len(wnids)} names: fetch it again')
    rows[wnids[number]].append(row)
  return rows, len(numbers)


def _pairs(texts):
  """Returns (wnid, name) of the lines of synsets.txt and class_names.txt."""
  if texts is None:
    return []
  lines = []
  for file in texts:
    try:
      lines.append(file.read().decode('utf-8', 'replace').splitlines())
    except published.ERRORS as error:
      raise UserError(f'{file.path} cannot be read ({first_line(error)}): '
                      'fetch it again') from error
  if len(lines[0]) != len(lines[1]):
    raise UserError(f'{texts[0].path} has {len(lines[0])} lines, but '
                    f'{texts[1].path} has {len(lines[1])}: fetch both again')
  return [(wnid.strip(), name.strip())
          for name, wnid in zip(*lines, strict=True)]


def _wnids(strings, path, split, classes, pairs):
  """Returns the wnids that texts mean, of which none is meant twice."""
  known = collections.defaultdict(set)
  for wnid, name in pairs:
    if wnid in classes:
      known[_plain(name)].add(wnid)
      known[_plain(name.split(',')[0])].add(wnid)
  wnids = []
  for text in strings:
    means = {text} if WNID.fullmatch(text) else known.get(_plain(text), ())
    if len(means) != 1:
      raise UserError(
          f'{path}: {_STRINGS} has {text[:40]!r}, which is the name of '
          f'{"several classes" if means else "no class"} of the {split} '
          'split: put class_names.txt and synsets.txt of Ren et al. (2018) '
          'beside it')
    wnids += means
  twice = [wnid for wnid, n in collections.Counter(wnids).items() if n > 1]
  if twice:
    raise UserError(f'{path}: two names of {_STRINGS} mean class {twice[0]}: '
                    'fetch it again')
  return wnids


def _plain(name):
  return ' '.join(name.lower().replace('_', ' ').split())
