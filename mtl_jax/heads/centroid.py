"""Nearest class centroid: ProtoNet's head."""

import jax
import jax.numpy as jnp

from mtl_jax import fields
from mtl_jax.fields import POSITIVE, Field
from mtl_jax.heads import options
from mtl_jax.heads.options import at_least_float32

DISTANCES = ('squared', 'mean_squared', 'cosine')
OPTIONS = {
  'distance': Field('squared', 'kind of logit, see `fit`', DISTANCES),
  'scale': Field(1., 'factor of the logits', POSITIVE),
}
_DEFAULTS = fields.defaults(OPTIONS)


def fit(
  features, labels, num_ways, *, distance=_DEFAULTS['distance'],
  scale=_DEFAULTS['scale'], example_weights=None,
):
  """Fits one task: the mean of each class's features.

  Differentiable in features and scale.

  Args:
    features: [S, D], computed in float32 at least.
    labels: int [S] in 0..num_ways - 1; the centroid of a class without an
      example is the origin.
    num_ways: N.
    distance: the logit of query q and centroid c, before `scale`:
      'squared' -|q - c|^2 (Snell et al., NeurIPS 2017, section 2.3);
      'mean_squared' -|q - c|^2 / D (the ProtoNet of MetaOptNet's code);
      'cosine' q.c / (|q| |c|), zero where a norm is.
    scale: factor of the logits, positive.
    example_weights: [S], of the examples in the mean of their class; None: all
      are one. With them the squared distances count alike for classes of
      unequal size: each loses its `_excess`.

  Returns:
    centroids [N, D], the factor [] under the kind of logit, `squared` or
    `cosine`, and with example_weights also excess [N].

  Raises:
    UserError: distance is none of these, or scale is a number that is not
      positive.
  """
  options.check('centroid', OPTIONS, distance=distance, scale=scale)
  features = at_least_float32(features)
  onehot, count = _classes(
    labels, num_ways, features.dtype, example_weights)
  with jax.default_matmul_precision('highest'):
    centroids = onehot.T @ features / count
  kind = 'cosine' if distance == 'cosine' else 'squared'
  if distance == 'mean_squared':
    scale = scale / features.shape[-1]
  params = {'centroids': centroids, kind: jnp.asarray(scale, features.dtype)}
  if example_weights is None or kind == 'cosine':
    return params
  return params | {'excess': _excess(features, labels, centroids, onehot)}


def logits(params, features):
  """Returns the logits [Q, N] of features [Q, D]."""
  centroids = params['centroids']
  with jax.default_matmul_precision('highest'):
    if 'cosine' in params:
      return params['cosine'] * (_unit(features) @ _unit(centroids).T)
    # |q - c|^2 as three terms; taken from the centre, because large norms
    # would cost digits.
    centre = centroids.mean(0)
    features, centroids = features - centre, centroids - centre
    squares = jnp.sum(features**2, -1, keepdims=True)
    distances = (
      squares - 2 * features @ centroids.T + jnp.sum(centroids**2, -1)
    )
  distances = jnp.maximum(distances, 0) - params.get('excess', 0)
  return -params['squared'] * distances


def diagnostics(params, features, labels, *, example_weights=None, **unused):
  """Returns how far params are from the optimum on the support.

  Returns:
    centroids: largest |mean of x_i - c over the x_i of a class|, relative to
      the largest |x|.
  """
  del unused
  features = at_least_float32(features)
  centroids = params['centroids']
  onehot, count = _classes(
    labels, len(centroids), features.dtype, example_weights)
  with jax.default_matmul_precision('highest'):
    left = onehot.T @ (features - centroids[labels]) / count
  scale = jnp.max(jnp.abs(features))
  left = jnp.max(jnp.abs(left))
  return {'centroids': jnp.where(scale > 0, left / scale, left)}


def _excess(features, labels, centroids, weights):
  """Returns by how much squared distances to a mean of few are too large, [N].

  With examples that scatter by s around their class's true mean m, the mean c
  of n of them has E |q - c|^2 = |q - m|^2 + s / n: a class with few images
  seems farther away. All classes together tell s, without bias; where each has
  one image, it stays unknown, and is the same for all. Of a weighted mean, n is
  (sum of weights)^2 / (sum of their squares).

  Args:
    weights: [S, N], of the examples in their class.
  """
  present = weights > 0
  freedom = jnp.sum(present) - jnp.sum(present.any(0))
  scatter = jnp.sum((features - centroids[labels]) ** 2)
  share = jnp.sum(weights**2, 0) / jnp.maximum(jnp.sum(weights, 0) ** 2, 1e-12)
  return share * scatter / jnp.maximum(freedom, 1)


def _classes(labels, num_ways, dtype, example_weights):
  """Returns weighted labels one-hot [S, N], and their sums [N, 1] or 1."""
  onehot = options.weighted(
    example_weights, jax.nn.one_hot(labels, num_ways, dtype=dtype))
  count = onehot.sum(0)
  return onehot, jnp.where(count > 0, count, 1)[:, None]


def _unit(x):
  """Divides by the norm; zero stays zero, with a finite gradient."""
  square = jnp.sum(x**2, -1, keepdims=True)
  return x / jnp.sqrt(jnp.where(square > 0, square, 1))
