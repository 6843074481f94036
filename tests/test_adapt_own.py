"""`mtl_jax.adapt --head=own`: the adaptation of the method itself."""

import json

import jax
import numpy as np
import pytest
import untrained

from mtl_jax import devices, heads
from mtl_jax.adapt import classify, learner
from mtl_jax.adapt.__main__ import main
from mtl_jax.data import augment, episodes, pictures
from mtl_jax.errors import UserError
from mtl_jax.run import trained

SHAPE = (untrained.SIDE, untrained.SIDE, 1)
SIZES = {'a': 2, 'b': 1, 'c': 3}
FIELDS = {'train__ways': 3, 'eval__ways': 3, 'validation__ways': 3,
          'eval__queries': 2, 'method__test_steps': 2,
          'method__unroll': False}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with a run of MAML and with pictures."""
  path = tmp_path_factory.mktemp('own')
  untrained.run(path / 'maml', 'maml', **FIELDS)
  untrained.pictures(path / 'known', SIZES)
  untrained.pictures(path / 'new', dict.fromkeys('abc', 2), seed=1)
  return path


def adapt(home, query='new', support='known', **options):
  return classify.adapt(home / 'maml', home / support, home / query, **options)


def numbers(result):
  return np.array([list(row['probabilities'].values())
                   for row in result['predictions']])


def by_hand(home, query='new', weights=True):
  """Returns the probabilities of MAML's adapt and predict, one query batch."""
  model = trained.load(home / 'maml')
  classes = tuple(SIZES)
  known = pictures.read_support(home / 'known', SHAPE)
  new = pictures.read_query(home / query, classes, SHAPE)
  support, rest = (augment.normalise(part.images, np.float32(0.5),
                                     np.float32(0.25)) for part in (known, new))
  keyword = {}
  if weights:
    keyword = {'example_weights': heads.balance(known.labels, 3)}
  key = episodes.stream_key(0, episodes.Stream.TEST)
  logits = jax.jit(lambda support, rest: model.algorithm.predict(
      model.algorithm.adapt(model.variables, key, support, known.labels, 3,
                            **keyword), rest))(support, rest)
  return jax.nn.softmax(logits)


def test_it_is_the_default_and_equals_the_methods_functions(home, capsys):
  assert main([f'--checkpoint={home / "maml"}', f'--support={home / "known"}',
               f'--query={home / "new"}', f'--out={home / "out"}']) == 0
  result = json.loads((home / 'out/predictions.json').read_text())
  np.testing.assert_allclose(numbers(result), by_hand(home), atol=1e-5)
  assert (result['head'], result['count_alike']) == ('own', 'classes')
  assert result['options']['test_steps'] == 2
  assert result['converged'] is None
  said = capsys.readouterr()
  assert 'head: own batch_norm=transductive test_steps=2' in said.out
  assert 'every class counts alike' in said.out
  assert 'nothing is solved to convergence: the number of steps' in said.out
  assert 'not calibrated: b has 1 support images' in said.out
  assert 'the query images influence each other' in said.err


def test_all_images_can_count_alike(home):
  np.testing.assert_allclose(numbers(adapt(home, balanced=False)),
                             by_hand(home, weights=False), atol=1e-5)


def test_other_statistics_make_predictions_independent(home):
  """Fails if a picture's answer depends on the pictures beside it."""
  together = adapt(home, batch_norm='support')
  assert together['notices'] == []
  alone = adapt(home, query='new/c/1.png', batch_norm='support')
  np.testing.assert_allclose(numbers(alone)[0], numbers(together)[5],
                             atol=1e-6)
  assert np.abs(numbers(together) - by_hand(home)).max() > 1e-4


def test_it_learns_as_many_classes_as_in_training(home, capsys):
  untrained.pictures(home / 'two', {'a': 1, 'b': 1})
  assert main([f'--checkpoint={home / "maml"}', f'--support={home / "two"}',
               f'--query={home / "new"}']) == 2
  assert capsys.readouterr().err == (
      'mtl_jax.adapt: --support has 2 classes: maml adapts by itself '
      '(--head=own) to as many as config.train.ways, 3; give 3 classes, or '
      'choose another --head, such as logistic\n')
  assert adapt(home, support='two', head='logistic')['head'] == 'logistic'


def test_many_queries_are_divided_as_in_the_test_of_the_run():
  """Fails if a part of the queries holds images of one class only."""
  seen = []
  logits = lambda state, x: seen.append(list(x)) or np.stack([x, x], 1)
  part = learner.Learner('own', {}, True, None, None, logits, batch=4,
                         together=True)
  values = np.arange(10.)
  np.testing.assert_array_equal(
      learner.logits_of(part, None, values)[:, 0], values)
  assert seen == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_a_support_that_memory_does_not_suffice_for_is_refused(
    home, monkeypatch):
  monkeypatch.setattr(learner, '_SURELY_FITS', 0)
  monkeypatch.setattr(devices, 'host_memory', lambda: 1000)
  with pytest.raises(UserError, match='6 images take .* GB at once .*give '
                     'fewer'):
    classify.learn(home / 'maml', pictures.list_support(home / 'known'))


def test_the_memory_of_this_machine_is_told():
  assert 2**28 < devices.host_memory() < 2**50
