"""Writes a user's own data sets: a file that defines SOURCE, and a folder."""

import numpy as np
from PIL import Image

SPLITS = ('train', 'validation', 'test')
CLASSES = {split: tuple(f'{split}_{name}' for name in 'abcdef')
           for split in SPLITS}
IMAGES = 6  # of each class
SHAPE = (20, 24, 3)

FILE = '''
import numpy as np
from mtl_jax.data import pictures
from mtl_jax.data.source import Checked, DataSource, Example
from mtl_jax.fields import Field

CLASSES = {classes}

def check(request):
  return Checked(['strength ' + request.options['strength']], 'files')

def build(request, files, split):
  assert files == 'files', files
  for m, name in enumerate(CLASSES[split]):
    for i in range({images}):
      value = {{'small': 10, 'large': 20}}[request.variant] * m + i
      yield Example(name, pictures.png(np.full({shape}, value, np.uint8)),
                    f'{{name}}_{{i}}.png')

SOURCE = DataSource(
    name='glyphs', classes=lambda variant: CLASSES, build=build,
    image_shape={shape}, check=check, {constants}
    variants={{'small': 'Dark.', 'large': 'Bright.'}},
    options={{'strength': Field('none', 'What it is.', ('none', 'all'))}})
'''


def write_file(path, constants='', classes=None):
  """Writes a source; `constants` are further keywords of its DataSource."""
  path.write_text(FILE.format(
      classes=classes or CLASSES, images=IMAGES, shape=SHAPE,
      constants=constants))
  return path


def pixels(split, m, i, shape=SHAPE):
  """Returns image i of class m of a split of the folder: random colours."""
  rng = np.random.default_rng((SPLITS.index(split), m, i))
  return rng.integers(0, 200, shape, np.uint8)


def write_folder(path, draw=pixels, suffix='.png', names=SPLITS):
  """Writes a folder of images, which `draw` (split, class, image) makes."""
  for split, name in zip(SPLITS, names, strict=True):
    for m, of_class in enumerate(CLASSES[split]):
      folder = path / name / of_class
      folder.mkdir(parents=True)
      for i in range(IMAGES):
        Image.fromarray(draw(split, m, i).squeeze()).save(
            folder / f'{i}{suffix}')
  return path
