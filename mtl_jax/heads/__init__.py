"""Base learners on features: each fits the labelled examples of one task.

Every module in HEADS has, pure and for one task (map it over tasks with vmap):

  fit(features [S, D], labels int32 [S], num_ways, **options) -> params
  logits(params, features [Q, D]) -> [Q, N]
  diagnostics(params, features, labels, **options) -> dict of residuals

where params is a dict of arrays, the residuals are about zero for a good fit,
and `diagnostics` takes the options that `fit` was given. `linear` holds the
class rows of MTL; it is trained with the features and so is not among HEADS.
"""

from mtl_jax.heads import logistic

HEADS = {
  'logistic': logistic,
}
