"""What was not solved to its tolerance says so, in training and in test."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from small_backbone import Small, start, task

from mtl_jax import algorithms, devices, heads
from mtl_jax.algorithms import METHODS
from mtl_jax.config import base_config, set_method
from mtl_jax.config.check import build_method
from mtl_jax.data import store as stores
from mtl_jax.evaluate import measure
from mtl_jax.evaluate.protocol import Protocol
from mtl_jax.heads import logistic, ridge, svm
from mtl_jax.run import checkpoint, loop, metrics, report, score
from mtl_jax.run.parts import Run

KEY = jax.random.key(5)
LOG = ml_collections.ConfigDict(
    {'every_steps': 2, 'progress': False})
UNSOLVED = lambda gram, penalty, right: right
# Options by which a method's problem is solved, options by which it is not,
# what is patched for the latter, and the field that the line names.
IMAML = {'l2': 10., 'inner_rate': 0.03, 'smooth': True}
PROX = {'l2': 10., 'inner_rate': 3e-4, 'inner_batch': 99, 'smooth': True}
CASES = {
    'metaoptnet': ({}, {}, (
        svm, 'fit', lambda x, y, ways, **options: {
            'weights': jnp.zeros((x.shape[1], ways)),
            'dual': jnp.zeros((len(x), ways)),
            'rest': jnp.zeros((len(x), ways))}), 'method.C'),
    'metaoptnet-ridge': ({'head': 'ridge'}, {'head': 'ridge'}, (
        ridge, '_solve', UNSOLVED), 'method.regulariser'),
    'r2d2': ({}, {}, (ridge, '_solve', UNSOLVED), 'method.regulariser'),
    'r2d2-drawn': ({'max_shots': 3}, {'max_shots': 3}, (
        ridge, '_solve', UNSOLVED), 'method.regulariser'),
    'imaml-inner': (IMAML | {'inner_steps': 40, 'cg_steps': 10},
                    IMAML | {'inner_steps': 1, 'cg_steps': 10}, None,
                    'method.inner_steps'),
    'imaml-cg': (IMAML | {'inner_steps': 40, 'cg_steps': 10},
                 IMAML | {'inner_steps': 40, 'cg_steps': 1}, None, 'cg_steps'),
    'minibatch_prox': (PROX | {'inner_steps': 200}, PROX | {'inner_steps': 1},
                       None, 'method.inner_steps'),
}


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def build(name, smooth=False, **options):
  unroll = {'unroll': False} if 'unroll' in METHODS[name].OPTIONS else {}
  return algorithms.create(name, Small(smooth=smooth), 6, 3,
                           **unroll | options)


def trained(algorithm, episode, path):
  """Trains two records of two equal steps, as a run does; returns the records.

  The parameters stay: what is tested is what the loss says beside its value.
  """
  variables = start(algorithm, episode)
  measured = jax.jit(lambda v: algorithm.loss(v, KEY, episode, 0)[1].metrics)(
      variables) | {'gradient_norm': (1., 1.)}
  same = lambda tree: tree
  compiled = devices.Compiled(lambda state, _: (state, measured), same, same,
                              same, None, same)
  log = metrics.Log(path, LOG, 0, 4, {'': algorithm.remedy})
  run = Run(algorithm, None, 1, 4, None, {})
  training = loop.Training(None, path, None, jnp.int32(0), log=log,
                           save=checkpoint.every(0, None))
  loop.train_epoch(compiled, [training], [None] * 4, range(4), run)
  return [json.loads(line)
          for line in (path / metrics.FILE).read_text().splitlines()]


@pytest.mark.parametrize('case', CASES)
def test_training_says_once_what_was_not_solved(
    case, float64, tmp_path, monkeypatch, capsys):
  solved, cut, patch, field = CASES[case]
  name, episode = case.partition('-')[0], task()
  for folder in ('solved', 'cut'):
    (tmp_path / folder).mkdir()
  records = trained(build(name, **solved), episode, tmp_path / 'solved')
  assert [r['not_converged'] for r in records] == [0, 0], records
  assert 'onverged' not in capsys.readouterr().out
  if patch:
    monkeypatch.setattr(*patch)
  records = trained(build(name, **cut), episode, tmp_path / 'cut')
  assert [r['not_converged'] for r in records] == [1, 1], records
  assert max(records[0].get('residual', 0),
             records[0].get('stationarity', 0)) > heads.LARGE_RESIDUAL
  line, = capsys.readouterr().out.splitlines()
  assert line.startswith('Not converged in 100.0% of the training tasks')
  assert field in line


def test_a_resumed_run_does_not_say_it_again(tmp_path, capsys):
  for upto in (0, 2):
    log = metrics.Log(tmp_path, LOG, upto, 4, {'': 'x', 'validation_': 'y'})
    for step in (upto + 1, upto + 2):
      log.record({'step': step, 'not_converged': .5, 'residual': np.nan})
  assert len(capsys.readouterr().out.splitlines()) == 1
  log.record({'step': 4, 'validation_not_converged': .5,
              'validation_residual': 1.})
  assert 'of the validation tasks' in capsys.readouterr().out


@pytest.mark.parametrize('name', [
    'mtl', 'r2d2', 'r2d2-episode', 'imaml', 'minibatch_prox'])
def test_a_methods_own_test_says_what_was_not_solved(
    name, float64, monkeypatch):
  patches = {
      'r2d2': CASES['r2d2'][2],
      'mtl': (logistic, 'fit', functools.partial(logistic.fit, max_steps=0))}
  steps = {'imaml': (IMAML | {'test_l2': 10.}, 40),
           'minibatch_prox': (PROX, 200)}
  name, _, batch_norm = name.partition('-')
  episode = task()

  def measured(few):
    options = {'batch_norm': batch_norm} if batch_norm else {}
    if name in steps:
      options = steps[name][0] | {'test_steps': 1 if few else steps[name][1]}
    algorithm = build(name, **options)
    variables = start(algorithm, episode)

    @jax.jit
    def own(variables):
      adapted = algorithm.adapt(variables, KEY, episode.support_x,
                                episode.support_y, 3)
      return algorithm.convergence(adapted, episode.query_x)
    return own(variables)

  assert not measured(few=False)['not_converged']
  if name in patches:
    monkeypatch.setattr(*patches[name])
  assert measured(few=True)['not_converged']


@pytest.mark.parametrize('name', ['maml', 'anil', 'meta_sgd', 'protonet'])
def test_a_method_of_a_fixed_number_of_steps_claims_nothing(name, float64):
  algorithm, episode = build(name), task()
  _, aux = jax.eval_shape(
      lambda v: algorithm.loss(v, KEY, episode, 0),
      jax.eval_shape(algorithm.init, KEY, episode.support_x))
  assert set(aux.metrics) == {'loss', 'accuracy'}
  assert algorithm.convergence is None


def test_a_test_says_which_heads_were_not_solved():
  store = stores.load('glyphs/tiny', 'test')
  algorithm = build_method(tiny().to_dict(), store.num_classes)
  variables = jax.jit(algorithm.init)(KEY, jnp.zeros((2, 28, 28, 1)))
  rules = Protocol(KEY, 5, 3, 2, 2, False, 64, 2)
  found, = measure.make_meta_test(algorithm, store, [rules], {
      'good': ('svm', {}), 'svm': ('svm', {'max_rounds': 0}),
      'logistic': ('logistic', {'max_steps': 0})})(variables)
  said = score._convergence(algorithm, {
      label: (label, m) for label, m in found.items()})
  assert said['good']['not_converged'] == 0 < said['good']['residual'] < svm.GAP
  assert 'remedy' not in said['good']
  for label in ('svm', 'logistic'):
    assert said[label]['not_converged'] == 1
    assert said[label]['residual'] > heads.LARGE_RESIDUAL
    assert len(found[label].convergence['residual']) == 5
  line, = report._not_converged(said)
  assert 'svm in 100.0% of its tasks' in line and 'good' not in line
  assert 'config.heads.svm' in line and 'config.heads.logistic' in line


def tiny():
  config = base_config()
  config.data.name, config.model.width = 'glyphs/tiny', 8
  config.model.pool = 'global'
  set_method(config, 'protonet', benchmark='glyphs', shots=5, scale='cpu')
  return config


@pytest.mark.parametrize('residuals,bad', [
    ({'a': 0.01, 'b': 0.}, False), ({'a': 0.06, 'b': 0.}, True),
    ({'a': np.nan, 'b': 0.}, True), ({'a': 0., 'b': np.nan}, True),
    ({'a': 1e-4, 'not_converged': True}, True)])
def test_one_large_residual_is_enough(residuals, bad):
  assert bool(heads.convergence({
      name: jnp.asarray(v) for name, v in residuals.items()})[
          'not_converged']) is bad


def test_a_head_without_residuals_claims_nothing():
  assert heads.convergence({}) == {}
