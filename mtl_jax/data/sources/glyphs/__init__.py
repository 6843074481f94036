"""The data set `glyphs`: characters of alphabets never seen in training.

It needs no download: letters of the DejaVu faces that matplotlib ships, drawn
by drawing.py. Which letters are one class is in outlines.py. See
docs/glyphs.md.
"""

from mtl_jax.data import pictures
from mtl_jax.data.source import DataSource, Example
from mtl_jax.data.sources.glyphs import outlines
from mtl_jax.data.sources.glyphs.drawing import SIZE, draw

IMAGES_PER_CLASS = 20
# Of (train, validation, test); None: all classes.
NUM_CLASSES = {'full': None, 'tiny': (12, 6, 8)}


def glyph_classes(variant):
  """Returns split -> its GlyphClasses, in the order of their labels."""
  of_split = {split: [] for split in outlines.SPLITS}
  for glyph in outlines.classes():
    of_split[glyph.split].append(glyph)
  counts = NUM_CLASSES[variant]
  if counts is None:
    return of_split
  return {split: glyphs[::len(glyphs) // count][:count]
          for (split, glyphs), count in zip(
              of_split.items(), counts, strict=True)}


def _classes(variant):
  return {split: tuple(glyph.name for glyph in glyphs)
          for split, glyphs in glyph_classes(variant).items()}


def _build(request, files, split):
  """Yields the images of a split; no file is read."""
  del files
  for glyph in glyph_classes(request.variant)[split]:
    for number in range(IMAGES_PER_CLASS):
      image = pictures.png(draw(glyph.letter, number))
      yield Example(glyph.name, image, glyph.alphabet)


SOURCE = DataSource(
    name='glyphs',
    classes=_classes,
    build=_build,
    image_shape=(SIZE, SIZE, 1),
    # Of pixels / 255, over the training split.
    mean=(0.1269,),
    std=(0.2643,),
    variants={'full': 'All classes.', 'tiny': 'A few classes, for tests.'},
    text='alphabet',
    description='Letters of many alphabets, drawn with random distortion from '
                'the DejaVu fonts; the splits share no alphabet and no '
                'outline.',
    homepage='https://dejavu-fonts.github.io/',
    license='Drawn with the DejaVu fonts: '
            'https://dejavu-fonts.github.io/License.html')
