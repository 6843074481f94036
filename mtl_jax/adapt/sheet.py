"""The results of `mtl_jax.adapt` as a table and as pictures."""

import csv
import io

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from mtl_jax import fonts
from mtl_jax.evaluate import adapters

DRAWN = 200  # query images on a contact sheet, at most
DRAWN_SUPPORT = 10  # support images per class, at most
DRAWN_CLASSES = 200  # of the support, at most
# Classes of a confusion matrix with names and numbers, at most: in their usual
# size, and in a small one. The names of more are drawn evenly spaced.
NAMED, NAMED_SMALL = 60, 200

_WIDTH, _MARGIN, _GAP = 1200, 14, 6
_SMALL, _THUMB = 64, 104  # pixels of a support and of a query image
_IN_A_ROW = 10  # query images
_BLACK, _GREY, _RIGHT, _WRONG = '#111111', '#666666', '#1a7f37', '#cf222e'
_LINE = 17  # pixels from a line of text to the next


def table(result):
  """Returns predictions.csv: file, predicted, true, p_CLASS .. ."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['file', 'predicted', 'true',
                   *(f'p_{name}' for name in result['classes'])])
  for row in result['predictions']:
    writer.writerow([row['file'], row['predicted'], row['true'] or '',
                     *row['probabilities'].values()])
  return text.getvalue()


def about(result):
  """Returns lines on what classifies: `about` of a Classifier, or a result."""
  sizes = ', '.join(f'{name} {count}'
                    for name, count in result['classes'].items())
  return [f'{_network(result)}, {_head(result)}',
          f'{len(result["classes"])} classes: {sizes} images',
          *_weighting(result), _convergence(result), _calibration(result)]


def lines(result):
  """Returns the lines that the command prints at its end."""
  start = about(result)
  score = result['score']
  if not score:
    counts = {name: 0 for name in result['classes']}
    for row in result['predictions']:
      counts[row['predicted']] += 1
    return start + [f'{len(result["predictions"])} images classified: '
                    + ', '.join(f'{k} {v}' for k, v in counts.items())]
  return start + [
      f'accuracy {_of(score)} images; chance is '
      f'{1 / len(result["classes"]):.1%}',
      *(f'  {name:<24} {_of(of_class)}'
        for name, of_class in score['by_class'].items())]


def _weighting(result):
  """Returns [a line on how classes of unequal size count], or []."""
  if len(set(result['classes'].values())) == 1:
    return []
  return [{
      'classes': 'every class counts alike, however many images it has '
                 '(--unweighted: every image does)',
      'images': 'every image counts alike, so a class with more images counts '
                'more',
      'unknown': 'this head takes no weights: a class with more images may '
                 'count more'}[result['count_alike']]]


def _convergence(result):
  if result['converged'] is None:
    return ('nothing is solved to convergence: the number of steps is fixed, '
            'as in the test of the run')
  return (f'the head has {"" if result["converged"] else "NOT "}converged: '
          f'{numbers(result["residuals"])}')


def _calibration(result):
  found = result['calibration']
  if found is None:
    return 'the probabilities are not calibrated: ' + result['uncalibrated']
  return (f'the probabilities are calibrated: temperature '
          f'{found["temperature"]:.3g}; log loss of {found["held_out"]} '
          f'held-out support images {found["log_loss_before"]:.3f} before, '
          f'{found["log_loss_after"]:.3f} after')


def numbers(residuals):
  """Returns a head's residuals as text."""
  return ', '.join(f'{name} {"not finite" if value is None else f"{value:.2g}"}'
                   for name, value in residuals.items())


def _of(score):
  return (f'{score["accuracy"]:.1%}, {score["correct"]} of {score["images"]}')


def _network(result):
  if result.get('weights'):
    return f'{result["model"]} with the weights {result["weights"]["file"]}'
  return (f'{result["method"]} with {result["model"]} trained on '
          f'{result["trained_on"]}, step {result["checkpoint_step"]}')


def _head(result):
  options = result['options']
  if result['head'] == adapters.OWN:  # a method's options are many
    options = {name: value for name, value in options.items()
               if name == 'batch_norm' or name.startswith('test_')}
  options = ' '.join(f'{k}={v}' for k, v in options.items())
  return f'head: {result["head"]} {options}'.rstrip()


def confusion(result):
  """Draws confusion.png: true classes down, predicted ones across.

  The picture has a bounded size: see NAMED.
  """
  # Imported late: it takes a second and is needed here only.
  import matplotlib.figure

  counts = np.array(result['score']['confusion'])
  names = [fonts.short(fonts.shown(name), 24) for name in result['classes']]
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  small = NAMED < len(names) <= NAMED_SMALL
  ticks = _evenly(len(names), NAMED_SMALL if small else NAMED)
  inches, size = (0.16, 6.5) if small else (0.45, 10)  # of a class; in points
  side = 2.5 + inches * len(ticks)
  figure = matplotlib.figure.Figure((side + 0.8, side), layout='constrained')
  axes = figure.subplots()
  shown = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  if len(ticks) == len(names):
    for row, column in zip(*np.nonzero(counts), strict=True):
      axes.text(column, row, counts[row, column], ha='center', va='center',
                color='white' if shares[row, column] > 0.5 else 'black',
                fontsize=size)
  # A $ in a name would start a formula.
  names = [names[i].replace('$', r'\$') for i in ticks]
  family = fonts.families(names)
  style = {'family': family, 'fontsize': size}
  axes.set_xticks(ticks, names, rotation=90 if small else 45,
                  ha='center' if small else 'right', **style)
  axes.set_yticks(ticks, names, **style)
  axes.set(xlabel='predicted', ylabel='true',
           title=f'accuracy {_of(result["score"])} images')
  figure.colorbar(shown, label='share of the true class', shrink=0.7,
                  fraction=0.05, aspect=30)
  packed = io.BytesIO()
  figure.savefig(packed, format='png', dpi=120, bbox_inches='tight')
  return packed.getvalue()


def _evenly(count, most):
  """Returns the numbers below `count`, or `most` evenly spaced ones."""
  return np.unique(np.linspace(0, count - 1, min(count, most)).round()
                   .astype(int))


def sheet(result, support, query):
  """Draws predictions.png: the support by class, the query below it.

  Args:
    result: of `classify.adapt`.
    support, query: the Pictures, drawn as the network sees them.

  Returns:
    The PNG file; at most DRAWN query images are on it, evenly spaced.
  """
  rows = result['predictions']
  drawn = _evenly(len(rows), DRAWN)
  title = f'{len(rows)} query images'
  if result['score']:
    title += f': accuracy {_of(result["score"])}'
  note = 'below each: predicted class, its probability'
  if len(drawn) < len(rows):
    note = (f'{len(drawn)} of {len(rows)} are drawn, evenly spaced, '
            f'{len(rows) - len(drawn)} are left out; {note}')
  known = (f'{sum(result["classes"].values())} support images, '
           f'{len(support.classes)} classes')
  if not len(support.images):
    known += '; they are not in the head file'
  elif len(support.classes) > DRAWN_CLASSES:
    known += f', of which {DRAWN_CLASSES} are drawn, evenly spaced'
  parts = [_heading(known, f'{_network(result)}; {_head(result)}'),
           *_support_rows(result, support), _heading(title, note)]
  for row in _packed(_groups(result, query.names, drawn)):
    parts += _query_row(rows, query, row)
  whole = Image.new('RGB', (_WIDTH, sum(p.height for p in parts) + _MARGIN),
                    'white')
  top = 0
  for part in parts:
    whole.paste(part, (0, top))
    top += part.height
  packed = io.BytesIO()
  whole.save(packed, format='png')
  return packed.getvalue()


def _support_rows(result, support):
  """Yields strips with the support of some classes side by side."""
  most = min(max(result['classes'].values()), DRAWN_SUPPORT)
  step = _SMALL + _GAP
  block = max(most * step, 2 * step) + 3 * _GAP
  columns = max(1, (_WIDTH - 2 * _MARGIN) // block)
  names = list(result['classes'])
  drawn = _evenly(len(names), DRAWN_CLASSES) if len(support.images) else ()
  for start in range(0, len(drawn), columns):
    strip, draw = _strip(_LINE + _SMALL + 2 * _GAP)
    for column, number in enumerate(drawn[start:start + columns]):
      left, name = _MARGIN + column * block, names[number]
      of_class = np.flatnonzero(support.labels == number)
      count = f' ({len(of_class)})'
      if len(of_class) > most:
        count = f' ({most} of {len(of_class)})'
      room = block - 3 * _GAP - fonts.length(count, 13)
      fonts.write(draw, (left, 0), (fonts.fit(name, room, 13), count), _BLACK,
                  13)
      for i, image in enumerate(support.images[of_class[:most]]):
        strip.paste(_thumb(image, _SMALL), (left + i * step, _LINE))
    yield strip


def _groups(result, names, drawn):
  """Yields ((name, text), query numbers): by true class, others, no class.

  The name and the text behind it form the title.
  """
  by_name = {}
  for i in drawn:
    by_name.setdefault(names[i], []).append(i)
  if list(by_name) == [None]:
    yield ('', ''), by_name[None]
    return
  known = [name for name in result['classes'] if name in by_name]
  others = sorted(set(by_name) - set(known) - {None})
  for name in known:
    yield (name, f': {_of(result["score"]["by_class"][name])}'), by_name[name]
  for name in others:
    yield (name, ': not a class of the support'), by_name[name]
  if None in by_name:
    yield ('', 'unlabelled'), by_name[None]


def _packed(groups):
  """Yields rows of the sheet: [(column, columns, title, query numbers)].

  Small groups stand side by side, with a column between them.
  """
  row, column = [], 0
  for title, members in groups:
    long = len(members) > _IN_A_ROW
    for start in range(0, len(members), _IN_A_ROW):
      some = members[start:start + _IN_A_ROW]
      columns = max(len(some), 2)  # room for a title
      if row and (long or column + columns > _IN_A_ROW):
        yield row
        row, column = [], 0
      row.append((column, columns, title if not start else ('', ''), some))
      column = _IN_A_ROW if long else column + columns + (len(some) > 1)
  if row:
    yield row


def _query_row(rows, query, row):
  """Yields the strips of a row: titles, then images with what was predicted."""
  step = (_WIDTH - 2 * _MARGIN) // _IN_A_ROW
  if any(''.join(title) for *_, title, _ in row):
    strip, draw = _strip(_LINE + _GAP)
    for column, columns, (name, text), _ in row:
      room = columns * step - 8 - fonts.length(text, 13)
      fonts.write(draw, (_MARGIN + column * step, 2),
                  (fonts.fit(name, room, 13), text), _BLACK, 13)
    yield strip
  strip, draw = _strip(_THUMB + 2 * _LINE + 3 * _GAP)
  for column, _, _, members in row:
    for place, i in enumerate(members, column):
      left = _MARGIN + place * step + 4
      _draw_query(strip, draw, left, step - 8, rows[i], query, i)
  yield strip


def _draw_query(strip, draw, left, room, row, query, i):
  """Draws query image i with its frame and what was predicted."""
  is_wrong = query.labels[i] >= 0 and row['predicted'] != query.names[i]
  colour = _GREY if query.labels[i] < 0 else _WRONG if is_wrong else _RIGHT
  edge = 4 if is_wrong else 1
  draw.rectangle((left - edge, 4 - edge, left + _THUMB + edge - 1,
                  3 + _THUMB + edge), fill=colour)
  strip.paste(_thumb(query.images[i], _THUMB), (left, 4))
  predicted = row['predicted']
  percent = f'{row["probabilities"][predicted]:.0%}'
  mark = '' if query.labels[i] < 0 else '  ✗ wrong' if is_wrong else '  ✓'
  top = 4 + _THUMB + _GAP
  fonts.write(draw, (left, top), fonts.fit(predicted, room, 13), _BLACK, 13)
  fonts.write(draw, (left, top + _LINE), percent + mark,
              colour if mark else _BLACK, 13)


def _heading(title, note):
  strip, draw = _strip(62)
  fonts.write(draw, (_MARGIN, 12), title, _BLACK, 19)
  fonts.write(draw, (_MARGIN, 37), fonts.fit(note, _WIDTH - 2 * _MARGIN, 13),
              _GREY, 13)
  return strip


def _strip(height):
  strip = Image.new('RGB', (_WIDTH, height), 'white')
  return strip, ImageDraw.Draw(strip)


def _thumb(image, side):
  """Returns an image of the network, grown or shrunk into a square."""
  image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  return ImageOps.pad(image.convert('RGB'), (side, side),
                      Image.Resampling.BICUBIC, color='white')
