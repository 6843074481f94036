"""What the files of a data set must hold, and whether they hold it."""

import collections
import re
from collections.abc import Mapping
from typing import NamedTuple

from mtl_jax.errors import UserError

WNID = re.compile(r'n\d{8}')
IMAGES = ('.jpg', '.jpeg', '.png')


class Wanted(NamedTuple):
  """What the files must hold."""

  name: str  # of the data set
  classes: Mapping[str, tuple[str, ...]]  # split -> wnids, as the labels
  sizes: Mapping[str, int] | None  # wnid -> its images; None: any number
  put: str  # which files the user must put there
  lists: str  # which lists are the right ones
  whole: str = ''  # where a class may get too many images from


def check(rows, where, wanted):
  """Raises UserError unless (class, name) rows are those of the data set.

  Args:
    rows: split -> [(wnid, file name)]; names may be ''.
    where: split -> what to call the list in a message.
    wanted: what must be in it.
  """
  counts = {split: collections.Counter(wnid for wnid, _ in of_split)
            for split, of_split in rows.items()}
  owner = {wnid: split for split, wnids in wanted.classes.items()
           for wnid in wnids}
  seen = {}
  for split, of_split in counts.items():
    for wnid in of_split:
      if wnid in seen:
        raise UserError(f'class {wnid} is in {where[seen[wnid]]} and in '
                        f'{where[split]}: a class has one split; '
                        f'{wanted.lists}')
      seen[wnid] = split
  for split, of_split in counts.items():
    classes = wanted.classes[split]
    foreign = sorted(set(of_split) - set(classes))
    if foreign:
      of = owner.get(foreign[0])
      raise UserError(
          f'{where[split]} has class {foreign[0]}, which is of '
          + (f'the {of} split' if of else 'no split')
          + f' ({len(foreign)} such): {wanted.lists}')
    missing = [wnid for wnid in classes if wnid not in of_split]
    if missing:
      raise UserError(
          f'{where[split]} lacks class {missing[0]} ({len(missing)} of '
          f'{len(classes)} classes are missing): fetch it again, whole')
  names = set()
  for split, of_split in rows.items():
    for wnid, name in of_split:
      if name and name in names:
        raise UserError(f'{where[split]}: image {name} of class {wnid} is '
                        f'listed twice: an image has one line; {wanted.lists}')
      names.add(name)
  for split, of_split in counts.items() if wanted.sizes is not None else ():
    for wnid in wanted.classes[split]:
      if of_split[wnid] != wanted.sizes[wnid]:
        raise UserError(
            f'{where[split]}: class {wnid} has {of_split[wnid]} images, not '
            f'{wanted.sizes[wnid]}: fetch it again, whole{wanted.whole}')
