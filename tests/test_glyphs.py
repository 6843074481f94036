"""The embedded data set: its classes, its drawings and its TFDS builder."""

import collections
import unicodedata

import matplotlib
import numpy as np
import pytest
from fontTools import ttLib
from PIL import Image, ImageFont

from mtl_jax import errors
from mtl_jax.data import store
from mtl_jax.data.sources import glyphs
from mtl_jax.data.sources.glyphs import drawing, outlines


@pytest.fixture(scope='module')
def shared():
  """Face -> outline -> letters, by fontTools instead of matplotlib."""
  wanted = {letter for c in outlines.classes() for letter in c.letters}
  of_face = {}
  for face, file in outlines.faces().items():
    font = ttLib.TTFont(file, lazy=True)
    table, shapes = font['glyf'], collections.defaultdict(set)
    for code, glyph in font.getBestCmap().items():
      if chr(code) in wanted:
        points = np.array(table[glyph].getCoordinates(table)[0])
        if len(points):
          moved = points - points.min(axis=0)
          shapes[tuple(sorted(map(tuple, moved.tolist())))].add(chr(code))
    of_face[face] = shapes
  return of_face


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  return store.prepare('glyphs/tiny', tmp_path_factory.mktemp('tfds'))


def _of_split(split):
  return [c for c in outlines.classes() if c.split == split]


def test_counts_are_the_published_ones():
  """Fails if scores belong to another benchmark."""
  counts = collections.Counter(c.split for c in outlines.classes())
  assert counts == {'train': 2049, 'validation': 164, 'test': 186}
  names = [c.name for c in outlines.classes()]
  assert len(set(names)) == len(names)
  for split in outlines.SPLITS:
    of_split = [c.name for c in _of_split(split)]
    assert of_split == sorted(of_split)


def test_no_alphabet_is_in_two_splits():
  splits = collections.defaultdict(set)
  for c in outlines.classes():
    splits[c.alphabet].add(c.split)
    words = c.alphabet.upper().replace('_', ' ')
    assert unicodedata.name(c.letter).startswith(words)
  assert all(len(of_alphabet) == 1 for of_alphabet in splits.values())
  assert len(splits) == 12


def test_no_outline_is_in_two_classes(shared):
  """Fails if a test shows a shape of the training split."""
  place = {letter: c for c in outlines.classes() for letter in c.letters}
  for shapes in shared.values():
    for same in shapes.values():
      assert len({place[letter].name for letter in same}) == 1, same
      assert len({place[letter].split for letter in same}) == 1, same


def test_letters_of_a_class_share_an_outline(shared):
  """Fails if classes that look different are merged."""
  partners = collections.defaultdict(set)
  for shapes in shared.values():
    for same in shapes.values():
      for letter in same:
        partners[letter] |= same - {letter}
  for c in outlines.classes():
    for letter in c.letters:
      assert len(c.letters) == 1 or partners[letter] & set(c.letters), c


def test_sharing_is_found_and_goes_to_the_first_alphabet():
  latin_cyrillic = 0
  for c in outlines.classes():
    words = {unicodedata.name(letter).split()[0] for letter in c.letters}
    latin_cyrillic += {'LATIN', 'CYRILLIC'} <= words
    if 'LATIN' in words:
      assert c.alphabet == 'Latin' and c.split == 'train'
  assert latin_cyrillic == 79
  owner = {letter: c for c in outlines.classes() for letter in c.letters}
  assert owner['А'] is owner['Α'] is owner['A']  # Cyrillic, Greek, Latin
  assert owner['օ'].split == 'train'  # an Armenian o is a Latin o


def test_an_image_depends_on_its_letter_and_number_only():
  wanted = [('A', 3), ('ᐁ', 0), ('A', 4)]
  first = [drawing.draw(*which) for which in wanted]
  drawing._source.cache_clear()
  for which, image in reversed(list(zip(wanted, first, strict=True))):
    np.testing.assert_array_equal(drawing.draw(*which), image)
  assert first[0].shape == (28, 28, 1) and first[0].dtype == np.uint8
  assert np.abs(first[0].astype(int) - first[2]).mean() > 5
  # Letters do not share their random numbers: the corners are noise only.
  assert (first[0][:2, :2] != drawing.draw('B', 3)[:2, :2]).any()


def test_without_distortion_a_letter_is_what_pillow_draws(monkeypatch):
  """Fails if letters are mirrored, turned, shifted or wrongly scaled."""
  for name in ('ROTATION', 'SHEAR', 'LOG_SCALE', 'SHIFT', 'WARP', 'NOISE'):
    monkeypatch.setattr(drawing, name, 0.0)
  monkeypatch.setattr(drawing, 'STROKE', (0.5, 0.5))
  monkeypatch.setattr(drawing, 'INK', (1.0, 1.0))
  monkeypatch.setattr(outlines, 'faces_of', lambda _: ('DejaVuSans',))
  file, size = outlines.faces()['DejaVuSans'], 16  # times as fine
  for letter in 'Rб\u0416':  # the last is too wide, and is shrunk
    em = 2048  # font units, so that its box in ems is exact
    box = ImageFont.truetype(file, em).getmask(letter).getbbox()
    longest = max(box[2] - box[0], box[3] - box[1])
    em_pixels = min(drawing.EM_PIXELS, drawing.LARGEST * em / longest)
    mask = ImageFont.truetype(file, em_pixels * size).getmask(letter)
    box = mask.getbbox()
    mask = Image.frombytes('L', mask.size, bytes(mask)).crop(box)
    image = Image.new('L', (28 * size, 28 * size))
    image.paste(mask, ((image.width - mask.width) // 2,
                       (image.height - mask.height) // 2))
    wanted = np.asarray(image.resize((28, 28), Image.Resampling.BOX)).ravel()
    drawn = drawing.draw(letter, 0).ravel()
    assert np.corrcoef(wanted, drawn)[0, 1] > 0.98
    assert abs(wanted.mean() / drawn.mean() - 1) < 0.1


def test_each_distortion_changes_the_image(monkeypatch):
  usual = drawing.draw('R', 1).astype(int)
  for name in ('ROTATION', 'SHEAR', 'LOG_SCALE', 'SHIFT', 'WARP', 'NOISE',
               'STROKE', 'INK'):
    with monkeypatch.context() as patch:
      patch.setattr(drawing, name,
                    (0.4, 0.4) if name in ('STROKE', 'INK') else 0.0)
      assert np.abs(drawing.draw('R', 1) - usual).mean() > 0.5, name


def test_every_face_of_a_letter_is_drawn(monkeypatch):
  used = set()
  source = drawing._source

  def spy(face, letter):
    used.add(face)
    return source(face, letter)

  monkeypatch.setattr(drawing, '_source', spy)
  for number in range(100):
    drawing.draw('A', number)
  assert used == set(outlines.faces_of('A')) and len(used) >= 12


def test_ink_stays_inside_the_image():
  """Fails if a letter loses what distinguishes it from others."""
  images = np.stack([drawing.draw(c.letter, 0)
                     for c in outlines.classes()[::20]])
  border = np.ones((28, 28, 1), bool)
  border[1:-1, 1:-1] = False
  bright = images > 128
  assert bright[:, border].sum() < 0.02 * bright.sum()
  assert (bright.sum(axis=(1, 2, 3)) > 5).all()  # none is blank


def test_mean_and_std_are_those_of_the_training_split():
  images = np.stack([drawing.draw(c.letter, n)
                     for c in _of_split('train')[::8] for n in (0, 1)]) / 255
  assert images.mean() == pytest.approx(glyphs.SOURCE.mean[0], abs=0.008)
  assert images.std() == pytest.approx(glyphs.SOURCE.std[0], abs=0.01)


def test_builder_writes_what_draw_draws(tiny):
  names = tiny.info.features['label'].names
  classes = {c.name: c for c in outlines.classes()}
  for split, num_classes in (('train', 12), ('validation', 6), ('test', 8)):
    source = tiny.as_data_source(split=split)
    assert len(source) == 20 * num_classes
    labels = [source[i]['label'] for i in range(0, len(source), 20)]
    assert labels == sorted(set(labels)) and len(labels) == num_classes
    for i in (len(source) - 1, 7, 20):  # random access
      example = source[i]
      c = classes[names[example['label']]]
      assert c.split == split
      assert example['alphabet'].decode() == c.alphabet
      np.testing.assert_array_equal(example['image'],
                                    drawing.draw(c.letter, i % 20))


def test_builder_is_array_record_and_needs_no_metadata_files(tiny):
  assert tiny.info.file_format.value == 'array_record'
  assert 'DejaVu' in tiny.info.redistribution_info.license
  assert str(tiny.version) == '1.0.0' and tiny.name == 'glyphs'


def test_full_builder_has_all_classes(tmp_path):
  builder = store.builder('glyphs', tmp_path)
  assert builder.builder_config.name == 'full'
  assert builder.info.features['label'].names == [
      c.name for c in outlines.classes()]


def test_missing_fonts_are_named(monkeypatch, tmp_path):
  outlines.faces.cache_clear()
  monkeypatch.setattr(matplotlib, 'get_data_path', lambda: str(tmp_path))
  with pytest.raises(errors.UserError, match='DejaVu'):
    outlines.faces()
