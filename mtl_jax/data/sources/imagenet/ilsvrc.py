"""The training images of ILSVRC-2012 themselves: their numbers, their names."""

import functools
import json
import pathlib
import re

from mtl_jax.data.source import PublishedFile

# As in TFDS's list of checksums.
TAR = PublishedFile(
    'ILSVRC2012_img_train.tar', 147_897_477_120,
    'sha256 b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb',
    note='the training images of ILSVRC-2012; or the tars in it, or '
    'WNID/*.JPEG')
_SIZES_FILE = pathlib.Path(__file__).parents[2] / 'splits/ilsvrc_2012.json'
MOST = 1300  # images of a class, and of most classes
# n01532829_123.JPEG is image 123 of its class; the numbers have gaps.
NAME = re.compile(r'(n\d{8})_(\d{1,9})\.jpe?g', re.IGNORECASE)


@functools.cache
def _sizes():
  return json.loads(_SIZES_FILE.read_text(encoding='utf-8'))['images']


def sizes(wnids):
  """Returns wnid -> number of its training images in ILSVRC-2012."""
  return {wnid: _sizes().get(wnid, MOST) for wnid in wnids}
