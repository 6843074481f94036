"""Few-shot tasks for the closed forms: drawn at random, or of real images."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mtl_jax.data import sources, store
from mtl_jax.errors import UserError
from mtl_jax.ntk.precision import precision

MEAN_IMAGES = 2_000  # training images, evenly spaced, that give the mean image
RANDOM = 'random'


class Tasks(NamedTuple):
  """T training tasks and one test task; inputs of unit length, float64."""

  query_x: np.ndarray  # [T, n, d]
  query_y: np.ndarray  # [T, n, k]
  support_x: np.ndarray  # [T, s, d]
  support_y: np.ndarray  # [T, s, k]
  test_query_x: np.ndarray  # [m, d]
  test_query_y: np.ndarray  # [m, k]
  test_support_x: np.ndarray  # [s, d]
  test_support_y: np.ndarray  # [s, k]


class Source(NamedTuple):
  """Where tasks come from."""

  draw: Callable  # number -> Tasks, the same ones for the same number
  text: str  # what is drawn, for a reader
  shape: tuple | None = None  # (h, w, c) of points that are flattened images


def regression(*, tasks, queries, support, dims, outputs, shared, seed):
  """Returns a Source of linear teachers on the unit sphere.

  Inputs are uniform on the sphere in `dims` dimensions. Task i has targets
  y = W_i^T x with W_i = sqrt(shared) W + sqrt(1 - shared) V_i, where all
  entries of W and V_i are standard normal: targets have variance 1, and those
  of two tasks the correlation `shared`. The test task is drawn the same way.

  Raises:
    UserError: `shared` is not in [0, 1].
  """
  if not 0 <= shared <= 1:
    raise UserError(f'--shared: {shared} is not between 0 and 1')

  def draw(number):
    rng = np.random.default_rng([seed, number])
    x = _unit(rng.normal(size=(tasks + 1, queries + support, dims)))
    common = rng.normal(size=(dims, outputs))
    own = rng.normal(size=(tasks + 1, dims, outputs))
    y = x @ (np.sqrt(shared) * common + np.sqrt(1 - shared) * own)
    return _split(x, y, queries)

  return Source(draw, (
      f'linear teachers on the unit sphere, {dims} dimensions, {outputs} '
      f'outputs, correlation {shared:g} between tasks; {tasks} training tasks '
      f'of {queries} query and {support} support points'))


def images(name, *, tasks, ways, shots, queries, seed, side=None):
  """Returns a Source of classification tasks of a data set's images.

  Training tasks are of the training split, the test task of the test split.
  No class is in two tasks of a draw. The mean training image is subtracted
  (the cosine of raw pixels is near 1 for any two images), then each image is
  flattened and scaled to unit length. Targets are one-hot.

  Args:
    name: of a data set, as in `mtl_jax.data.store`.
    tasks: T.
    ways: N, classes per task.
    shots: support images per class.
    queries: query images per class.
    seed: of the draws.
    side: height and width that images are averaged down to, 0 for their own;
      None: only their inner products are needed, and points have few
      coordinates.

  Raises:
    UserError: unknown data set, too few classes or images for a draw, or
      images that cannot be divided into `side` parts.
  """
  sources.check_name('--dataset', name, (RANDOM,))
  splits = {split: store.load(name, split) for split in ('train', 'test')}
  for split, number in (('train', tasks * ways), ('test', ways)):
    _check_enough(name, split, splits[split], number, shots + queries,
                  f'{shots} + {queries}')
  shape = _shape(splits['train'].images.shape[1:], side)
  mean = _mean_image(splits['train'].images)

  def draw(number):
    rng = np.random.default_rng([seed, number])
    of_split = lambda split, tasks: _draw_images(
        rng, splits[split], mean, tasks, ways, shots, queries)
    parts = [of_split('train', tasks), of_split('test', 1)]
    x, y = (np.concatenate(both) for both in zip(*parts, strict=True))
    x = _averaged(x, splits['train'].images.shape[1:], shape)
    return _split(x, y, ways * queries)

  return Source(draw, (
      f'{ways}-way {shots}-shot tasks of {name}, {queries} queries per class, '
      'pixels less the mean training image, unit length, one-hot targets; '
      f'{tasks} training tasks of training classes, unseen tasks of test '
      'classes' + ('' if shape is None else
                   f'; {shape[0]} x {shape[1]} pixels')), shape)


def _check_enough(name, split, data, num_classes, per_class, shown):
  """Raises UserError if a split has too few classes or images for a draw."""
  if num_classes > data.num_classes:
    raise UserError(
        f'--ways: {num_classes} different classes are needed, the {split} '
        f'split of {name} has {data.num_classes}: take fewer ways or tasks')
  smallest = int(np.diff(data.offsets).min())
  if per_class > smallest:
    raise UserError(
        f'--shots, --queries: {shown} images per class are needed, and the '
        f'smallest class in the {split} split of {name} has {smallest}: take '
        'fewer')


def _shape(given, side):
  """Returns the (h, w, c) of images after averaging; None for no images."""
  if side is None:
    return None
  height, width, channels = given
  side = side or height
  if height % side or height != width:
    raise UserError(f'--side: {side} does not divide images of {height} x '
                    f'{width} pixels into squares')
  return side, side, channels


def _averaged(x, given, shape):
  """Returns flattened images [.., d] averaged down, of unit length.

  Without a shape only their inner products are kept.
  """
  if shape is None:
    return _in_their_span(x)
  side, channels = shape[1:]
  by = given[0] // side
  parts = x.reshape(*x.shape[:-1], side, by, side, by, channels)
  return _unit(parts.mean((-4, -2)).reshape(*x.shape[:-1], -1))


def _mean_image(images):
  """Returns the mean [d] of about MEAN_IMAGES images."""
  every = max(1, len(images) // MEAN_IMAGES)
  return np.mean(images[::every], axis=0, dtype=np.float64).ravel()


def _draw_images(rng, data, mean, tasks, ways, shots, queries):
  """Returns x [tasks, n + s, d] and y [tasks, n + s, ways], queries first."""
  classes = rng.permutation(data.num_classes)[:tasks * ways]
  rows = np.array([
      rng.choice(np.arange(*data.offsets[c:c + 2]), queries + shots, False)
      for c in classes])
  # Read in the order of the file.
  pixels = data.images[np.sort(rows.ravel())].astype(np.float64)
  order = np.argsort(np.argsort(rows.ravel()))
  x = _unit(pixels.reshape(rows.size, -1)[order] - mean)
  x = x.reshape(tasks, ways, queries + shots, -1)
  y = np.broadcast_to(np.eye(ways)[:, None], (*x.shape[:3], ways))
  query_first = lambda a: np.concatenate(
      [a[:, :, :queries].reshape(tasks, ways * queries, -1),
       a[:, :, queries:].reshape(tasks, ways * shots, -1)], 1)
  return query_first(x), query_first(y)


def _split(x, y, queries):
  """Returns Tasks of points [T + 1, n + s, ..], the test task last."""
  return Tasks(
      x[:-1, :queries], y[:-1, :queries], x[:-1, queries:], y[:-1, queries:],
      x[-1, :queries], y[-1, :queries], x[-1, queries:], y[-1, queries:])


def _unit(x):
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(length > 0, length, 1)


def _in_their_span(x):
  """Returns points with the same inner products, in few coordinates.

  There are at most as many coordinates as points. Kernels only see inner
  products, and images have many pixels.
  """
  flat = x.reshape(-1, x.shape[-1])
  if flat.shape[1] <= flat.shape[0]:
    return x
  with precision('float64'):
    few = np.asarray(jnp.linalg.qr(jnp.asarray(flat.T), mode='r')).T
  return few.reshape(*x.shape[:-1], -1)
