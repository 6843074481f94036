"""How close are ANIL and MTL on real networks? Observed, not judged.

The bound of bound.py is about infinitely wide networks. Here CNN-4s of 1 to 6
blocks are trained by the library's own ANIL and MTL, and what they say on the
same unseen tasks is compared. Two seeds of one method are the yardstick: they
are apart, too. closeness_networks.py says how networks are trained,
closeness_measures.py what is compared.
"""

import io
import time

import numpy as np
import tqdm

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field, Range
from mtl_jax.ntk.checks import check, closeness_figures
from mtl_jax.ntk.checks import closeness_measures as measures
from mtl_jax.ntk.checks import closeness_networks as networks
from mtl_jax.ntk.checks.closeness_measures import HOWS, MEASURES
from mtl_jax.ntk.checks.closeness_networks import NEW_HEAD, Cell
from mtl_jax.weight_files import npz

NAME = 'closeness'
# The size that is part of the report; the defaults are the full size.
QUICK = {'depths': (1, 2, 4), 'times': (0.1, 2.), 'steps': 100,
         'test_tasks': 50}

OPTIONS = {
    'dataset': Field('glyphs', 'data set; networks are trained on its training '
                     'split and compared on tasks of its test split'),
    'depths': Field((1, 2, 3, 4, 5, 6), 'numbers of blocks', COUNT, free=True),
    'times': Field((0.05, 0.5, 2.), 'values of lambda tau, inner rate times '
                   'inner steps of ANIL', POSITIVE, free=True),
    'seeds': Field(2, 'seeds of each network', Range(2), free=True),
    'width': Field(32, 'channels of a block', COUNT),
    'steps': Field(300, 'Adam steps of training', COUNT),
    'rate': Field(3e-3, 'rate of the first step; it falls along a cosine',
                  POSITIVE),
    'meta_batch': Field(8, 'tasks per step', COUNT),
    'train_shots': Field(2, 'support images per class in training', COUNT),
    'train_queries': Field(2, 'query images per class in training', COUNT),
    'inner_steps': Field(5, 'inner steps of ANIL', COUNT),
    'fixed_tasks': Field(0, 'number of training tasks that are seen again and '
                         'again, as in the theory; 0: new ones at every step',
                         NOT_NEGATIVE),
    'ways': Field(5, 'N, classes per task', Range(2)),
    'shots': Field(5, 'support images per class of an unseen task', COUNT),
    'queries': Field(15, 'query images per class of an unseen task', COUNT),
    'test_tasks': Field(100, 'unseen tasks', Range(2)),
}


def run(options, folder):
  """Trains the networks, compares them, and writes closeness.json and figures.

  Args:
    options: dict of OPTIONS; those left out keep their defaults.
    folder: epath.Path, made if need be. What a network says is kept in
      `folder`/cells; what is there is not trained again.

  Returns:
    The contents of closeness.json. Its 'holds' is None: the theory predicts
    nothing about these networks.

  Raises:
    UserError: an option is wrong, the data set is unknown or too small, or
      `folder` belongs to other options.
  """
  o = settle(options)
  started = time.monotonic()
  data = networks.load(o)
  check.claim_cells(folder, NAME, OPTIONS, o)
  points = []
  bar = tqdm.tqdm(total=len(o.depths) * len(_cells(o, 1)), desc=NAME,
                  unit='network')
  for depth in o.depths:
    said = _said(o, data, depth, folder / 'cells', bar)
    points += [{'depth': depth, 'time': t, 'how': how,
                **measures.compare(o, said, depth, t, how)}
               for t in o.times for how in HOWS]
  bar.close()
  result = check.write(folder / f'{NAME}.json', {
      'options': o._asdict(), 'points': points,
      'trends': measures.trends(o, points), 'holds': None,
      'seconds': time.monotonic() - started})
  closeness_figures.draw(result, folder)
  return result


def settle(options):
  """Returns all options, with sorted axes; raises UserError."""
  o = check.settle(OPTIONS, options)
  for name in ('depths', 'times'):
    if not getattr(o, name):
      raise UserError(f'--{name}: one number or more is needed')
  return o._replace(depths=tuple(sorted(set(o.depths))),
                    times=tuple(sorted(set(o.times))))


def _cells(o, depth):
  """Returns all Cells of a depth."""
  return [Cell(method, depth, t, seed) for seed in range(o.seeds)
          for method in networks.METHODS
          for t in (o.times if method == 'anil' else (0.,))]


def _said(o, data, depth, folder, bar):
  """Returns {(Cell, how): probabilities}; trains what has no file yet."""
  network, said = None, {}
  for cell in _cells(o, depth):
    bar.set_postfix(cell._asdict())
    file = folder / f'{"_".join(map(str, cell))}.npz'
    hows = HOWS if cell.method == 'anil' else (NEW_HEAD,)
    if not file.exists():
      network = network or networks.make(o, data, depth)
      packed = io.BytesIO()
      np.savez_compressed(packed, **network(cell))
      files.write(file, packed.getvalue())
    try:
      arrays, _ = npz.read(file.read_bytes())
      said |= {(cell, how): arrays[how] for how in hows}
    except Exception as error:  # damaged bytes raise many kinds
      raise UserError(f'{file} is damaged: delete it, and the network is '
                      'trained again') from error
    bar.update()
  return said


def verdict(result):
  """Returns what is observed, in one line."""
  of_head = [p for p in result['points'] if p['how'] == NEW_HEAD]
  close = sum(p['excess']['distance']['mean']
              <= p['excess']['distance']['ci95'] for p in of_head)
  trends = result['trends'][NEW_HEAD]
  count = lambda axis, sign: sum(sign * t['mean'] > t['ci95']
                                 for t in trends[axis].values())
  return (
      'observed, nothing was predicted: with new heads ANIL and MTL are as '
      f'close as two seeds of one method in {close} of {len(of_head)} '
      f'settings; their distance falls with depth for {count("depth", -1)} of '
      f'{len(trends["depth"])} values of lambda tau and rises with lambda tau '
      f'for {count("time", 1)} of {len(trends["time"])} depths')


def summary(result):
  """Returns the result as lines of text."""
  o = result['options']
  tasks = (f'{o["fixed_tasks"]} fixed tasks' if o['fixed_tasks'] else
           'new tasks at every step')
  lines = [
      f'CNN-4s of width {o["width"]} on {o["dataset"]}, trained by ANIL and '
      f'by MTL for {o["steps"]} steps of',
      f'{o["meta_batch"]} tasks, {o["ways"]} ways, {o["train_shots"]} + '
      f'{o["train_queries"]} images per class; {tasks}; {o["seeds"]} seeds',
      f'{o["test_tasks"]} unseen tasks, {o["shots"]} shots. Distance: total '
      'variation of the probabilities']
  for how in HOWS:
    lines += ['', f'ANIL: {how}; MTL: {NEW_HEAD}', f'{"":16}{"accuracy":>15}'
              f'{"agreement":>25}{"distance":>25}',
              f'{"blocks":>6}{"lam. tau":>10}{"ANIL":>8}{"MTL":>7}'
              + f'{"A-M":>9}{"A-A":>8}{"M-M":>8}' * 2 + f'{"excess":>17}']
    lines += [_line(p) for p in result['points'] if p['how'] == how]
  return '\n'.join([
      *lines, '', 'A-M: same start. A-A, M-M: two seeds of one method. excess: '
      'A-M at another start less the', 'mean of A-A and M-M, of distances, '
      'with its 95% interval over unseen tasks', '',
      f'No verdict: {verdict(result)}'])


def _line(p):
  columns = ('same start', 'two ANILs', 'two MTLs')
  cells = [f'{p["accuracy"][m]["mean"]:{w}.1%}'
           for m, w in (('anil', 8), ('mtl', 7))]
  for measure, form in (('agreement', '.1%'), ('distance', '.3f')):
    cells += [f'{p[measure][c]["mean"]:{w}{form}}'
              for c, w in zip(columns, (9, 8, 8), strict=True)]
  excess = p['excess']['distance']
  return (f'{p["depth"]:6}{p["time"]:10g}' + ''.join(cells)
          + f'{excess["mean"]:+9.3f} +-{excess["ci95"]:.3f}')


def table(result):
  """Returns (header, rows): one row per depth, lambda tau and adaptation."""
  names = {measure: list(result['points'][0][measure])
           for measure in ('accuracy', *MEASURES)}
  header = ('blocks', 'lambda tau', 'ANIL adapts', *(
      f'{measure}: {name}' for measure, of in names.items() for name in of),
            'excess agreement', 'excess distance')
  show = lambda v: f'{v["mean"]:.3f} +- {v["ci95"]:.3f}'
  return header, [(
      str(p['depth']), f'{p["time"]:g}', p['how'],
      *(show(p[measure][name]) for measure, of in names.items()
        for name in of),
      *(show(p['excess'][measure]) for measure in MEASURES))
                  for p in result['points']]


CHECK = check.Check(OPTIONS, run, verdict, summary, closeness_figures.draw,
                    table)
