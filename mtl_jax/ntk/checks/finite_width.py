"""Networks of finite width against the closed forms: a fall like 1/sqrt(m)?

The library's own MTL and ANIL train networks of a width m; `networks.py` says
how, `docs/theory.md` what is expected. The distance to the closed form is the
root mean square over draws of the initial values (its mean over draws would
fall like 1/m), and over the predictions on the test task. Tasks are fixed.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field, Range
from mtl_jax.models import mlp
from mtl_jax.ntk import kernels, predictors
from mtl_jax.ntk.checks import check, finite_width_figures, networks
from mtl_jax.ntk.flow import Steps

NAME = 'finite_width'
LONG = (2048, 4096)
EXPECTED = -0.5
_NARROW = 0.2  # half-width of an interval that can tell it from -1/4
_FIT_FROM = 256  # below, terms of higher order in 1/sqrt(m) are seen
_RESAMPLES = 2000
QUANTITIES = ('anil', 'mtl', 'kernel')

# Rates are the theory's: of half the sum of squared errors.
OPTIONS = {
    'widths': Field((64, 128, 256, 512, 1024), 'widths m of the networks',
                    COUNT, free=True),
    'long': Field(False, 'whether to add the widths 2048 and 4096; about an '
                  'hour on two cores', free=True),
    'depths': Field((1, 3), 'numbers L of hidden layers', COUNT, free=True),
    'draws': Field(24, 'draws of the initial values; 10 or more give useful '
                   'intervals', Range(2), free=True),
    'tasks': Field(4, 'T, training tasks', COUNT),
    'queries': Field(4, 'query points per task', COUNT),
    'support': Field(4, 'support points per task', COUNT),
    'test_points': Field(16, 'points of the test task to predict', COUNT),
    'dims': Field(10, 'dimensions of the inputs, which are on the unit sphere',
                  COUNT),
    'outputs': Field(2, 'k, classes per task; targets are one-hot', COUNT),
    'train_time': Field(1.5, 'rate times steps of training', POSITIVE),
    'train_steps': Field(50, 'number of training steps', COUNT),
    'inner_time': Field(0.5, 'lambda tau, rate times steps of the inner loop',
                        POSITIVE),
    'inner_steps': Field(5, 'number of inner steps', COUNT),
    'test_time': Field(1., 'rate times steps of adaptation to the test task',
                       POSITIVE),
    'test_steps': Field(5, 'number of steps of adaptation', COUNT),
    'seed': Field(0, 'seed of tasks and initial values', NOT_NEGATIVE),
}


def run(options, folder):
  """Trains the networks and writes finite_width.json and figures.

  Args:
    options: dict of OPTIONS; those left out keep their defaults.
    folder: epath.Path, made if need be; what it holds of other widths, depths
      and draws with these options is not trained again.

  Returns:
    The contents of finite_width.json.

  Raises:
    UserError: an option is wrong, or `folder` belongs to other options.
  """
  o = settle(options)
  started = time.monotonic()
  files.make(folder)
  file = folder / f'{NAME}_draws.json'
  stored = check.read(file, {'options': {}, 'draws': {}})
  stored['options'] = check.claim(folder, OPTIONS, o, stored['options'])
  tasks = draw_tasks(o)
  closed = {}
  cells = [(depth, width) for depth in o.depths for width in o.widths]
  bar = tqdm.tqdm(cells, NAME, unit='width')
  for depth, width in bar:
    bar.set_postfix(depth=depth, width=width)
    if depth not in closed:
      closed[depth] = closed_forms(o, tasks, depth)
    values = stored['draws'].setdefault(f'{depth} {width}', [])
    while len(values) < o.draws:
      values.append(_draw(o, tasks, depth, width, len(values)))
      files.write(file, check.text(stored))
  result = check.write(folder / f'{NAME}.json', {
      'options': o._asdict(), **_judge(o, closed, stored['draws']),
      'seconds': time.monotonic() - started})
  finite_width_figures.draw(result, folder)
  return result


def settle(options):
  """Returns all options, with sorted axes; raises UserError."""
  o = check.settle(OPTIONS, options)
  widths = sorted({*o.widths, *(LONG if o.long else ())})
  if sum(width >= _FIT_FROM for width in widths) < 2:
    raise UserError(f'--widths: two from {_FIT_FROM} on are needed to fit')
  if not o.depths:
    raise UserError('--depths: one number or more is needed')
  return o._replace(widths=tuple(widths), depths=tuple(sorted(set(o.depths))))


def draw_tasks(o):
  """Returns networks.Tasks: the classes are those of linear teachers."""
  rng = np.random.default_rng([o.seed, 0])
  common = rng.normal(size=(o.dims, o.outputs))

  def points(*shape):
    x = rng.normal(size=(*shape, o.dims))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  def labels(x, own):
    return np.argmax(x @ (common + own), -1).astype(np.int32)

  own = rng.normal(size=(o.tasks + 1, o.dims, o.outputs))
  query, support = points(o.tasks, o.queries), points(o.tasks, o.support)
  test, known = points(o.test_points), points(o.support)
  return networks.Tasks(
      query, labels(query, own[:-1]), support, labels(support, own[:-1]),
      test, known, labels(known, own[-1]))


def descent(o):
  """Returns networks.Descent."""
  return networks.Descent(*(
      Steps(time / steps, steps) for time, steps in (
          (o.train_time, o.train_steps), (o.inner_time, o.inner_steps),
          (o.test_time, o.test_steps))))


def closed_forms(o, tasks, depth):
  """Returns {'anil', 'mtl'}: predictions [m, k]; {'kernel'}: Theta."""
  steps, onehot = descent(o), np.eye(o.outputs)
  result = {method: np.asarray(predictors.predict(
      method, query_x=tasks.query_x, query_y=onehot[tasks.query_y],
      support_x=tasks.support_x, support_y=onehot[tasks.support_y],
      test_query_x=tasks.test_query_x, test_support_x=tasks.test_support_x,
      test_support_y=onehot[tasks.test_support_y], depth=depth,
      train_time=steps.train, inner_time=steps.inner, test_time=steps.test,
      dtype='float64').values) for method in ('anil', 'mtl')}
  result['kernel'] = np.asarray(kernels.fully_connected(
      tasks.test_support_x, depth=depth, dtype='float64').ntk)
  return result


def _draw(o, tasks, depth, width, number):
  """Returns what `closed_forms` returns, of one network, as nested lists."""
  key = jax.random.fold_in(jax.random.key(o.seed), number)
  initial = networks.start(key, width, depth, o.dims, o.outputs)
  cast = jax.tree.map(
      lambda a: jnp.asarray(a, jnp.float32 if a.dtype == float else a.dtype),
      tasks)
  trained = networks.train(cast, initial, width, depth, o.outputs, descent(o))
  model = mlp.Mlp(width, depth)
  output = lambda params, x: (
      model.apply({'params': params['body']}, x, train=False)
      @ params['head'])
  kernel = kernels.empirical(
      output, {'body': initial['backbone']['left'],
               'head': initial['head'][:width, 0]},
      cast.test_support_x, block=4).ntk
  return {name: np.asarray(a).tolist() for name, a in zip(
      QUANTITIES, (*trained, kernel), strict=True)}


def _judge(o, closed, draws):
  """Returns distances, slopes and the verdict."""
  depths = {}
  for depth in o.depths:
    cells = [[{name: np.asarray(draw[name]) for name in QUANTITIES}
              for draw in draws[f'{depth} {width}'][:o.draws]]
             for width in o.widths]
    depths[str(depth)] = _judge_depth(o, closed[depth], cells)
  intervals = [at_depth['slopes'][name]['interval']
               for at_depth in depths.values() for name in QUANTITIES]
  # A wide interval contains everything.
  told = all(high - low <= 2 * _NARROW for low, high in intervals)
  holds = told and all(low <= EXPECTED <= high for low, high in intervals)
  return {'depths': depths, 'told': told, 'holds': holds}


def _judge_depth(o, exact, cells):
  """Returns the distances of cells [widths][draws] to the closed forms."""
  squares = {name: np.array([[np.mean((draw[name] - exact[name]) ** 2)
                              for draw in cell] for cell in cells])
             for name in QUANTITIES}
  apart = exact['anil'] - exact['mtl']
  squares['difference'] = np.array([
      [np.mean((draw['anil'] - draw['mtl'] - apart) ** 2) for draw in cell]
      for cell in cells])
  gaps = np.array([[np.linalg.norm(draw['anil'] - draw['mtl'])
                    for draw in cell] for cell in cells])
  return {
      'rms': {name: np.sqrt(np.mean(square, 1)).tolist()
              for name, square in squares.items()},
      'slopes': {name: fit(o.widths, square, o.seed)
                 for name, square in squares.items()},
      'size': {name: float(np.sqrt(np.mean(exact[name] ** 2)))
               for name in QUANTITIES},
      'gap': {'closed': float(np.linalg.norm(apart)),
              'mean': gaps.mean(1).tolist(),
              'error': (gaps.std(1, ddof=1)
                        / np.sqrt(gaps.shape[1])).tolist()}}


def fit(widths, squares, seed=0):
  """Fits the exponent of root mean squares over widths from 256.

  Args:
    widths: [W], two or more from 256.
    squares: mean squared distances [W, draws].
    seed: of the bootstrap.

  Returns:
    {'slope', 'interval'}: least squares in logarithms, and its 2.5 and 97.5
    percentiles over bootstrap resamples of the draws of each width.
  """
  wide = np.asarray(widths) >= _FIT_FROM
  x, squares = np.log(np.asarray(widths)[wide]), squares[wide]
  x = x - x.mean()
  slope = lambda s: np.log(np.mean(s, -1)).T / 2 @ x / (x @ x)
  rng = np.random.default_rng([seed, 1])
  again = rng.integers(squares.shape[1],
                       size=(len(x), _RESAMPLES, squares.shape[1]))
  slopes = slope(np.take_along_axis(squares[:, None], again, -1))
  return {'slope': float(slope(squares)),
          'interval': np.percentile(slopes, [2.5, 97.5]).tolist()}


def verdict(result):
  """Returns the verdict in one line."""
  holds = result['holds']
  if not result['told']:
    return ('undecided: a 95% interval of an exponent is wider than '
            f'+- {_NARROW}: take more --draws')
  return ('the distances of ANIL, of MTL and of their kernel '
          + ('fall' if holds else 'do NOT all fall')
          + ' like 1/sqrt(m): the 95% intervals of their exponents '
          + ('contain' if holds else 'do not all contain') + ' -1/2')


def summary(result):
  """Returns the result as lines of text."""
  o = result['options']
  lines = [
      'Networks of width m, trained by MTL and ANIL, against the closed forms:',
      f'{o["tasks"]} tasks of {o["queries"]} + {o["support"]} points, '
      f'{o["outputs"]} outputs, {o["train_steps"]} steps, time '
      f'{o["train_time"]:g}; lambda tau {o["inner_time"]:g}; {o["draws"]} '
      'draws']
  for depth, at_depth in result['depths'].items():
    lines += ['', *_lines(o['widths'], depth, at_depth)]
  return '\n'.join([*lines, '', f'Verdict: {verdict(result)}'])


def _lines(widths, depth, at_depth):
  """Returns the lines of a summary for one depth."""
  columns, gap = (*QUANTITIES, 'difference'), at_depth['gap']
  lines = [f'depth {depth}: root mean square distance over draws',
           f'{"width":>10}' + ''.join(f'{c:>12}' for c in columns)
           + f'{"|ANIL-MTL|":>18}']
  for i, width in enumerate(widths):
    cells = ''.join(f'{at_depth["rms"][c][i]:12.4f}' for c in columns)
    lines.append(f'{width:10}{cells}{gap["mean"][i]:10.3f} '
                 f'+-{gap["error"][i]:6.3f}')
  lines.append(f'{"infinite":>10}{"":48}{gap["closed"]:10.3f}')
  for c in columns:
    low, high = at_depth['slopes'][c]['interval']
    lines.append(f'  exponent of {c:10} {at_depth["slopes"][c]["slope"]:6.2f} '
                 f'[{low:.2f}, {high:.2f}]')
  return lines


CHECK = check.Check(OPTIONS, run, verdict, summary, finite_width_figures.draw,
                    table=lambda result: None)
