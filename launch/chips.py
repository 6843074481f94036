"""Figures of accelerators, as their makers publish them.

A figure is what a chip can do at most: no program reaches all of it.
"""

import math
from typing import NamedTuple


class Chip(NamedTuple):
  """One chip.

  flops: products and sums per second, bfloat16 with sums in float32, dense.
  memory: bytes.
  bandwidth: bytes per second of its memory.
  links: bytes per second that all its links to other chips send.
  hop: seconds from a chip to its neighbour; an assumption.
  """

  flops: float
  memory: float
  bandwidth: float
  links: float
  hop: float = 1e-6


# TPUs: the pages of the versions in Google Cloud's documentation. A device of
# JAX is a chip in all of these. H100: NVIDIA's data sheet of the SXM5 card.
CHIPS = {
    'v4': Chip(275e12, 32 * 2**30, 1228e9, 2400e9 / 8),
    'v5e': Chip(197e12, 16 * 2**30, 819e9, 1600e9 / 8),
    'v6e': Chip(918e12, 32 * 2**30, 1640e9, 3200e9 / 8),
    'h100': Chip(989e12, 80e9, 3352e9, 450e9),
}


def all_reduce_seconds(chip, count, size):
  """Returns the least time of an all-reduce.

  Every chip sends each byte about twice, in a ring. Half of its links are
  taken to be in use at a time. The way around a torus has two edges of the
  square root of the number of chips.

  Args:
    chip: Chip.
    count: of chips.
    size: bytes that each chip has.
  """
  if count == 1:
    return 0.
  hops = 2 * 2 * math.sqrt(count)
  return 2 * size * (count - 1) / count / (chip.links / 2) + hops * chip.hop
