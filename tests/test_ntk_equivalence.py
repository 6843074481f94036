"""Bi-level against plain gradients: the identity and its failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.flatten_util import ravel_pytree

from mtl_jax.models import mlp
from mtl_jax.ntk.checks import bilevel, equivalence

WAYS, SUPPORT, DIM = 3, 6, 4


def features(seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2 * SUPPORT, DIM))
  y = np.tile(np.arange(WAYS), 2 * SUPPORT // WAYS)
  return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True)), y


@pytest.fixture(scope='module')
def gradients():
  """Cotangents of features in float64: ({case: [2, B, D]}, predictions)."""
  with jax.enable_x64(True):
    x, y = features()
    inners = bilevel.inner_problems(WAYS, 0.5, 1.)

    @jax.jit
    def measure(x):
      cases = bilevel.both(bilevel.cases(inners), bilevel.solvers(
          WAYS, inners, 0.5), x, y, SUPPORT)
      predictions = {name: bilevel.predicted_failure(inner, WAYS, x, y, 400)
                     for name, inner in inners.items()}
      steps = {name: bilevel.after_steps(inner, WAYS, x, y, (8, 16, 32))
               for name, inner in inners.items()}
      return cases, predictions, steps

    return jax.tree.map(np.asarray, measure(x))


def difference(a, b):
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_identity_holds_and_the_other_cases_fail(gradients):
  """A measurement that cannot fail, or a solver that has not converged."""
  for name, (through, plain) in gradients[0].items():
    if name.endswith(', J'):
      assert difference(through, plain) < 1e-11
    else:
      assert difference(through, plain) > 0.03


@pytest.mark.parametrize('name', ['ridge, J', '(b) ridge, cross-entropy',
                                  'as published: R2D2'])
def test_bilevel_gradients_are_those_of_the_outer_loss(gradients, name):
  """The chain rule put together wrongly: against differences in numpy."""
  x, y = np.asarray(features()[0], np.float64), features()[1]
  onehot = np.eye(WAYS)[y]
  inner = slice(SUPPORT) if 'published' in name else slice(None)
  outer = slice(SUPPORT, None) if 'published' in name else slice(None)

  def loss(x):
    gram = x[inner].T @ x[inner] + 0.5 * np.eye(DIM)
    w = np.linalg.solve(gram, x[inner].T @ onehot[inner])
    logits = x[outer] @ w
    if name == 'ridge, J':
      return np.sum((logits - onehot) ** 2) + 0.5 * np.sum(w ** 2)
    logp = logits - np.log(np.sum(np.exp(logits), 1, keepdims=True))
    return -np.sum(logp * onehot[outer])

  expected = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    move = np.zeros_like(x)
    move[i] = 1e-5
    expected[i] = (loss(x + move) - loss(x - move)) / 2e-5
  # The features of the test are of float32's precision.
  np.testing.assert_allclose(gradients[0][name][0], expected, atol=2e-6)


@pytest.mark.parametrize('name', ['ridge', 'logistic'])
def test_leaving_the_penalty_out_adds_what_theory_says(gradients, name):
  """-r w* . dw*, of the wrong sign or factor."""
  through, plain = gradients[0][f'(a) {name}, no penalty']
  assert difference(gradients[1][name], through - plain) < 1e-5


@pytest.mark.parametrize('name', ['ridge', 'logistic'])
def test_steps_converge_and_twice_as_fast_through_them(gradients, name):
  """A step of another objective than the one that is solved."""
  through, plain, optimum = gradients[2][name]
  through = [difference(g, optimum) for g in through]
  plain = [difference(g, optimum) for g in plain]
  assert through[2] < through[1] < through[0]
  assert plain[2] < plain[1] < plain[0]
  # Logarithms of the fall from 16 to 32 steps: about 2 to 1.
  assert np.log(through[1] / through[2]) > 1.4 * np.log(plain[1] / plain[2])


def test_pull_is_the_gradient_of_the_parameters():
  """Cotangents that belong to other parameters or images."""
  backbone = mlp.Mlp(width=2, depth=2)
  images = jax.random.normal(jax.random.key(0), (3, 4))
  variables = jax.jit(lambda: backbone.init(
      jax.random.key(1), images, train=False))()
  weights = jax.random.normal(jax.random.key(2), (2, 3, 2))

  def loss(params, c):
    return jnp.sum(c * bilevel.features(
        backbone, {**variables, 'params': params}, images))

  got = bilevel.pull(backbone, variables, images, weights)
  grad = jax.jit(jax.grad(loss))
  for g, c in zip(got, weights, strict=True):
    expected = ravel_pytree(grad(variables['params'], c))[0]
    np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-5)


def test_run_reports_and_goes_on(tmp_path, monkeypatch, capsys):
  """A report that hides a failure, or starts again what is there."""
  measured = []

  def fake(options, variables, images, labels, dtype):
    del options, variables, images, labels
    measured.append(dtype)
    value = {'mean': 0.5, 'max': 1e-7 if dtype == 'float32' else bad}
    each = {'difference': value, 'cosine': value, 'cosine_to_joint': value}
    both = {'ridge': value, 'logistic': value}
    return {'cases': {name: each for name in (
        'ridge, J', 'logistic, J', '(a) x')}, 'prediction': both,
        'steps': {name: {'through': [value], 'plain': [value]}
                  for name in both}}

  monkeypatch.setattr(equivalence, '_measure', fake)
  monkeypatch.setattr(equivalence, '_warm_up', lambda *_: {})
  options = equivalence.Options(dataset='random', tasks=1, counts=(1,))
  for bad, folder in ((1e-12, 'good'), (1e-5, 'bad')):
    folder = epath.Path(tmp_path / folder)
    result = equivalence.run(options, folder)
    assert result['verdict'] == (bad < 1e-9)
    text = equivalence.summary(result)
    assert ('do NOT agree' in text) == ('ABOVE' in text) == (bad > 1e-9)
    for name, _ in equivalence.figures(result, folder):
      assert (folder / name).read_bytes().startswith(b'\x89PNG')
    assert equivalence.run(options, folder) == result
  assert measured == ['float32', 'float64'] * 2
  assert 'float64, 1 tasks' in capsys.readouterr().out
