"""Bi-level against plain gradients: the identity and its failures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.flatten_util import ravel_pytree

from mtl_jax.errors import UserError
from mtl_jax.models import mlp
from mtl_jax.ntk.checks import CHECKS, bilevel, equivalence
from mtl_jax.ntk.checks.bilevel import Case

WAYS, SUPPORT, DIM = 3, 6, 4


def features(seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2 * SUPPORT, DIM))
  y = np.tile(np.arange(WAYS), 2 * SUPPORT // WAYS)
  return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True)), y


@pytest.fixture(scope='module')
def gradients():
  """Cotangents of features in float64: ({label: [2, B, D]}, predictions,
  steps)."""
  with jax.enable_x64(True):
    x, y = features()
    inners = bilevel.inner_problems(WAYS, 0.5, 1.)

    @jax.jit
    def measure(x):
      cases = bilevel.both(inners, bilevel.solvers(WAYS, inners, 0.5), x, y,
                           SUPPORT)
      predictions = {name: bilevel.predicted_failure(inner, WAYS, x, y, 400)
                     for name, inner in inners.items()}
      steps = {name: bilevel.after_steps(inner, WAYS, x, y, (8, 16, 32))
               for name, inner in inners.items()}
      return cases, predictions, steps

    return jax.tree.map(np.asarray, measure(x))


def difference(a, b):
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_identity_holds_and_the_other_cases_fail(gradients):
  """Fails if the check cannot fail, or a solver has not converged."""
  assert len(gradients[0]) == len(bilevel.CASES) == 11
  for case in bilevel.CASES:
    through, plain = gradients[0][case.label]
    if case.fails:
      assert difference(through, plain) > 0.03
    else:
      assert difference(through, plain) < 1e-11


def test_labels_are_those_of_stored_results():
  """Fails if folders of an earlier version cannot be read."""
  assert [case.label for case in bilevel.CASES] == [
      'ridge, J', 'logistic, J', '(a) ridge, no penalty',
      '(a) logistic, no penalty', '(b) ridge, cross-entropy',
      '(b) SVM, cross-entropy', '(c) ridge, J on the query',
      '(c) logistic, J on the query', 'as published: R2D2',
      'as published: MetaOptNet', 'as published: ANIL']


def test_cases_are_compared_with_joint_training_on_their_loss():
  """Fails if a cosine is that to the joint training of another loss."""
  assert {case for case in bilevel.CASES if case.joint == 'ridge'} == {
      Case(kind, 'ridge') for kind in ('identity', 'penalty', 'data')}


@pytest.mark.parametrize('case', [
    Case('identity', 'ridge'), Case('loss', 'ridge'),
    Case('published', 'ridge')], ids=lambda case: case.kind)
def test_bilevel_gradients_are_those_of_the_outer_loss(gradients, case):
  """Fails if the chain rule differs from finite differences in numpy."""
  x, y = np.asarray(features()[0], np.float64), features()[1]
  onehot = np.eye(WAYS)[y]
  apart = case.kind == 'published'
  inner = slice(SUPPORT) if apart else slice(None)
  outer = slice(SUPPORT, None) if apart else slice(None)

  def loss(x):
    gram = x[inner].T @ x[inner] + 0.5 * np.eye(DIM)
    w = np.linalg.solve(gram, x[inner].T @ onehot[inner])
    logits = x[outer] @ w
    if case.kind == 'identity':
      return np.sum((logits - onehot) ** 2) + 0.5 * np.sum(w ** 2)
    logp = logits - np.log(np.sum(np.exp(logits), 1, keepdims=True))
    return -np.sum(logp * onehot[outer])

  expected = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    move = np.zeros_like(x)
    move[i] = 1e-5
    expected[i] = (loss(x + move) - loss(x - move)) / 2e-5
  # The features of the test are of float32's precision.
  np.testing.assert_allclose(gradients[0][case.label][0], expected,
                             atol=2e-6)


@pytest.mark.parametrize('name', ['ridge', 'logistic'])
def test_leaving_the_penalty_out_adds_what_theory_says(gradients, name):
  """Fails if the term -r w* . dw* has the wrong sign or factor."""
  through, plain = gradients[0][Case('penalty', name).label]
  assert difference(gradients[1][name], through - plain) < 1e-9


@pytest.mark.parametrize('name', ['ridge', 'logistic'])
def test_steps_converge_and_twice_as_fast_through_them(gradients, name):
  """Fails if the steps descend another objective than the solved one."""
  through, plain, optimum = gradients[2][name]
  through = [difference(g, optimum) for g in through]
  plain = [difference(g, optimum) for g in plain]
  assert through[2] < through[1] < through[0]
  assert plain[2] < plain[1] < plain[0]
  # Logarithms of the fall from 16 to 32 steps: about 2 to 1.
  assert np.log(through[1] / through[2]) > 1.4 * np.log(plain[1] / plain[2])


def test_pull_is_the_gradient_of_the_parameters():
  """Fails if cotangents belong to other parameters or images."""
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


@pytest.fixture
def fake(monkeypatch):
  """Replaces the measurement: {'float64': difference, 'measured': dtypes}."""
  state = {'float64': 1e-12, 'measured': []}

  def measure(options, variables, images, labels, dtype):
    del options, variables, images, labels
    state['measured'].append(dtype)
    value = {'mean': 0.5, 'max': 1e-7 if dtype == 'float32'
             else state['float64']}
    each = {'difference': value, 'cosine': value, 'cosine_to_joint': value}
    both = {'ridge': value, 'logistic': value}
    return {'cases': {case.label: each for case in bilevel.CASES},
            'prediction': both,
            'steps': {name: {'through': [value], 'plain': [value]}
                      for name in both}}

  monkeypatch.setattr(equivalence, '_measure', measure)
  monkeypatch.setattr(equivalence, '_warm_up', lambda *_: {})
  return state


OPTIONS = {'dataset': 'random', 'tasks': 1, 'counts': (1,)}
CHECK = CHECKS['equivalence']


@pytest.mark.parametrize('bad', [1e-12, 1e-5])
def test_run_reports_whether_it_holds(tmp_path, fake, bad, capsys):
  """Fails if the report hides a failure."""
  fake['float64'] = bad
  folder = epath.Path(tmp_path)
  result = CHECK.run(OPTIONS, folder)
  assert result['holds'] == (bad < 1e-9)
  text = CHECK.summary(result)
  assert ('do NOT agree' in text) == ('ABOVE' in text) == (bad > 1e-9)
  assert f'Verdict: {CHECK.verdict(result)}' in text
  for name, _ in CHECK.figures(result, folder):
    assert (folder / name).read_bytes().startswith(b'\x89PNG')
  assert 'float64, 1 tasks' in capsys.readouterr().out


def test_the_verdict_is_that_of_the_most_steps():
  """Fails if --counts=1024,1 judges one step by the limit of many."""
  assert equivalence.settle({'counts': (1024, 1, 1024)}).counts == (1, 1024)


def test_run_resumes(tmp_path, fake):
  """Fails if a second run measures again, or overwrites results."""
  folder = epath.Path(tmp_path)
  result = CHECK.run(OPTIONS, folder)
  assert CHECK.run(OPTIONS, folder) == result
  assert fake['measured'] == ['float32', 'float64']
  with pytest.raises(UserError, match='--out: .* holds --tasks=1, not 2'):
    CHECK.run({**OPTIONS, 'tasks': 2}, folder)


def test_a_folder_of_an_earlier_version_is_judged_anew(tmp_path, fake):
  """Fails if an old verdict is kept, or old results are measured again."""
  folder = epath.Path(tmp_path)
  result = CHECK.run(OPTIONS, folder)
  file = folder / 'equivalence.json'
  old = json.loads(file.read_text())
  old['verdict'] = old.pop('holds')
  file.write_text(json.dumps(old))
  assert CHECK.run(OPTIONS, folder) == result
  assert len(fake['measured']) == 2
