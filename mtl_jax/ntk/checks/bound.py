"""The bound |F_ANIL - F_MTL| <= C (lambda tau + 1/L) on unseen tasks, measured.

Wang, Zhao and Li (ICML 2021) state it for infinitely wide networks of L hidden
layers, with lambda tau the rate times time of ANIL's inner loop in training.
The norm is the Euclidean one of all m k predictions on a test task. Kernels
and solves are in float64. `docs/theory.md` has the derivation and findings.
"""

import json
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from mtl_jax import files
from mtl_jax.errors import UserError, check_choice
from mtl_jax.ntk import predictors
from mtl_jax.ntk.checks import bound_figures, bound_verdict
from mtl_jax.ntk.checks import tasks as task_sources
from mtl_jax.ntk.kernels import Kernels, fully_connected
from mtl_jax.ntk.precision import precision

CONTROLS = ('none', 'independent_heads', 'union')
figures, summary, table = (
    bound_figures.draw, bound_verdict.text, bound_verdict.table)
_BLOCK = 128  # side of a tile of kernels: half of them are mirror images


class Options(NamedTuple):
  """What is measured.

  Fields:
    dataset: random (regression tasks), mini_imagenet, omniglot or glyphs
    times: values of lambda tau, rate times time of the inner loop in training
    depths: numbers L of hidden layers
    draws: random draws of tasks
    seed: of the draws
    test_time: rate times time of adaptation to the test task
    control: none; independent_heads or union change MTL so that it must fail
    tasks: T, training tasks of a draw
    queries: query points a task (10), or images: query images a class (5)
    support: random: support points a task
    dims: random: dimensions of inputs
    outputs: random: outputs k
    shared: random: correlation of the teachers of two tasks, 0 to 1
    ways: images: classes a task
    shots: images: support images a class
  """

  dataset: str = task_sources.RANDOM
  times: tuple[float, ...] = (0., 1e-3, 1e-2, .03, .1, .3, 1.)
  depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
  draws: int = 20
  seed: int = 0
  test_time: float = 1.
  control: str = 'none'
  tasks: int = 8
  queries: int | None = None  # 10 random points, or 5 images a class
  support: int = 10
  dims: int = 10
  outputs: int = 5
  shared: float = 0.5
  ways: int = 5
  shots: int = 5


# A folder can be gone on with when these change: its grid is enlarged.
_FREE = ('times', 'depths', 'draws')


def run(options, folder):
  """Measures the gap on the grid and writes bound.json, .md and figures.

  Every draw has a file in `folder`/cells, written anew after each depth; what
  is found there is not computed again.

  Args:
    options: Options.
    folder: epath.Path, made if need be.

  Returns:
    The contents of bound.json.

  Raises:
    UserError: an option is wrong, or `folder` belongs to other options.
  """
  options = check(options)
  source = make_source(options)
  _claim(options, folder)
  started = time.monotonic()
  cells = []
  for number in tqdm.tqdm(range(options.draws), f'bound, {options.dataset}, '
                          f'control {options.control}', unit='draw'):
    cells.append(_draw(options, source, number, folder / 'cells'))
  result = bound_verdict.judge(options, cells)
  result = {
      'options': options._asdict(), 'source': source.text,
      'norm': 'Euclidean norm of all m k predictions on the test query',
      'predictions': list(source.draw(0).test_query_y.shape), **result,
      'seconds': time.monotonic() - started}
  files.write(folder / 'bound.json', json.dumps(result, indent=1))
  files.write(folder / 'bound.md', bound_verdict.markdown(result))
  bound_figures.draw(result, folder)
  return result


def check(options):
  """Returns Options with sorted axes; raises UserError."""
  check_choice('--control', options.control, CONTROLS)
  times, depths = sorted(set(options.times)), sorted(set(options.depths))
  if not times or not 0 <= times[0] or not np.isfinite(times[-1]):
    raise UserError('--times: numbers from 0 on are needed')
  if times[0] > 0 or len(times) < 3:
    raise UserError('--times: 0 and two larger ones are needed, for the limit '
                    'and for slopes')
  if not depths or depths[0] < 1:
    raise UserError('--depths: numbers from 1 on are needed')
  if len(depths) < 3 or depths[-2] * 2 > depths[-1]:
    raise UserError('--depths: three or more are needed, the last at least '
                    'twice the one before, to see what a doubling does')
  if options.draws < 3:
    raise UserError(f'--draws: {options.draws}; intervals need 3 or more')
  if not options.test_time >= 0:
    raise UserError(f'--test_time: {options.test_time} is negative')
  queries = options.queries
  if queries is None:
    queries = 10 if options.dataset == task_sources.RANDOM else 5
  return options._replace(times=tuple(times), depths=tuple(depths),
                          queries=queries)


def make_source(options):
  """Returns the Source of tasks; raises UserError."""
  if options.dataset == task_sources.RANDOM:
    return task_sources.regression(
        tasks=options.tasks, queries=options.queries, support=options.support,
        dims=options.dims, outputs=options.outputs, shared=options.shared,
        seed=options.seed)
  return task_sources.images(
      options.dataset, tasks=options.tasks, ways=options.ways,
      shots=options.shots, queries=options.queries, seed=options.seed)


class Gap(NamedTuple):
  """Predictions on a test task, J values of lambda tau."""

  anil: jax.Array  # [J, m, k]
  mtl: jax.Array  # [m, k]
  head: jax.Array  # [m, k], what the new head predicts without training
  anil_range: tuple[jax.Array, jax.Array]  # eigenvalues of Phi, each [J]
  mtl_range: tuple[jax.Array, jax.Array]


def predictions(drawn, depth, times, test_time, control='none'):
  """Returns the Gap of a draw at one depth; call where float64 is on.

  Args:
    drawn: Tasks.
    depth: L.
    times: values of lambda tau, [J].
    test_time: of adaptation to the test task.
    control: of CONTROLS.
  """
  x = jnp.concatenate([
      *(part.reshape(-1, part.shape[-1])
        for part in (drawn.query_x, drawn.support_x)),
      drawn.test_support_x, drawn.test_query_x])
  # Each is waited for: on two threads XLA's CPU client can lock up when solves
  # run side by side (jax 0.10.2), and nothing is gained by it.
  kernels = jax.block_until_ready(
      fully_connected(x, depth=depth, block=_BLOCK))
  (t, n), s = drawn.query_y.shape[:2], drawn.support_y.shape[1]
  parts = np.split(np.arange(len(x)), np.cumsum(
      [t * n, t * s, len(drawn.test_support_y)]))
  rows = dict(zip(('query', 'support', 'known', 'test'), parts, strict=True))
  query, support = _points(drawn.query_y), _points(drawn.support_y)
  labelled = np.concatenate([rows['query'], rows['support'], rows['known']])
  known_y = jnp.asarray(drawn.test_support_y)
  anil = jax.block_until_ready(_anil(
      _part(kernels, labelled, labelled),
      _part(kernels, rows['test'], labelled), query, support, known_y,
      jnp.asarray(times), test_time))

  seen = rows['query'].reshape(t, n)
  if control == 'union':
    seen = np.concatenate([seen, rows['support'].reshape(t, s)], 1)
    query = _points(np.concatenate([drawn.query_y, drawn.support_y], 1))
  elif control == 'independent_heads':
    kernels = _independent(kernels, t, n, s)
  labelled = np.append(seen, rows['known'])
  mtl = jax.block_until_ready(predictors.from_kernels(
      'mtl', _part(kernels, labelled, labelled),
      _part(kernels, rows['test'], labelled), query, None, known_y,
      (0., None), (test_time, None), jnp.inf))
  return Gap(anil.values, mtl.values, mtl.head,
             (anil.smallest, anil.largest), (mtl.smallest, mtl.largest))


def _points(y):
  """Returns Points with targets alone: kernels stand for their inputs."""
  return predictors.Points(jnp.zeros((*y.shape[:2], 0)), jnp.asarray(y),
                           np.ones(y.shape[:2], bool))


def _part(kernels, rows, columns):
  return Kernels(*(k[np.ix_(rows, columns)] for k in kernels))


@jax.jit
def _anil(train, test, query, support, test_support_y, times, test_time):
  """Returns Solved for all values [J] of lambda tau."""
  # One after another and not by vmap, see `predictions`.
  return jax.lax.map(lambda inner_time: predictors.from_kernels(
      'anil', train, test, query, support, test_support_y,
      (inner_time, None), (test_time, None), jnp.inf), times)


def _independent(kernels, tasks, n, s):
  """Returns Kernels where heads of two tasks have nothing in common.

  Gradients in the body of tasks i and j have the product <v_i, v_j> in them,
  which is 0 for two heads drawn apart: the body's kernel is left within a
  task, and the test task is one more.
  """
  of_task = np.concatenate([np.repeat(np.arange(tasks), n),
                            np.repeat(np.arange(tasks), s)])
  of_task = np.append(of_task, [tasks] * (len(kernels.ntk) - len(of_task)))
  same = of_task[:, None] == of_task
  return Kernels(kernels.nngp,
                 kernels.nngp + jnp.where(same, kernels.body, 0))


def _draw(options, source, number, folder):
  """Returns {depth: {time: cell}} of a draw, from its file where it is."""
  file = folder / f'draw_{number:04d}.json'
  found = _read(file)
  drawn = None
  for depth in options.depths:
    row = found.setdefault(str(depth), {})
    times = [t for t in options.times if str(t) not in row]
    if not times:
      continue
    drawn = drawn or source.draw(number)
    with precision('float64'):
      gap = jax.device_get(predictions(
          drawn, depth, times, options.test_time, options.control))
    row.update(_cells(times, gap, drawn))
    files.write(file, json.dumps(found))
  return found


def _cells(times, gap, drawn):
  """Returns {time: numbers that are kept of it}; raises UserError."""
  one_hot = set(np.unique(drawn.test_query_y)) <= {0., 1.}
  right = lambda y: float(np.mean(
      y.argmax(-1) == drawn.test_query_y.argmax(-1)))
  error = lambda y: float(np.linalg.norm(y - drawn.test_query_y))
  size = drawn.query_y[..., 0].size
  condition = lambda smallest, largest: predictors.condition(
      float(smallest), float(largest), size, gap.mtl.dtype)
  cells = {}
  for j, inner_time in enumerate(times):
    anil = gap.anil[j]
    cells[str(inner_time)] = {
        'gap': float(np.linalg.norm(anil - gap.mtl)),
        'trained': float(np.linalg.norm(anil - gap.head)),
        'anil_error': error(anil), 'mtl_error': error(gap.mtl),
        'anil_accuracy': right(anil) if one_hot else None,
        'mtl_accuracy': right(gap.mtl) if one_hot else None,
        'anil_condition': condition(*(r[j] for r in gap.anil_range)),
        'mtl_condition': condition(*gap.mtl_range)}
  return cells


def _read(file):
  """Returns what is stored of a draw; {} where nothing is."""
  if not file.exists():
    return {}
  try:
    return json.loads(file.read_text())
  except ValueError as error:
    raise UserError(f'{file} is damaged: delete it, it is computed '
                    'again') from error


def _claim(options, folder):
  """Makes the folder that of these options; raises UserError if another's."""
  mine = {name: value for name, value in options._asdict().items()
          if name not in _FREE}
  files.make(folder / 'cells')
  file = folder / 'bound_options.json'
  theirs = _read(file)
  for name, value in theirs.items():
    if mine.get(name) != value:
      raise UserError(f'--out: {folder} holds --{name}={value}, not '
                      f'{mine.get(name)}: set it so, or name another folder')
  files.write(file, json.dumps(mine))
