"""Features of tasks, for the tests of the heads."""

import jax
import numpy as np


def draw_task(ways, shots, dim=640, queries=4, scale=1.0, seed=0):
  """Returns (support, labels, query), non-negative features of norm `scale`."""
  rng = np.random.default_rng(seed)
  means = 0.4 * rng.normal(size=(ways, 1, dim))
  noise = rng.normal(size=(ways, shots + queries, dim))
  x = np.maximum(means + noise + 0.1, 0)
  x = (scale * x / np.linalg.norm(x, axis=-1, keepdims=True)).astype('float32')
  support = x[:, :shots].reshape(-1, dim)
  query = x[:, shots:].reshape(-1, dim)
  return support, np.repeat(np.arange(ways, dtype='int32'), shots), query


def fit(head, x, y, ways, **options):
  """Returns the params of a head, by a compiled fit."""
  return _compiled(
      lambda x, y, **options: head.fit(x, y, ways, **options), x, y, **options)


def diagnose(head, params, x, y, **options):
  """Returns the residuals of a head, by compiled diagnostics."""
  return _compiled(head.diagnostics, params, x, y, **options)


def _compiled(function, *args, **options):
  """Returns what a function returns, computed by one program.

  Options that are no words or whole numbers are arguments of the program: it
  is compiled once for all their values.
  """
  fixed = {k: v for k, v in options.items()
           if isinstance(v, (bool, int, str, type(None)))}
  free = {k: v for k, v in options.items() if k not in fixed}
  return jax.jit(
      lambda args, free: function(*args, **fixed, **free))(args, free)


def products(jaxpr):
  """Yields the precision of every matrix product, inner jaxprs included."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield equation.params['precision']
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from products(inner)
