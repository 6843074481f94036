"""The bound |F_ANIL - F_MTL| <= C (lambda tau + 1/L) on unseen tasks, measured.

Wang, Zhao and Li (ICML 2021) state it for infinitely wide networks of L hidden
layers, with lambda tau the rate times time of ANIL's inner loop in training.
The norm is the Euclidean one of all m k predictions on a test task. Kernels
and solves are in float64. `docs/theory.md` has the derivation and findings.
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.fields import COUNT, NOT_NEGATIVE, Field, Range
from mtl_jax.ntk import predictors
from mtl_jax.ntk.checks import bound_figures, bound_verdict, check
from mtl_jax.ntk.checks import tasks as task_sources
from mtl_jax.ntk.kernels import POOLS, Kernels, convolutional, fully_connected
from mtl_jax.ntk.precision import precision

CONTROLS = ('none', 'independent_heads', 'union')
DENSE = 'dense'
_BLOCK = 128  # side of a tile of kernels: half of them are mirror images

OPTIONS = {
    'dataset': Field(task_sources.RANDOM, 'random (regression tasks), or a '
                     'data set of images: mini_imagenet, omniglot, glyphs, ..'),
    'network': Field(DENSE, 'dense (fully connected), or of images: a '
                     'convolutional network with flat or global pooling',
                     (DENSE, *POOLS)),
    'side': Field(0, 'flat and global: height and width that images are '
                  'averaged down to; 0: their own', NOT_NEGATIVE),
    'times': Field(
        (0., 1e-3, 1e-2, .03, .1, .3, 1.),
        'values of lambda tau, rate times time of the inner loop in training',
        NOT_NEGATIVE, free=True),
    'depths': Field((1, 2, 4, 8, 16, 32, 64), 'numbers L of hidden layers',
                    COUNT, free=True),
    'draws': Field(20, 'random draws of tasks', Range(3), free=True),
    'seed': Field(0, 'seed of the draws', NOT_NEGATIVE),
    'test_time': Field(1., 'rate times time of adaptation to the test task; '
                       'inf: to convergence'),
    'control': Field('none', 'none; independent_heads or union change MTL so '
                     'that it must fail', CONTROLS),
    'tasks': Field(8, 'T, training tasks of a draw', COUNT),
    'queries': Field(None, 'query points per task (10), or images: query '
                     'images per class (5)', COUNT, kind=int),
    'support': Field(10, 'random: support points per task', COUNT),
    'dims': Field(10, 'random: dimensions of inputs', COUNT),
    'outputs': Field(5, 'random: outputs k', COUNT),
    'shared': Field(0.5, 'random: correlation of the teachers of two tasks, 0 '
                    'to 1'),
    'ways': Field(5, 'images: classes per task', COUNT),
    'shots': Field(5, 'images: support images per class', COUNT),
}


def run(options, folder):
  """Measures the gap on the grid and writes bound.json, .md and figures.

  Every draw has a file in `folder`/cells, written anew after each depth; what
  it holds is not computed again.

  Args:
    options: dict of OPTIONS; those left out keep their defaults.
    folder: epath.Path, made if need be.

  Returns:
    The contents of bound.json.

  Raises:
    UserError: an option is wrong, or `folder` belongs to other options.
  """
  o = settle(options)
  source = make_source(o)
  check.claim_cells(folder, 'bound', OPTIONS, o)
  started = time.monotonic()
  cells = []
  for number in tqdm.tqdm(range(o.draws), f'bound, {o.dataset}, '
                          f'control {o.control}', unit='draw'):
    cells.append(_draw(o, source, number, folder / 'cells'))
  result = check.write(folder / 'bound.json', {
      'options': o._asdict(), 'source': source.text,
      'norm': 'Euclidean norm of all m k predictions on the test query',
      'predictions': list(source.draw(0).test_query_y.shape),
      **bound_verdict.judge(o, cells), 'seconds': time.monotonic() - started})
  files.write(folder / 'bound.md', bound_verdict.markdown(result))
  bound_figures.draw(result, folder)
  return result


CHECK = check.Check(
    OPTIONS, run, bound_verdict.verdict, bound_verdict.summary,
    bound_figures.draw, bound_verdict.table)


def settle(options):
  """Returns all options, with sorted axes; raises UserError."""
  o = check.settle(OPTIONS, options)
  times, depths = sorted(set(o.times)), sorted(set(o.depths))
  if len(times) < 3 or times[0] > 0:
    raise UserError('--times: 0 and two larger ones are needed, for the limit '
                    'and for slopes')
  if len(depths) < 3 or depths[-2] * 2 > depths[-1]:
    raise UserError('--depths: three or more are needed, the last at least '
                    'twice the one before, to see what a doubling does')
  if not o.test_time >= 0:  # may be inf
    raise UserError(f'--test_time is {o.test_time}: must be at least 0')
  if o.network != DENSE and o.dataset == task_sources.RANDOM:
    raise UserError(f'--network: {o.network} needs images: set --dataset')
  if o.side and o.network == DENSE:
    raise UserError(f'--side is {o.side}: only --network=flat and global '
                    'average images down')
  queries = o.queries
  if queries is None:
    queries = 10 if o.dataset == task_sources.RANDOM else 5
  return o._replace(times=tuple(times), depths=tuple(depths), queries=queries)


def make_source(o):
  """Returns the Source of tasks; raises UserError."""
  if o.dataset == task_sources.RANDOM:
    return task_sources.regression(
        tasks=o.tasks, queries=o.queries, support=o.support, dims=o.dims,
        outputs=o.outputs, shared=o.shared, seed=o.seed)
  return task_sources.images(
      o.dataset, tasks=o.tasks, ways=o.ways, shots=o.shots, queries=o.queries,
      seed=o.seed, side=None if o.network == DENSE else o.side)


def dense(x, depth):
  """Returns the Kernels of points [n, d] in a fully connected network."""
  return fully_connected(x, depth=depth, block=_BLOCK)


def make_kernel(network, shape):
  """Returns (points [n, d], depth) -> Kernels.

  Zero padding takes length from the images, layer by layer. The read-out of a
  convolutional network is scaled so that K(x, x) is 1 on average, as it is in
  a dense one: lambda tau then means the same at all depths.

  Args:
    network: 'dense', 'flat' or 'global'.
    shape: (h, w, c) of flattened images of unit length; None for 'dense'.
  """
  if network == DENSE:
    return dense

  def kernel(x, depth):
    pixels = x.reshape(-1, *shape) * np.sqrt(shape[0] * shape[1])
    kernels = convolutional(pixels, depth=depth, pool=network)
    return Kernels(*(k / jnp.mean(jnp.diagonal(kernels.nngp))
                     for k in kernels))

  return kernel


class Gap(NamedTuple):
  """Predictions on a test task, J values of lambda tau."""

  anil: jax.Array  # [J, m, k]
  mtl: jax.Array  # [m, k]
  head: jax.Array  # [m, k], what the new head predicts without training
  anil_range: tuple[jax.Array, jax.Array]  # eigenvalues of Phi, each [J]
  mtl_range: tuple[jax.Array, jax.Array]


def predictions(drawn, depth, times, test_time, control='none', kernel=dense):
  """Returns the Gap of a draw at one depth; call where float64 is on.

  Args:
    drawn: Tasks.
    depth: L.
    times: values of lambda tau, [J].
    test_time: of adaptation to the test task.
    control: of CONTROLS.
    kernel: of `make_kernel`.
  """
  rows = _rows(drawn)
  # Each result is waited for: with two threads XLA's CPU client can lock up
  # when solves run side by side (jax 0.10.2), and they are no faster.
  kernels = jax.block_until_ready(kernel(_inputs(drawn), depth))
  query, support = _points(drawn.query_y), _points(drawn.support_y)
  labelled = np.concatenate([rows['query'], rows['support'], rows['known']])
  known_y = jnp.asarray(drawn.test_support_y)
  anil = jax.block_until_ready(_anil(
      _part(kernels, labelled, labelled),
      _part(kernels, rows['test'], labelled), query, support, known_y,
      jnp.asarray(times), test_time))

  kernels, seen, query = _joint(control, drawn, kernels, rows, query)
  labelled = np.append(seen, rows['known'])
  mtl = jax.block_until_ready(predictors.from_kernels(
      'mtl', _part(kernels, labelled, labelled),
      _part(kernels, rows['test'], labelled), query, None, known_y,
      (0., None), (test_time, None), jnp.inf))
  return Gap(anil.values, mtl.values, mtl.head,
             (anil.smallest, anil.largest), (mtl.smallest, mtl.largest))


def _inputs(drawn):
  """Returns all inputs of a draw in the order of `_rows`."""
  return jnp.concatenate([
      *(part.reshape(-1, part.shape[-1])
        for part in (drawn.query_x, drawn.support_x)),
      drawn.test_support_x, drawn.test_query_x])


def _rows(drawn):
  """Returns which rows of the kernels belong to what: {name: [rows]}."""
  sizes = [drawn.query_y[..., 0].size, drawn.support_y[..., 0].size,
           len(drawn.test_support_y), len(drawn.test_query_y)]
  parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
  return dict(zip(('query', 'support', 'known', 'test'), parts, strict=True))


def _joint(control, drawn, kernels, rows, query):
  """Returns the kernels, rows and Points that MTL trains on."""
  (t, n), s = drawn.query_y.shape[:2], drawn.support_y.shape[1]
  seen = rows['query'].reshape(t, n)
  if control == 'union':
    seen = np.concatenate([seen, rows['support'].reshape(t, s)], 1)
    query = _points(np.concatenate([drawn.query_y, drawn.support_y], 1))
  elif control == 'independent_heads':
    kernels = _independent(kernels, t, n, s)
  return kernels, seen, query


def _points(y):
  """Returns Points with targets alone: kernels replace their inputs."""
  return predictors.Points(jnp.zeros((*y.shape[:2], 0)), jnp.asarray(y),
                           np.ones(y.shape[:2], bool))


def _part(kernels, rows, columns):
  return Kernels(*(k[np.ix_(rows, columns)] for k in kernels))


@jax.jit
def _anil(train, test, query, support, test_support_y, times, test_time):
  """Returns Solved for all values [J] of lambda tau."""
  # In sequence and not by vmap: see `predictions`.
  return jax.lax.map(lambda inner_time: predictors.from_kernels(
      'anil', train, test, query, support, test_support_y,
      (inner_time, None), (test_time, None), jnp.inf), times)


def _independent(kernels, tasks, n, s):
  """Returns Kernels where heads of two tasks have nothing in common.

  Inner products of the body's gradients of tasks i and j have the factor
  <v_i, v_j>, which is 0 for two heads drawn apart. So the body's kernel stays
  within a task only. The test task is a task of its own here.
  """
  of_task = np.concatenate([np.repeat(np.arange(tasks), n),
                            np.repeat(np.arange(tasks), s)])
  of_task = np.append(of_task, [tasks] * (len(kernels.ntk) - len(of_task)))
  same = of_task[:, None] == of_task
  return Kernels(kernels.nngp,
                 kernels.nngp + jnp.where(same, kernels.body, 0))


def _draw(o, source, number, folder):
  """Returns {depth: {time: cell}} of a draw; its file keeps what it has."""
  file = folder / f'draw_{number:04d}.json'
  grid = check.read(file, {})
  drawn, kernel = None, make_kernel(o.network, source.shape)
  for depth in o.depths:
    row = grid.setdefault(str(depth), {})
    times = [t for t in o.times if str(t) not in row]
    if not times:
      continue
    drawn = drawn or source.draw(number)
    with precision('float64'):
      gap = jax.device_get(predictions(
          drawn, depth, times, o.test_time, o.control, kernel))
    row.update(_cells(times, gap, drawn))
    files.write(file, check.text(grid))
  return grid


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
