"""Networks of finite width against the closed forms: a fall like 1/sqrt(m)?

The library's own MTL and ANIL train networks of a width m; `networks.py` says
how, `docs/theory.md` what is expected. The distance to the closed form is the
root mean square over draws of the initial values (its mean over draws would
fall like 1/m), and over the predictions on the test task. Tasks are fixed.
"""

import json
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.models import mlp
from mtl_jax.ntk import kernels, predictors
from mtl_jax.ntk.checks import finite_width_figures, networks
from mtl_jax.ntk.flow import Steps

NAME = 'finite_width'
LONG = (2048, 4096)
EXPECTED = -0.5
_FIT_FROM = 256  # below, terms of higher order in 1/sqrt(m) are seen
_RESAMPLES = 2000
QUANTITIES = ('anil', 'mtl', 'kernel')
figures = finite_width_figures.draw


class Options(NamedTuple):
  """What is measured; times are the theory's: rates times numbers of steps.

  Fields:
    widths: numbers m
    long: whether to go on to widths 2048 and 4096; about an hour on two cores
    depths: numbers L of hidden layers
    draws: of the initial values, 10 or more
    tasks: T, training tasks
    queries: query points a task
    support: support points a task
    test_points: points of the test task to predict
    dims: dimensions of the inputs, which are on the unit sphere
    outputs: k, classes a task; targets are one-hot
    train_time: of training
    train_steps: number of training steps
    inner_time: of the inner loop, lambda tau
    inner_steps: number of inner steps
    test_time: of adaptation to the test task
    test_steps: number of steps of adaptation
    seed: of tasks and initial values
  """

  widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
  long: bool = False
  depths: tuple[int, ...] = (1, 3)
  draws: int = 24
  tasks: int = 4
  queries: int = 4
  support: int = 4
  test_points: int = 16
  dims: int = 10
  outputs: int = 2
  train_time: float = 1.5
  train_steps: int = 50
  inner_time: float = 0.5
  inner_steps: int = 5
  test_time: float = 1.
  test_steps: int = 5
  seed: int = 0


# A folder can be gone on with when these change: there is more to do.
_FREE = ('widths', 'long', 'depths', 'draws')


def run(options, folder):
  """Trains the networks and writes finite_width.json and figures.

  Args:
    options: Options.
    folder: epath.Path, made if need be; what it holds of other widths, depths
      and draws with these options is not trained again.

  Returns:
    The contents of finite_width.json.

  Raises:
    UserError: an option is wrong, or `folder` belongs to other options.
  """
  o = _check(options)
  started = time.monotonic()
  file = folder / f'{NAME}_draws.json'
  found = _claim(o, folder, file)
  tasks = draw_tasks(o)
  closed = {}
  cells = [(depth, width) for depth in o.depths for width in o.widths]
  bar = tqdm.tqdm(cells, NAME, unit='width')
  for depth, width in bar:
    bar.set_postfix(depth=depth, width=width)
    if depth not in closed:
      closed[depth] = closed_forms(o, tasks, depth)
    values = found['draws'].setdefault(f'{depth} {width}', [])
    while len(values) < o.draws:
      values.append(_draw(o, tasks, depth, width, len(values)))
      files.write(file, json.dumps(found))
  result = {'options': o._asdict(), **_judge(o, closed, found['draws']),
            'seconds': time.monotonic() - started}
  result = json.loads(json.dumps(result))
  files.write(folder / f'{NAME}.json', json.dumps(result, indent=1))
  figures(result, folder)
  return result


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
  """Returns what closed_forms does, of one network; lists of numbers."""
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
    exact = closed[depth]
    cells = [[{name: np.asarray(one[name]) for name in QUANTITIES}
              for one in draws[f'{depth} {width}'][:o.draws]]
             for width in o.widths]
    squares = {name: np.array([[np.mean((one[name] - exact[name]) ** 2)
                                for one in cell] for cell in cells])
               for name in QUANTITIES}
    apart = exact['anil'] - exact['mtl']
    gaps = np.array([[np.linalg.norm(one['anil'] - one['mtl'])
                      for one in cell] for cell in cells])
    squares['difference'] = np.array([
        [np.mean((one['anil'] - one['mtl'] - apart) ** 2) for one in cell]
        for cell in cells])
    fits = {name: fit(o.widths, square, o.seed)
            for name, square in squares.items()}
    depths[str(depth)] = {
        'rms': {name: np.sqrt(np.mean(square, 1)).tolist()
                for name, square in squares.items()},
        'slopes': fits,
        'size': {name: float(np.sqrt(np.mean(exact[name] ** 2)))
                 for name in QUANTITIES},
        'gap': {'closed': float(np.linalg.norm(apart)),
                'mean': gaps.mean(1).tolist(),
                'error': (gaps.std(1, ddof=1)
                          / np.sqrt(gaps.shape[1])).tolist()}}
  intervals = [found['slopes'][name]['interval']
               for found in depths.values() for name in ('anil', 'mtl')]
  holds = all(low <= EXPECTED <= high for low, high in intervals)
  return {'depths': depths, 'verdict': holds}


def fit(widths, squares, seed=0):
  """Fits the exponent of root mean squares over widths from 256.

  Args:
    widths: [W], two or more from 256.
    squares: mean squared distances [W, draws].
    seed: of the bootstrap.

  Returns:
    {'slope', 'interval'}: least squares in logarithms, and the 2.5 and 97.5
    percentiles when draws are drawn again with replacement, at each width by
    itself.
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


def summary(result):
  """Returns the result as lines of text."""
  o = Options(**result['options'])
  lines = [
      'Networks of width m, trained by MTL and ANIL, against the closed forms:',
      f'{o.tasks} tasks of {o.queries} + {o.support} points, '
      f'{o.outputs} outputs, {o.train_steps} steps, time {o.train_time:g}; '
      f'lambda tau {o.inner_time:g}; {o.draws} draws']
  for depth, found in result['depths'].items():
    columns, gap = (*QUANTITIES, 'difference'), found['gap']
    lines += ['', f'depth {depth}: root mean square distance over draws',
              f'{"width":>10}' + ''.join(f'{c:>12}' for c in columns)
              + f'{"|ANIL-MTL|":>18}']
    for i, width in enumerate(o.widths):
      cells = ''.join(f'{found["rms"][c][i]:12.4f}' for c in columns)
      lines.append(f'{width:10}{cells}{gap["mean"][i]:10.3f} '
                   f'+-{gap["error"][i]:6.3f}')
    lines.append(f'{"infinite":>10}{"":48}{gap["closed"]:10.3f}')
    for c in columns:
      low, high = found['slopes'][c]['interval']
      lines.append(f'  exponent of {c:10} {found["slopes"][c]["slope"]:6.2f} '
                   f'[{low:.2f}, {high:.2f}]')
  lines += ['', 'Verdict: the distances of ANIL and of MTL '
            + ('fall' if result['verdict'] else 'do NOT all fall')
            + ' like 1/sqrt(m): the 95% intervals of their exponents '
            + ('contain' if result['verdict'] else 'do not all contain')
            + ' -1/2']
  return '\n'.join(lines)


def _check(o):
  """Returns Options with sorted axes; raises UserError."""
  widths = sorted({*o.widths, *(LONG if o.long else ())})
  if sum(width >= _FIT_FROM for width in widths) < 2:
    raise UserError(f'--widths: two from {_FIT_FROM} on are needed to fit')
  if widths[0] < 1 or not o.depths or min(o.depths) < 1:
    raise UserError('--widths, --depths: numbers from 1 on are needed')
  for name in ('draws', 'tasks', 'queries', 'support', 'outputs', 'dims',
               'test_points', 'train_steps', 'inner_steps', 'test_steps'):
    least = 2 if name == 'draws' else 1
    if getattr(o, name) < least:
      raise UserError(f'--{name}: {getattr(o, name)}; use {least} or more')
  for name in ('train_time', 'inner_time', 'test_time'):
    if not 0 < getattr(o, name) < np.inf:
      raise UserError(f'--{name}: {getattr(o, name)} is not above 0')
  return o._replace(widths=tuple(widths), depths=tuple(sorted(set(o.depths))))


def _claim(o, folder, file):
  """Returns what the folder has of these options; UserError if another's."""
  files.make(folder)
  mine = {name: value for name, value in o._asdict().items()
          if name not in _FREE}
  found = (json.loads(file.read_text()) if file.exists()
           else {'options': mine, 'draws': {}})
  for name, value in mine.items():
    theirs = found['options'].get(name)
    if theirs != value:
      raise UserError(f'--out: {folder} holds --{name}={theirs}, not '
                      f'{value}: set it so, or name another folder')
  return found
