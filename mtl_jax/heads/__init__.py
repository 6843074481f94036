"""Base learners on features: each fits the labelled examples of one task.

Every module in HEADS has, pure and for one task (map it over tasks with vmap):

  fit(features [S, D], labels int32 [S], num_ways, **options) -> params
  logits(params, features [Q, D]) -> [Q, N]
  diagnostics(params, features, labels, **options) -> dict of residuals
  OPTIONS: the options that a config may set, with their defaults

where params is a dict of arrays, the residuals are about zero for a good fit,
and `diagnostics` takes the options that `fit` was given. `linear` holds the
class rows of MTL; it is trained with the features and so is not among HEADS.
A new head is one file and one line here.
"""

from mtl_jax.heads import centroid, gradient, logistic, ridge, svm

HEADS = {
    'centroid': centroid,
    'gradient': gradient,
    'logistic': logistic,
    'ridge': ridge,
    'svm': svm,
}
