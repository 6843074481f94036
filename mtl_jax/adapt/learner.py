"""Ways to learn the classes of a support: a new head, or the method's own."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax import algorithms, devices, fields, heads, progress, registry
from mtl_jax.config import ConfigDict
from mtl_jax.data import augment, episodes
from mtl_jax.errors import UserError, check_choice
from mtl_jax.evaluate import adapters
from mtl_jax.run import build

# Images of every forward pass, so that no prediction depends on how many
# images there are.
BATCH = 32
# Statistics of BatchNorm by which query images influence each other.
TOGETHER = ('transductive', 'episode')
_SURELY_FITS = 2**21  # numbers: 100 images of 84x84


class Learner(NamedTuple):
  """A way to learn the classes of a support.

  name: of a head, or 'own'.
  options: of the head or of the method.
  weighted: whether `fit` can let classes of unequal size count alike.
  inputs(uint8 [B, h, w, c]) -> what `fit` and `logits` take of images, [B, ..].
  fit(inputs [S, ..], labels [S], num_ways, example_weights) -> (state, a tree
    of arrays; residuals by name). example_weights [S] may be None.
  logits(state, inputs [B, ..]) -> [B, N].
  batch: images in a call of `inputs` or `logits`.
  together: whether images in a call influence each other's logits.
  """

  name: str
  options: dict[str, Any]
  weighted: bool
  inputs: Callable
  fit: Callable
  logits: Callable
  batch: int = BATCH
  together: bool = False


def choose(config, head=None, batch_norm=None):
  """Returns (name, options) of the way to learn that is asked for.

  Args:
    config: of the run.
    head: of heads.HEADS, a user's .py file, or 'own'. None: the first head
      that the run was tested with, or 'own' where it was tested with no head.
    batch_norm: for 'own': in place of the method's statistics of BatchNorm.

  Raises:
    UserError: there is no such head, none is named, or it has no BatchNorm.
  """
  tested = config.eval.heads
  if head is None:
    head = next(filter(adapters.is_head, tested),
                adapters.OWN if adapters.OWN in tested else None)
  if head is None:
    raise UserError(f'--head is missing: the run was tested with '
                    f'{", ".join(tested)}; choose one of '
                    f'{", ".join((*heads.HEADS, adapters.OWN))}')
  if head != adapters.OWN:
    if batch_norm is not None:
      raise UserError(f'--batch_norm is for --head={adapters.OWN}: the head '
                      f'{head} is fitted to features with running statistics')
    if not registry.is_own(head):
      check_choice('--head', head, (*heads.HEADS, adapters.OWN))
    # A run of an older version may lack a head, or an option of it.
    saved = config.heads.get(head, {})
    return head, fields.defaults(
        heads.find(head, '--head').OPTIONS) | dict(saved)
  options = {k: v for k, v in config.method.to_dict().items() if k != 'name'}
  if batch_norm is not None:
    allowed = algorithms.find(config.method.name).OPTIONS.get('batch_norm')
    check_choice('--batch_norm', batch_norm, allowed.allowed if allowed else ())
    options['batch_norm'] = batch_norm
  return head, options


def check_ways(config, head, num_ways):
  """Raises UserError for a number of classes that a method cannot learn."""
  ways = config.train.ways
  if (head == adapters.OWN and num_ways != ways
      and not algorithms.find(config.method.name).ANY_WAYS):
    raise UserError(
        f'--support has {num_ways} classes: {config.method.name} adapts by '
        f'itself (--head={adapters.OWN}) to as many as config.train.ways, '
        f'{ways}; give {ways} classes, or choose another --head, such as '
        'logistic')


def make(model, head, options):
  """Returns the Learner of a trained.Trained; `choose` gives the others."""
  return (own(model, options) if head == adapters.OWN
          else new_head(model, head, options))


def new_head(model, name, options):
  """Returns the Learner that fits a head to frozen features."""
  module = heads.find(name)

  @functools.partial(jax.jit, static_argnums=2)
  def fit(features, labels, num_ways, example_weights):
    keywords = options | _weights(example_weights)
    params = module.fit(features, labels, num_ways, **keywords)
    return params, module.diagnostics(params, features, labels, **keywords)

  return Learner(name, options, _takes_weights(module.fit), model.features, fit,
                 jax.jit(module.logits))


def own(model, options):
  """Returns the Learner that adapts as the method does in its test."""
  config = ConfigDict(model.config.to_dict())
  how = options.get('batch_norm')
  if how is not None:
    config.method.batch_norm = how
  algorithm = build.algorithm_of(config, len(model.data['classes']))
  mean, std = (np.array(model.data[name], np.float32)
               for name in ('mean', 'std'))
  key = jax.random.fold_in(
      episodes.stream_key(config.eval.seed, episodes.Stream.TEST), 0)

  @functools.partial(jax.jit, static_argnums=3)
  def adapt(variables, images, labels, num_ways, example_weights):
    support = augment.normalise(images, mean, std)
    adapted = algorithm.adapt(variables, key, support, labels, num_ways,
                              **_weights(example_weights))
    residuals = {}
    if algorithm.convergence:
      residuals = algorithm.convergence(adapted, support[:1])
    return adapted, residuals

  logits = jax.jit(lambda adapted, images: algorithm.predict(
      adapted, augment.normalise(images, mean, std)))
  return Learner(
      adapters.OWN, options, _takes_weights(algorithm.adapt), lambda x: x,
      functools.partial(adapt, model.variables), logits,
      together=how in TOGETHER,
      # In its test a method sees so many query images at a time. With
      # 'each_query' every one of them passes with the whole support.
      batch=(config.eval.ways * config.eval.queries if how in TOGETHER
             else 1 if how == 'each_query' else BATCH))


def _takes_weights(fit):
  return 'example_weights' in inspect.signature(fit).parameters


def _weights(example_weights):
  return {} if example_weights is None else {
      'example_weights': example_weights}


def numbers(residuals):
  """Returns residuals as numbers; None, which JSON has, for what is not finite.
  """
  return {k: float(v) if np.isfinite(v) else None
          for k, v in jax.device_get(residuals).items()}


def converged(residuals):
  """Returns whether `numbers` are those of a good fit; None without any."""
  if not residuals:
    return None
  return all(value is not None and value <= heads.LARGE_RESIDUAL
             for value in residuals.values())


def check_memory(learner, inputs, labels, num_ways, example_weights):
  """Raises UserError for a support that memory does not suffice for.

  A method's own adaptation takes the whole support at once, as BatchNorm and
  the steps do. A system may end a process that takes too much, and say nothing.
  """
  if learner.name != adapters.OWN or inputs.size <= _SURELY_FITS:
    return
  needed = jax.jit(learner.fit, static_argnums=2).lower(
      inputs, labels, num_ways, example_weights).compile().memory_analysis()
  most = devices.host_memory()
  if (jax.default_backend() == 'cpu' and needed and most
      and needed.temp_size_in_bytes > most):
    raise UserError(
        f'--support: {len(inputs)} images take '
        f'{needed.temp_size_in_bytes / 1e9:.1f} GB at once by '
        f'--head={adapters.OWN}, and this machine has {most / 1e9:.1f}: give '
        'fewer, or choose another --head, such as logistic')


def inputs_of(learner, images, show=False):
  """Returns `inputs` of any number of images, [I, ..].

  Args:
    learner: Learner.
    images: uint8 [I, h, w, c].
    show: whether a terminal may show the progress.
  """
  if learner.name == adapters.OWN:
    return images
  batches = progress.each(
      _filled(images, learner.batch), 'network', unit='batch',
      total=-(-len(images) // learner.batch), show=show)
  return np.concatenate([np.asarray(learner.inputs(batch))[:count]
                         for batch, count in batches])


def logits_of(learner, state, inputs):
  """Returns the logits [I, N] of any number of inputs, as float32.

  Inputs that influence each other are divided into parts of about equal size,
  each with inputs from the whole range.
  """
  if not learner.together:
    return np.concatenate([
        np.asarray(learner.logits(state, batch))[:count]
        for batch, count in _filled(inputs, learner.batch)])
  parts = max(1, round(len(inputs) / learner.batch))
  each = [np.asarray(learner.logits(state, inputs[i::parts]))
          for i in range(parts)]
  logits = np.empty((len(inputs), each[0].shape[1]), np.float32)
  for i, part in enumerate(each):
    logits[i::parts] = part
  return logits


def _filled(values, size):
  """Yields batches of one size, and how many of their rows count."""
  for start in range(0, len(values), size):
    batch = values[start:start + size]
    missing = [(0, size - len(batch))] + [(0, 0)] * (values.ndim - 1)
    yield np.pad(batch, missing), len(batch)
