"""Pictures of validation accuracy against what it has cost.

A method has one colour and one marker in all pictures. The colours are near
the scheme 'muted' of Paul Tol, with black for MTL: colour-blind readers can
tell them apart. The markers serve grey print.
"""

import io
import re

import numpy as np

from mtl_jax import fonts
from mtl_jax.report import records

# method -> colour, marker; the last ones serve methods of users, in turn.
_STYLES = {
    'mtl': ('#000000', 'o'), 'anil': ('#332288', 's'),
    'metaoptnet': ('#cc6677', 'D'), 'r2d2': ('#117733', '^'),
    'maml': ('#88ccee', 'v'), 'meta_sgd': ('#44aa99', '<'),
    'imaml': ('#7d7d10', '>'), 'minibatch_prox': ('#882255', 'P'),
    'protonet': ('#aa4499', 'X'), 'whole_class': ('#e69f00', 'h')}
_OTHERS = (('#777777', '*'), ('#555555', 'd'), ('#999999', 'p'))
_DASHES = ('-', '--', ':', '-.')  # of one method with several settings
_MARKERS = 7  # on a curve, about
AXES = {'steps': 'training steps', 'seconds': 'training time in s',
        'flops': 'training cost in FLOPs'}


def draw(methods, axis, title, shots):
  """Returns an SVG of validation accuracy, or None where no curve is known.

  A thick line is the mean over the seeds, as far as all of them have been
  trained; thin lines are the seeds.

  Args:
    methods: name -> its cells, of accuracy.groups.
    axis: a key of AXES.
    title: above the picture.
    shots: of the tests; other validations are left out.
  """
  import matplotlib
  import matplotlib.figure
  known = {name: found for name, cells in methods.items()
           if (found := _curves(cells, axis, shots))}
  if not known:
    return None
  shown = {name: fonts.shown(_short(name)) for name in known}
  with matplotlib.rc_context({
      'font.family': fonts.families([title, *known]), 'font.size': 9,
      'svg.hashsalt': 'mtl_jax'}):
    figure = matplotlib.figure.Figure((4.6, 4.2), layout='constrained')
    axes = figure.add_subplot()
    for name, style in styles(known).items():
      colour, marker, dashes = style
      for x, y in known[name]:
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.35)
      x, y = _mean(known[name])
      axes.plot(x, y, dashes, color=colour, linewidth=1.5, marker=marker,
                markersize=5, markeredgecolor='white', markeredgewidth=0.5,
                markevery=max(1, len(x) // _MARKERS), label=shown[name])
    if axis != 'steps':
      axes.set_xscale('log')
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel('validation accuracy in %')
    heading = axes.set_title(fonts.shown(_short(title, 60)), fontsize=10)
    axes.grid(color='#dddddd', linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)
    legend = figure.legend(
        loc='outside lower center', ncols=4, fontsize=8, frameon=False,
        handlelength=2.2, columnspacing=1.2)
    for text in (heading, *legend.get_texts()):
      text.set_parse_math(False)  # a name may hold '$'
    packed = io.BytesIO()
    figure.savefig(packed, format='svg', metadata={'Date': None})
  return packed.getvalue()


def styles(names):
  """Returns name -> (colour, marker, dashes); the same in every picture."""
  found, variants, others = {}, {}, {}
  for name in sorted(names):
    base = records.base(name)
    turn = variants[base] = variants.get(base, -1) + 1
    style = _STYLES.get(base)
    if style is None:
      place = others.setdefault(base, len(others))
      style = _OTHERS[place % len(_OTHERS)]
    found[name] = (*style, _DASHES[turn % len(_DASHES)])
  return {name: found[name] for name in names}


def file_name(place, title, axis):
  """Returns a name of a file that every folder and page takes.

  Args:
    place: a number: two titles may differ only in signs that are left out.
    title: of the picture.
    axis: a key of AXES.
  """
  words = re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')
  return f'report_{place}_{words[:60]}_{axis}.svg'


def _short(name, most=24):
  """Returns a name as long as there is room; the end of a path tells most."""
  return name if len(name) <= most else '..' + name[2 - most:]


def validated_otherwise(methods, shots):
  """Returns the names of methods that `draw` leaves out for their validation.

  A method that is trained once for several numbers of shots is validated with
  one of them: its curve says nothing of the others.
  """
  return [name for name, cells in methods.items()
          if any(cell.get('training.curve') for cell in cells)
          and not any(_as_tested(cell, shots) for cell in cells)]


def _as_tested(cell, shots):
  """Returns whether a cell was validated with one of the numbers of shots."""
  return cell.get('config.validation.shots') in (None, *shots)


def _curves(cells, axis, shots):
  """Returns [(x, accuracies in %)] of the cells that have a curve."""
  found = []
  for cell in cells:
    points = cell.get('training.curve') or []
    flops = cell.get('training.flops_per_step')
    if not points or not _as_tested(cell, shots):
      continue
    if axis == 'flops' and not flops:
      continue
    name, factor = {'steps': ('step', 1), 'seconds': ('seconds', 1),
                    'flops': ('step', flops)}[axis]
    x = factor * np.array([point[name] for point in points], float)
    y = 100 * np.array([point['validation_accuracy'] for point in points])
    keep = x > 0  # what a logarithmic axis can show
    if keep.any():
      found.append((x[keep], y[keep]))
  return found


def _mean(curves):
  """Returns the mean curve of seeds, as far as all of them have been run."""
  count = min(len(x) for x, _ in curves)
  return (np.mean([x[:count] for x, _ in curves], 0),
          np.mean([y[:count] for _, y in curves], 0))
