"""Pictures of any kind on the way in, and the contact sheet on the way out."""

import functools
import io
import warnings

import numpy as np
import pytest
from etils import epath
from fontTools import fontBuilder
from fontTools.pens import ttGlyphPen
from matplotlib import figure, font_manager
from PIL import Image

from mtl_jax import fonts
from mtl_jax.adapt import classify, results, sheet
from mtl_jax.data import pictures


@pytest.mark.parametrize(('mode', 'colour', 'rgb'), [
    ('L', 100, (100, 100, 100)), ('RGB', (200, 100, 50), (200, 100, 50)),
    ('1', 1, (255, 255, 255)), ('I;16', 0x6400, (100, 100, 100)),
    ('RGBA', (9, 9, 9, 0), (255, 255, 255)),
    ('RGBA', (0, 100, 0, 51), (204, 224, 204)),
    ('LA', (100, 255), (100, 100, 100)),
    ('P', (200, 100, 50), (200, 100, 50))])
def test_any_mode_becomes_grey_or_colour(mode, colour, rgb, tmp_path):
  image = Image.new('RGB' if mode == 'P' else mode, (50, 40), colour)
  file = tmp_path / 'x.png'
  (image.quantize() if mode == 'P' else image).save(file)
  colours = pictures.prepare(file, (16, 16, 3))
  assert colours.shape == (16, 16, 3) and colours.dtype == np.uint8
  np.testing.assert_allclose(colours.reshape(-1, 3), [rgb] * 256, atol=1)
  grey = pictures.prepare(file, (16, 16, 1))
  assert grey.shape == (16, 16, 1)
  np.testing.assert_allclose(
      grey, np.dot(rgb, (0.299, 0.587, 0.114)), atol=1.5)
  np.testing.assert_array_equal(
      pictures.prepare(file, (16, 16, 1), invert=True), 255 - grey)


def test_the_centre_is_kept_and_turned_upright(tmp_path):
  # A gradient from left to right shows where the crop was, and which way.
  ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (60, 1))  # 60 x 120
  image = Image.fromarray(ramp)
  image.save(tmp_path / 'wide.png')
  middle = pictures.prepare(tmp_path / 'wide.png', (30, 30, 1))[..., 0]
  # The middle 60 columns hold 60 .. 178; pixels of two become one.
  np.testing.assert_allclose(middle[:, 2:-2],
                             np.tile(61 + 4 * np.arange(30), (30, 1))[:, 2:-2],
                             atol=1)
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by 90 degrees clockwise
  image.save(tmp_path / 'turned.png', exif=exif)
  np.testing.assert_array_equal(
      pictures.prepare(tmp_path / 'turned.png', (30, 30, 1))[..., 0],
      np.rot90(middle, -1))
  Image.new('L', (4000, 1), 7).save(tmp_path / 'thin.png')
  assert (pictures.prepare(tmp_path / 'thin.png', (30, 30, 1)) == 7).all()


def test_the_sheet_is_capped_and_marks_what_is_wrong(monkeypatch):
  names = [f'class_{i:02}' for i in range(20)]
  blue = np.full((300, 8, 8, 3), (0, 0, 255), np.uint8)
  labels = np.arange(300, dtype=np.int32) // 15
  support = pictures.Pictures(
      [''] * 60, np.zeros((60, 8, 8, 3), np.uint8),
      np.arange(60, dtype=np.int32) // 3, tuple(names), [])
  query = pictures.Pictures([''] * 300, blue, labels, tuple(names),
                                [names[i] for i in labels])
  texts = []
  monkeypatch.setattr(
      sheet, '_heading', lambda title, note, whole=sheet._heading:
      texts.append(title + note) or whole(title, note))

  def drawn(predicted):
    result = {'classes': dict.fromkeys(names, 3), 'method': 'mtl',
              'model': 'conv4', 'trained_on': 'x', 'checkpoint_step': 1,
              'head': 'logistic', 'options': {},
              'score': classify.score(query, predicted),
              'predictions': [{'predicted': names[i], 'probabilities': {
                  names[i]: 0.5}} for i in predicted]}
    pixels = np.asarray(Image.open(io.BytesIO(
        sheet.sheet(result, support, query))))
    count = lambda colour: (pixels == colour).all(-1).sum()
    return count((0, 0, 255)), count((0xcf, 0x22, 0x2e))

  drawn_pixels, marked = drawn(labels)
  side = sheet._THUMB
  assert drawn_pixels == sheet.DRAWN * side ** 2
  assert '200 of 300 are drawn, evenly spaced, 100 are left out' in texts[1]
  assert not marked
  assert drawn((labels + 1) % 20)[1] > sheet.DRAWN * side


def many(classes):
  """Returns (result, support, query) of a start with many classes."""
  names = [f'class_{i:04}' for i in range(classes)]
  labels = np.arange(classes, dtype=np.int32)
  images = np.zeros((classes, 8, 8, 1), np.uint8)
  part = pictures.Pictures([''] * classes, images, labels, tuple(names), names)
  result = {'classes': dict.fromkeys(names, 1), 'method': 'mtl',
            'model': 'conv4', 'trained_on': 'x', 'checkpoint_step': 1,
            'head': 'logistic', 'options': {},
            'score': classify.score(part, labels[::-1]),
            'predictions': [{'predicted': name, 'probabilities': {name: 0.5}}
                            for name in names]}
  return result, part, part


def test_pictures_of_many_classes_have_a_bounded_size(monkeypatch):
  """Fails if memory grows with the square of the classes."""
  result, support, query = many(1250)
  drawn = Image.open(io.BytesIO(sheet.confusion(result)))
  assert max(drawn.size) < 4000
  # The opposite diagonal is still there.
  pixels = np.asarray(drawn.convert('L'), int)
  dark = np.argwhere(pixels[600:2400, 700:2500] < 220)
  assert np.corrcoef(dark.T)[0, 1] < -0.9
  titles = []
  monkeypatch.setattr(
      sheet, '_heading', lambda title, note, whole=sheet._heading:
      titles.append(title) or whole(title, note))
  assert Image.open(io.BytesIO(sheet.sheet(result, support, query))
                    ).height < 50_000
  assert titles[0] == ('1250 support images, 1250 classes, of which 200 are '
                       'drawn, evenly spaced')


def test_tables_are_written_before_pictures(tmp_path, monkeypatch):
  """Fails if a picture that cannot be drawn takes the numbers with it."""
  def fails(*_):
    raise MemoryError
  monkeypatch.setattr(sheet, 'sheet', fails)
  result, support, query = many(3)
  monkeypatch.setattr(sheet, 'table', lambda _: 'file')
  with pytest.raises(MemoryError):
    results.write(epath.Path(tmp_path), result, support, query)
  assert {p.name for p in tmp_path.iterdir()} == {
      'predictions.json', 'predictions.csv'}


def test_long_names_are_cut_where_they_are_alike():
  assert fonts.short('short', 5) == 'short'
  assert fonts.short('Armenian_U+0531', 9) == 'Arme…0531'
  assert fonts.fit('Armenian_U+0531' * 9, 80, 13) != fonts.fit(
      'Armenian_U+0531' * 8 + 'Armenian_U+0549', 80, 13)


@pytest.fixture
def cat(tmp_path, monkeypatch):
  """Makes a font of this system that holds one sign, a black square."""
  pen = ttGlyphPen.TTGlyphPen(None)
  for point in ((0, 0), (0, 1000), (1000, 1000), (1000, 0)):
    (pen.lineTo if pen.points else pen.moveTo)(point)
  pen.closePath()
  empty = ttGlyphPen.TTGlyphPen(None).glyph()
  font = fontBuilder.FontBuilder(1000)
  font.setupGlyphOrder(['.notdef', 'cat'])
  font.setupCharacterMap({ord('猫'): 'cat'})
  font.setupGlyf({'.notdef': empty, 'cat': pen.glyph()})
  font.setupHorizontalMetrics({'.notdef': (1000, 0), 'cat': (1000, 0)})
  font.setupHorizontalHeader(ascent=1000, descent=0)
  font.setupNameTable({'familyName': 'Cat', 'styleName': 'Regular'})
  font.setupOS2()
  font.setupPost()
  font.save(tmp_path / 'cat.ttf')
  damaged = tmp_path / 'damaged.ttf'
  damaged.write_text('no font')
  return fonts_of(monkeypatch, [str(damaged), str(tmp_path / 'cat.ttf')])


def fonts_of(monkeypatch, paths):
  """Lets this system have these fonts only."""
  monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: paths)
  for name in ('of', '_signs', '_system', '_family'):
    monkeypatch.setattr(fonts, name, functools.cache(
        getattr(fonts, name).__wrapped__))


def test_a_name_is_drawn_by_a_font_that_holds_its_signs(cat):
  """Fails if a Chinese name is a row of empty boxes."""
  strip, draw = sheet._strip(40)
  fonts.write(draw, (10, 5), ('x猫', 'x'), 'black', 20)
  dark = np.asarray(strip.convert('L')) < 128
  columns = dark[:40, 10:60].sum(0)
  assert (columns >= 19).sum() == 20, 'the black square'
  left = 10 + round(fonts.length('x', 20))
  assert dark[:, left:left + 20].sum() == pytest.approx(400, abs=25)
  assert fonts.length('猫x', 20) == 20 + fonts.length('x', 20)
  assert fonts.notices(['猫', 'x']) == []
  result, _, _ = many(2)
  result['classes'] = {'猫猫猫': 1, 'x': 1}
  with warnings.catch_warnings():
    warnings.simplefilter('error')  # Matplotlib's, for a sign that it lacks
    sheet.confusion(result)


def test_signs_that_no_font_holds_are_escaped_and_told(monkeypatch):
  fonts_of(monkeypatch, [])
  assert fonts.shown('a猫é') == r'a\u732bé'
  note, = fonts.notices({'猫 1': 1, 'é': 2, '犬': 3})
  assert note.startswith(r'2 names, such as 猫 1, have signs that no font')
  assert r'\u732b 1' in note and 'Noto Sans CJK' in note
  result, support, query = many(2)
  result['classes'] = {'猫' * 40: 1, 'x': 1}
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    sheet.confusion(result)


@pytest.mark.parametrize('classes, sizes', [
    (5, (10,) * 5), (20, (3,) * 20), (200, (1,) * 200)])
def test_groups_share_rows_and_are_all_there(classes, sizes):
  groups = [((f'{i}', ''), list(range(size))) for i, size in enumerate(sizes)]
  rows = list(sheet._packed(groups))
  assert len(rows) == {5: 5, 20: 10, 200: 40}[classes]
  for row in rows:
    taken = [place for column, columns, _, members in row
             for place in range(column, column + columns)]
    assert len(set(taken)) == len(taken) and max(taken) < 10
  assert [title for row in rows for _, _, title, _ in row] == [
      title for title, _ in groups]


def test_a_large_group_has_rows_of_its_own():
  rows = list(sheet._packed([(('a', ''), [1]), (('b', ''), list(range(12))),
                             (('c', ''), [5])]))
  assert [[(column, len(members), title[0]) for column, _, title, members
           in row] for row in rows] == [
               [(0, 1, 'a')], [(0, 10, 'b')], [(0, 2, '')], [(0, 1, 'c')]]


@pytest.mark.parametrize('classes, all_of_them', [
    (61, True), (200, True), (201, False)])
def test_a_matrix_of_up_to_200_classes_has_all_names_and_numbers(
    classes, all_of_them, monkeypatch):
  drawn = []
  monkeypatch.setattr(figure.Figure, 'savefig', lambda self, *_, **__:
                      drawn.append(self.axes[0]))
  result, *_ = many(classes)
  sheet.confusion(result)
  names = drawn[0].get_yticklabels()
  assert len(names) == (classes if all_of_them else sheet.NAMED)
  assert len(drawn[0].texts) == (classes if all_of_them else 0)
