"""What wide networks predict after few-shot training, in closed form.

The loss is half the sum of squared errors, training is gradient flow, and the
output is zero at the start. A task i has query points (X_i, Y_i) and support
points (X'_i, Y'_i). Adapting to a support set takes predictions f(X) to
f(X) + A (Y' - f(X')). MTL and ANIL adapt the read-out alone, MAML all layers.
`docs/theory.md` derives it.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError, check_choice
from mtl_jax.ntk import flow
from mtl_jax.ntk.kernels import Kernels, fully_connected
from mtl_jax.ntk.precision import as_floats, precision

METHODS = ('anil', 'maml', 'mtl')


class Predictions(NamedTuple):
  """Predictions [m, k], and the condition number of Phi of the training."""

  values: jax.Array
  condition: float


def predict(method, *, query_x, query_y, test_query_x, test_support_x,
            test_support_y, support_x=None, support_y=None, depth=None,
            inner_time=None, test_time=None, inner_l2=None, test_l2=None,
            train_time=math.inf, query_mask=None, support_mask=None,
            kernel=None, dtype=None):
  """Returns the predictions on one test task after training on T tasks.

  Args:
    method: 'anil', 'maml' or 'mtl'. MTL trains on the query points alone and
      ignores support_x, support_y, inner_time and inner_l2.
    query_x: [T, n, ..]; the kernel decides the shape of a point.
    query_y: [T, n, k].
    test_query_x: [m, ..], the points to predict.
    test_support_x: [s, ..].
    test_support_y: [s, k].
    support_x: [T, s, ..].
    support_y: [T, s, k].
    depth: of the fully connected ReLU network; not needed with `kernel`.
    inner_time: rate times time of adaptation in training, lambda tau; inf
      for adaptation to convergence; flow.Steps for gradient steps.
    test_time: the same on the test task.
    inner_l2: in place of inner_time: adaptation to convergence, with half
      of inner_l2 times the squared distance to the initial parameters added
      to the loss.
    test_l2: in place of test_time.
    train_time: time of the outer gradient flow, or flow.Steps.
    query_mask: [T, n], False for padding; None where there is none.
    support_mask: [T, s], the same.
    kernel: (x, z=None) -> Kernels, in place of `depth`.
    dtype: 'float32' or 'float64'; None for that of query_x.

  Returns:
    Predictions.

  Raises:
    UserError: Phi is singular and train_time is inf, or an argument is
      missing, superfluous, or of the wrong shape.
  """
  check_choice('method', method, METHODS)
  if (depth is None) == (kernel is None):
    raise UserError('depth, kernel: give one of the two')
  kernel = kernel or functools.partial(fully_connected, depth=depth)
  bilevel = method != 'mtl'
  _check_strength('test', test_time, test_l2)
  if bilevel:
    _check_strength('inner', inner_time, inner_l2)
  with precision(dtype):
    arrays = as_floats(dtype, query_x, query_y, test_query_x, test_support_x,
                       test_support_y, *(support_x, support_y) * bilevel)
    query = _task_points('query', *arrays[:2], query_mask)
    support = (_task_points('support', *arrays[5:], support_mask)
               if bilevel else None)
    query, support, labelled = _prepare(query, support, arrays[3])
    solved = from_kernels(
        method, kernel(labelled), kernel(arrays[2], labelled), query, support,
        arrays[4], (inner_time, inner_l2), (test_time, test_l2), train_time)
    return Predictions(solved.values, condition(
        float(solved.smallest), float(solved.largest), query.mask.size,
        solved.values.dtype, train_time))


def condition(smallest, largest, size, dtype, train_time=math.inf):
  """Returns the condition number of Phi [size, size] from its eigenvalues.

  UserError: Phi is singular in `dtype` and train_time is inf.
  """
  singular = not smallest > size * float(jnp.finfo(dtype).eps) * largest
  if train_time == math.inf and singular:
    raise UserError(
        f'Phi is singular in {dtype}: its eigenvalues run from '
        f'{smallest:.1e} to {largest:.1e}; take repeated query points out, '
        "use dtype='float64' or a finite train_time")
  return largest / smallest if smallest > 0 else math.inf


class Solved(NamedTuple):
  """Predictions [m, k] and their parts."""

  values: jax.Array
  head: jax.Array  # [m, k], what adaptation alone predicts, without training
  smallest: jax.Array  # and largest eigenvalue of Phi
  largest: jax.Array


class Points(NamedTuple):
  """Points of T tasks: x [T, n, ..], y [T, n, k], mask [T, n]."""

  x: jax.Array
  y: jax.Array
  mask: jax.Array


def _task_points(name, x, y, mask):
  """Returns points; raises UserError where shapes do not fit."""
  if x is None or y is None:
    raise UserError(f'{name}_x, {name}_y: needed for this method')
  if y.ndim != 3 or x.shape[:2] != y.shape[:2]:
    raise UserError(f'{name}_y: shape {y.shape} does not fit; [T, n, k] with '
                    f'{name}_x [T, n, ..] of shape {x.shape} is needed')
  mask = np.ones(y.shape[:2], bool) if mask is None else np.asarray(mask, bool)
  if mask.shape != y.shape[:2]:
    raise UserError(f'{name}_mask: shape {mask.shape}, not {y.shape[:2]}')
  return Points(x, y, mask)


def _check_strength(name, time, l2):
  if (time is None) == (l2 is None):
    raise UserError(f'{name}_time, {name}_l2: give one of the two')
  if not (time is None or isinstance(time, flow.Steps) or time >= 0):
    raise UserError(f'{name}_time: {time} is negative')
  if l2 is not None and not l2 > 0:
    raise UserError(f'{name}_l2: {l2} is not positive')


@jax.jit
def _prepare(query, support, test_support_x):
  """Returns the tasks with padding set to 0, and all labelled inputs.

  The inputs are the queries of all tasks, their supports (bi-level methods
  only), and the support of the test task.
  """
  def clear(part):
    keep = lambda a: jnp.where(
        part.mask.reshape(part.mask.shape + (1,) * (a.ndim - 2)), a, 0)
    return part._replace(x=keep(part.x), y=keep(part.y))

  query, support = clear(query), support and clear(support)
  inputs = [part.x.reshape(-1, *part.x.shape[2:])
            for part in (query, support) if part]
  return query, support, jnp.concatenate([*inputs, test_support_x])


@functools.partial(jax.jit, static_argnums=0)
def from_kernels(method, train, test, query, support, test_support_y, inner,
                 test_strength, train_time):
  """Returns Solved from given kernels; may be traced.

  Args:
    method: 'anil', 'maml' or 'mtl'.
    train: Kernels between the labelled inputs: the queries of all tasks, their
      supports unless the method is 'mtl', the support of the test task.
    test: Kernels from the test query's inputs to those.
    query, support: Points of the training tasks; support None for 'mtl'.
    test_support_y: [s, k].
    inner: (inner_time, inner_l2), one of them None.
    test_strength: (test_time, test_l2).
    train_time: as in predict.
  """
  m = -len(test_support_y)
  adapted = (lambda k: k.ntk) if method == 'maml' else (lambda k: k.nngp)
  test_transfer = flow.transfer(
      adapted(test)[:, m:], adapted(train)[m:, m:], *test_strength)
  test = Kernels(*(jnp.concatenate([of_query, of_support[m:]])[:, :m]
                   for of_query, of_support in zip(test, train, strict=True)))
  train = Kernels(*(k[:m, :m] for k in train))
  if method == 'mtl':
    phi, rows, targets = _mtl_system(train, test, query)
  else:
    phi, rows, targets = _bilevel_system(
        adapted, train, test, query, support, inner)
  rows = _without_support(rows, test_transfer[None])

  mask = query.mask.ravel()
  # Each point of padding gets an eigenvalue of its own, amid the others. Its
  # target is 0, and so is its dual coefficient.
  fill = jnp.sum(jnp.diagonal(phi) * mask) / jnp.maximum(jnp.sum(mask), 1)
  phi = jnp.where(mask[:, None] & mask, phi, fill * jnp.diag(~mask))
  targets = jnp.where(mask[:, None], targets, 0)
  dual, smallest, largest = flow.train(phi, targets, train_time)
  head = test_transfer @ test_support_y
  return Solved(head + rows @ dual, head, smallest, largest)


def _mtl_system(train, test, query):
  """Returns Phi, its rows of the test points, and the targets.

  Each task has its own head, all equal at the start: tasks share the body.
  """
  task = jnp.repeat(jnp.arange(len(query.x)), query.x.shape[1])
  phi = train.body + jnp.where(task[:, None] == task, train.nngp, 0)
  return phi, test.body, query.y.reshape(-1, query.y.shape[-1])


def _bilevel_system(adapted, train, test, query, support, inner):
  """Returns Phi, its rows of the test points, and the targets.

  All tasks share one initial network; each task sees it after adaptation.
  """
  (tasks, n), s = query.mask.shape, support.mask.shape[1]
  kernel = adapted(train)
  each = jnp.arange(tasks)
  own_task = lambda block, a, b: block.reshape(tasks, a, tasks, b)[
      each, :, each]
  cross = own_task(kernel[:tasks * n, tasks * n:], n, s)
  own = own_task(kernel[tasks * n:, tasks * n:], s, s)
  mask = support.mask
  transfer = jax.vmap(lambda cross, own: flow.transfer(cross, own, *inner))(
      jnp.where(mask[:, None], cross, 0),
      jnp.where(mask[:, None] & mask[:, :, None], own, 0))
  half = _without_support(train.ntk, transfer)
  phi = _without_support(half.T, transfer)
  rows = _without_support(test.ntk.T, transfer).T
  targets = query.y - transfer @ support.y
  return phi, rows, targets.reshape(-1, targets.shape[-1])


def _without_support(rows, transfer):
  """Returns [I, -A] rows, task by task: [T n, columns].

  It takes a function's values on query and support points, the rows
  [T n + T s, columns], to what adaptation leaves of them. The transfer A is
  [T, n, s].
  """
  tasks, n, s = transfer.shape
  queries = rows[:tasks * n].reshape(tasks, n, -1)
  supports = rows[tasks * n:].reshape(tasks, s, -1)
  return (queries - transfer @ supports).reshape(tasks * n, -1)
