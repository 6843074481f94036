"""Base learners on features: each fits the labelled examples of one task.

A head's file, one of HEADS or a file of the user's own, has these, pure and
for one task (vmap maps them over tasks):

  OPTIONS: name -> mtl_jax.fields.Field, what a config may set.
  fit(features [S, D], labels int32 [S], num_ways, **options) -> params, a
    dict of arrays. Each option is a keyword with the default of its Field.
    It may take a keyword example_weights [S] too: factors of the examples'
    losses, None for one. `mtl_jax.adapt` gives it those of `balance`, by which
    all classes count alike; without the keyword it cannot.
  logits(params, features [Q, D]) -> [Q, N].
  diagnostics(params, features, labels, **options) -> dict of residuals, about
    zero for a good fit; `options` are those that `fit` was given. A boolean
    `not_converged` among them is a tolerance of the head's own; else a
    residual above LARGE_RESIDUAL means that it has not converged.

It may have MOST, the largest S that it can fit; `options.check_size` tells.

`linear` holds the class rows of MTL. It is trained together with the features
and so is not among HEADS. A new head is one file and one line here.
"""

from mtl_jax import registry
from mtl_jax.heads import centroid, gradient, logistic, ridge, svm
from mtl_jax.heads.options import LARGE_RESIDUAL as LARGE_RESIDUAL
from mtl_jax.heads.options import balance as balance
from mtl_jax.heads.options import convergence as convergence

HEADS = {
    'centroid': centroid,
    'gradient': gradient,
    'logistic': logistic,
    'ridge': ridge,
    'svm': svm,
}
_NEEDED = ('OPTIONS', 'fit', 'logits', 'diagnostics')


def find(name, field='config.eval.heads'):
  """Returns the module of a head.

  Args:
    name: a key of HEADS, or the path of a user's file, which ends in .py.
    field: what holds the name, for messages.

  Raises:
    UserError: there is no such head, or the file is not a head's.
  """
  return registry.find(field, name, HEADS, _NEEDED)
