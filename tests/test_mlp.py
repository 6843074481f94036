"""The multi-layer perceptron in tangent-kernel scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import ntk
from mtl_jax.models import mlp


def test_features_are_those_of_the_formula():
  """Fails if a layer has a bias or another scale."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(4, 2, 3, 1)).astype(np.float32)
  model = mlp.Mlp(width=5, depth=2)
  variables = model.init(jax.random.key(0), images, train=False)
  first, second = (np.asarray(variables['params'][f'kernel_{i}'])
                   for i in range(2))
  x = images.reshape(4, -1)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  x = np.maximum(np.sqrt(2) * x @ first, 0)
  x = np.maximum(np.sqrt(2 / 5) * x @ second, 0) / np.sqrt(5)
  np.testing.assert_allclose(model.apply(variables, images, train=True), x,
                             rtol=1e-5)


@pytest.mark.parametrize('depth', [1, 3])
def test_wide_network_has_the_closed_form_kernels(depth):
  """Fails if the scaling is not that of ntk.fully_connected."""
  width, draws = 512, 24
  rng = np.random.default_rng(1)
  x = rng.normal(size=(4, 6)).astype(np.float32)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  model = mlp.Mlp(width, depth)

  def output(params, x):
    return model.apply({'params': params['body']}, x,
                       train=False) @ params['head']

  def kernels(key):
    params = {'body': model.init(key, x, train=False)['params'],
              'head': jax.random.normal(jax.random.fold_in(key, 1), (width,))}
    return ntk.empirical(output, params, jnp.asarray(x))

  drawn = [kernels(jax.random.key(i)) for i in range(draws)]
  exact = ntk.fully_connected(x, depth=depth)
  for name in ('nngp', 'ntk'):
    values = np.array([getattr(kernel, name) for kernel in drawn])
    error = values.std(0, ddof=1) / np.sqrt(draws)
    # Four standard errors; terms of order depth / width on top.
    bias = 4 * depth / width * np.abs(getattr(exact, name))
    assert np.all(np.abs(values.mean(0) - getattr(exact, name))
                  < 4 * error + bias)
