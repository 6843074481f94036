"""Compares the ten methods with an independent program, in float64.

    python benchmarks/independent.py --peer_python=ENV/bin/python

ENV is an environment with torch and qpth. The program beside it,
`benchmarks/peers/independent.py`, states the methods once more in PyTorch from
the papers' formulas. Both sides get the same weights, images and draws, and
compute on a CNN-4 with BatchNorm: a task's loss, its meta-gradient, and the
logits of the query after adaptation at test time. The table has the largest
relative differences: the largest |ours - theirs| over the largest |theirs|, for
gradients the worst array.

The rows of heads have features of a given norm, none of them negative, in 5-way
15-shot tasks; the gradient is that with respect to the features. These heads
are solved to their end (tolerance 1e-12), those of methods as far as in a run.

A gradient that is zero but for rounding, such as that of R2D2's shift, has no
relative difference. So arrays below FLOOR of the whole gradient's largest entry
are measured against that.

Exits with 1 if a difference is above its bound. A bound above EXACT has its
reason beside it.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from mtl_jax import algorithms, fields
from mtl_jax.algorithms import METHODS, minibatch_prox, network
from mtl_jax.data import episodes
from mtl_jax.heads import logistic, svm
from mtl_jax.models import conv4

PEER = pathlib.Path(__file__).parent / 'peers' / 'independent.py'
KEY = jax.random.key(5)
WAYS, SHOTS, QUERIES, CLASSES = 5, 5, 3, 8
COLUMNS = ('loss', 'meta-gradient', 'test logits')
FLOOR = 1e-2
# Both sides do the same finite number of operations, each with an error of
# 1e-16. Inner loops and solves magnify it, by 10^4 or so.
EXACT = 1e-10
# Adam's first steps are g / (|g| + 1e-8). Where g is about zero they magnify
# its rounding, 1e-17, by 10^8.
ADAM = 1e-7
# The head stops where its logits change by less than `tolerance`, 1e-4.
LOGISTIC = 1e-4
# The head's pull-back solves to 1e-6 by conjugate gradients.
LOGISTIC_PULL_BACK = 1e-5
# The head stops at a relative duality gap of `tolerance`, 1e-6.
SVM = 1e-6


class Case(NamedTuple):
  """A row of the table."""

  label: str
  name: str  # of a method, or of a head
  options: dict[str, Any] = {}
  bounds: tuple = (EXACT, EXACT, EXACT)  # of COLUMNS


INNER = {'inner_steps': 3, 'test_steps': 4, 'inner_rate': 0.1}
LOOPED = INNER | {'unroll': False}
NEW_HEAD = (EXACT, EXACT, LOGISTIC)
CASES = (
  Case('mtl', 'mtl', bounds=NEW_HEAD),
  Case('anil', 'anil', INNER),
  Case('maml', 'maml', LOOPED),
  Case('maml, first order', 'maml', LOOPED | {
    'first_order': True, 'batch_norm': 'support'}),
  Case('meta_sgd', 'meta_sgd'),
  Case('imaml', 'imaml', LOOPED | {
    'l2': 10., 'test_l2': 2., 'batch_norm': 'running'}),
  Case('imaml, public code', 'imaml', LOOPED | {
    'public_code': True, 'damping': 1., 'curvature_damping': 10.}),
  Case('metaoptnet', 'metaoptnet', {'label_smoothing': 0.1},
       (SVM, SVM, SVM)),
  Case('metaoptnet, ridge', 'metaoptnet', {'head': 'ridge'}),
  Case('r2d2', 'r2d2'),
  Case('r2d2, drawn shots', 'r2d2', {'max_shots': 4}),
  Case('minibatch_prox', 'minibatch_prox', {
    'inner_steps': 4, 'test_steps': 4, 'unroll': False},
       (ADAM, ADAM, ADAM)),
  Case('minibatch_prox, public code', 'minibatch_prox', {
    'inner_steps': 4, 'test_steps': 4, 'unroll': False, 'public_code': True},
       (ADAM, ADAM, ADAM)),
  Case('protonet', 'protonet'),
  Case('protonet, cosine', 'protonet', {'distance': 'cosine', 'scale': 10.}),
  Case('whole_class', 'whole_class', bounds=NEW_HEAD),
)
HEADS = {'svm': svm, 'logistic': logistic}
HEAD_CASES = (
  *(Case(f'svm, norm {norm}', 'svm', {'C': 0.1, 'norm': norm})
    for norm in (1, 10, 100)),
  Case('logistic, norm 1', 'logistic', {'C': 3., 'norm': 1},
       (EXACT, LOGISTIC_PULL_BACK, EXACT)),
)


class Conv4(conv4.Conv4):
  """CNN-4 in float64, which no config offers."""

  dtype: str = 'float64'

  def __post_init__(self):
    super(conv4.Conv4, self).__post_init__()  # without the check of dtype


def flat(tree):
  """Returns a nested dictionary as name -> array, names joined by '/'."""
  return {name: np.asarray(value) for name, value in
          traverse_util.flatten_dict(tree, sep='/').items()}


# --- The methods. ---


def draw_episode(size, seed=0):
  """Returns a task of noise around class images [size, size, 3]."""
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(WAYS, 1, size, size, 3)) + rng.normal(
    size=(WAYS, SHOTS + QUERIES, size, size, 3))
  return episodes.split(jnp.asarray(images), jnp.asarray([6, 0, 3, 7, 2]),
                        SHOTS)


def start(algorithm, episode, seed=1):
  """Returns variables in float64, away from special values."""
  variables = jax.jit(algorithm.init)(jax.random.key(seed), episode.support_x)
  return shaken(variables, seed)


def shaken(tree, seed, size=0.05):
  """Returns a tree with noise added, in float64."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(x + size * rng.uniform(-1, 1, x.shape)), tree)


def our_method(case, width, size):
  """Computes a case; returns (what the peer is given, our answers)."""
  options = fields.defaults(METHODS[case.name].OPTIONS) | case.options
  algorithm = algorithms.create(case.name, Conv4(width), CLASSES, WAYS,
                                **options)
  episode = draw_episode(size)
  variables = start(algorithm, episode)

  @jax.jit
  def step(variables):
    loss = lambda params: algorithm.loss({**variables, 'params': params}, KEY,
                                         episode, 0)
    return jax.value_and_grad(loss, has_aux=True)(variables['params'])

  @jax.jit
  def logits(variables):
    return algorithm.predict(algorithm.adapt(
      variables, KEY, episode.support_x, episode.support_y, WAYS),
      episode.query_x)

  # Running statistics near the task's own, as after training.
  variables['batch_stats'] = shaken(step(variables)[0][1].batch_stats, 2)
  (value, aux), gradient = step(variables)
  given = {
    'kind': 'method', 'name': case.name, 'options': options, 'ways': WAYS,
    # What the method drew, if it did, by the number of images in its query.
    'drawn': SHOTS + QUERIES - int(aux.metrics['accuracy'][1]) // WAYS}
  arrays = {'task': vars(episode), 'params': variables['params'],
            'stats': variables['batch_stats']}
  if case.name == 'minibatch_prox':
    arrays['task'] = arrays['task'] | {'rows': minibatch_prox.batches(
      jax.random.fold_in(KEY, network.INNER_BATCHES),
      WAYS * (SHOTS + QUERIES), options['inner_batch'],
      options['inner_steps'])}
  return (given, flat(arrays)), flat({
    'loss': value, 'logits': logits(variables), 'gradient': gradient})


# --- The heads. ---


def our_head(case, dim, shots=15, queries=6):
  """Computes a head on raw features; returns as `our_method` does."""
  options, head = dict(case.options), HEADS[case.name]
  norm = options.pop('norm')
  rng = np.random.default_rng(2)
  centres = rng.normal(size=(WAYS, dim))

  def draw(labels):
    x = centres[labels] + rng.normal(size=(len(labels), dim))
    x = np.maximum(x, 0)  # as after ReLU: all share a mean
    return norm * x / np.linalg.norm(x, axis=1, keepdims=True)

  support_y, query_y = (np.repeat(np.arange(WAYS), count)
                        for count in (shots, queries))
  support, query = draw(support_y), draw(query_y)

  def loss(support, query):
    fitted = head.fit(support, support_y, WAYS, tolerance=1e-12, **options)
    logits = head.logits(fitted, query)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
      logits, query_y)), logits

  (value, logits), gradient = jax.jit(jax.value_and_grad(
    loss, (0, 1), has_aux=True))(jnp.asarray(support), jnp.asarray(query))
  given = {'kind': 'head', 'name': case.name, 'ways': WAYS, 'drawn': 0,
           'options': fields.defaults(head.OPTIONS) | options}
  return (given, {'support': support, 'query': query,
                  'task/support_y': support_y, 'task/query_y': query_y}), flat({
    'loss': value, 'logits': logits,
    'gradient': {'support': gradient[0], 'query': gradient[1]}})


# --- The two sides. ---


def our_side(args):
  """Returns ([what the peer is given], [our answers]), a pair per row."""
  wanted = [case for case in (*CASES, *HEAD_CASES)
            if not args.only or case.label in args.only]
  pairs = [our_head(case, args.dim) if case in HEAD_CASES
           else our_method(case, args.width, args.size) for case in wanted]
  return wanted, *zip(*pairs, strict=True)


def their_side(args, given):
  """Returns the peer's answers, and its largest KKT residual or None."""
  told = [options for options, _ in given]
  arrays = {f'{i}:{name}': x for i, (_, inputs) in enumerate(given)
            for name, x in inputs.items()}
  with tempfile.TemporaryDirectory() as folder:
    paths = [os.path.join(folder, name) for name in ('in.npz', 'out.npz')]
    np.savez(paths[0], cases=json.dumps(told), **arrays)
    subprocess.run([args.peer_python, '-W', 'ignore', PEER, *paths],
                   check=True)
    with np.load(paths[1]) as file:
      answers = [{} for _ in given]
      for key in set(file.files) - {'kkt'}:
        i, name = key.split(':')
        answers[int(i)][name] = file[key]
      return answers, max(file['kkt'], default=None)


def differences(ours, theirs):
  """Returns the differences of a case, in the order of COLUMNS.

  Both arguments map 'loss', 'logits' and 'gradient/NAME' to arrays.
  """
  if {(k, x.shape, x.dtype) for k, x in ours.items()} != {
      (k, x.shape, x.dtype) for k, x in theirs.items()}:
    return [np.inf] * len(COLUMNS)
  largest = lambda x: np.max(np.abs(x))

  def worst(kind):
    names = [name for name in ours if name.startswith(kind)]
    floor = FLOOR * max(largest(theirs[name]) for name in names)
    return max(largest(ours[name] - theirs[name])
               / max(largest(theirs[name]), floor) for name in names)

  return [worst(kind) for kind in ('loss', 'gradient', 'logits')]


def parse(argv=None):
  """Returns the flags."""
  labels = [case.label for case in (*CASES, *HEAD_CASES)]
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peer_python', default='python3')
  parser.add_argument('--size', type=int, default=84, help='of the images')
  parser.add_argument('--width', type=int, default=16, help='of CNN-4')
  parser.add_argument('--dim', type=int, default=640,
                      help='features, of the rows of heads')
  parser.add_argument('--only', nargs='+', default=(), choices=labels,
                      metavar='ROW', help='rows of the table')
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table; returns 1 if a difference is above its bound."""
  args = parse(argv)
  with jax.enable_x64(True):
    cases, given, ours = our_side(args)
  theirs, residual = their_side(args, given)
  print('| | BatchNorm | ' + ' | '.join(COLUMNS) + ' |')
  print('|---' * (2 + len(COLUMNS)) + '|')
  failed = []
  for case, (told, _), *answers in zip(cases, given, ours, theirs,
                                       strict=True):
    gaps = differences(*answers)
    print(f'| {case.label} | {told["options"].get("batch_norm", "")} | '
          + ' | '.join(f'{gap:.0e}' for gap in gaps) + ' |')
    failed += [f'{case.label}: {column} differs by {gap:.1e}, bound {bound:g}'
               for column, gap, bound in zip(COLUMNS, gaps, case.bounds,
                                             strict=True)
               if not gap <= bound]
  if residual is not None:
    print(f"\nlargest KKT residual of the peer's machines: {residual:.0e}")
    if not residual <= EXACT:
      failed.append('the peer has not solved its support vector machines')
  print(*failed, sep='\n', end='\n' if failed else '')
  return int(bool(failed))


if __name__ == '__main__':
  sys.exit(main())
