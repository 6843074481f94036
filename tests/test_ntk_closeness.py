"""Closeness of trained networks: what is trained, and what is compared."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mtl_jax import fields
from mtl_jax.algorithms import anil, mtl
from mtl_jax.data import augment, episodes
from mtl_jax.errors import UserError
from mtl_jax.heads import logistic
from mtl_jax.models import conv4, layers
from mtl_jax.ntk.checks import CHECKS, closeness, report
from mtl_jax.ntk.checks import closeness_measures as measures
from mtl_jax.ntk.checks import closeness_networks as networks
from mtl_jax.ntk.checks.closeness_networks import NEW_HEAD, Cell

OPTIONS = {
    'dataset': 'glyphs/tiny', 'depths': (1,), 'times': (0.5,), 'width': 3,
    'steps': 2, 'meta_batch': 2, 'train_shots': 1, 'train_queries': 1,
    'inner_steps': 2, 'ways': 3, 'shots': 2, 'queries': 2, 'test_tasks': 3}
SMALL = closeness.settle(OPTIONS)
CHECK = CHECKS['closeness']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns the folder of a run with the options OPTIONS."""
  made = epath.Path(tmp_path_factory.mktemp('closeness'))
  CHECK.run(OPTIONS, made)
  return made


def said(seed=0, tasks=4, queries=2):
  """Returns probabilities of all networks of two seeds, at random."""
  rng = np.random.default_rng(seed)
  draw = lambda: rng.dirichlet(np.ones(SMALL.ways), (
      tasks, SMALL.ways * queries))
  return {(Cell(method, 1, t, s), how): draw() for s in (0, 1)
          for method, t, how in (('anil', 0.5, 'own'), ('mtl', 0., NEW_HEAD),
                                 ('untrained', 0., NEW_HEAD))}


def test_comparisons_are_those_of_a_loop_over_images():
  """Fails if other networks, tasks or images are compared."""
  of = said()
  got = measures.compare(SMALL, of, 1, 0.5, 'own')
  network = lambda method, s: of[
      Cell(method, 1, 0.5 if method == 'anil' else 0., s),
      'own' if method == 'anil' else NEW_HEAD]

  def by_hand(measure, a, b):
    values = []
    for p, q in zip(a.reshape(-1, 3), b.reshape(-1, 3), strict=True):
      values.append(float(list(p).index(max(p)) == list(q).index(max(q)))
                    if measure == 'agreement'
                    else sum(max(x - y, 0) for x, y in zip(p, q, strict=True)))
    return np.mean(values)

  for measure in measures.MEASURES:
    apart = lambda a, i, b, j, measure=measure: by_hand(
        measure, network(a, i), network(b, j))
    expected = {
        'same start': (apart('anil', 0, 'mtl', 0)
                       + apart('anil', 1, 'mtl', 1)) / 2,
        'other start': (apart('anil', 0, 'mtl', 1)
                        + apart('anil', 1, 'mtl', 0)) / 2,
        'two ANILs': apart('anil', 0, 'anil', 1),
        'two MTLs': apart('mtl', 0, 'mtl', 1)}
    for name, value in expected.items():
      np.testing.assert_allclose(got[measure][name]['mean'], value)
    np.testing.assert_allclose(
        got['excess'][measure]['mean'], expected['other start'] - (
            expected['two ANILs'] + expected['two MTLs']) / 2)
  labels = np.tile(np.repeat([0, 1, 2], 2), 4)
  right = [np.mean(network('mtl', s).reshape(-1, 3).argmax(-1) == labels)
           for s in (0, 1)]
  np.testing.assert_allclose(got['accuracy']['mtl']['mean'], np.mean(right))


def test_distance_and_agreement_have_their_limits():
  """Fails if equal networks are apart, or opposite ones not."""
  sure = np.eye(3)[np.array([[0, 1, 2, 0]])]
  other = np.eye(3)[np.array([[1, 1, 2, 2]])]
  assert measures.measured('distance', sure, sure) == [0]
  assert measures.measured('agreement', sure, sure) == [1]
  assert measures.measured('distance', sure, other) == [0.5]
  assert measures.measured('agreement', sure, other) == [0.5]


def test_independent_errors_agree_as_often_as_drawn_ones():
  """Fails if the agreement that mere accuracy gives is another."""
  rng = np.random.default_rng(0)
  answers = lambda accuracy: np.where(
      rng.random(200_000) < accuracy, 0, rng.integers(1, 5, 200_000))
  agree = np.mean(answers(0.7) == answers(0.4))
  assert abs(measures.independent(0.7, 0.4, 5) - agree) < 0.005


def test_trends_are_differences_of_the_same_tasks():
  """Fails if a fall with depth is called a rise, or has a wide interval."""
  o = SMALL._replace(depths=(1, 4), times=(0.1, 1.))
  rng = np.random.default_rng(0)
  task = rng.random(50)  # common to all settings
  points = [{'depth': d, 'time': t, 'how': how,
             'by_task': (task - 0.1 * d + t).tolist()}
            for d in o.depths for t in o.times for how in measures.HOWS]
  trends = measures.trends(o, points)['own']
  for t in ('0.1', '1.0'):
    np.testing.assert_allclose(trends['depth'][t]['mean'], -0.3)
    assert trends['depth'][t]['ci95'] < 1e-9
  np.testing.assert_allclose(trends['time']['4']['mean'], 0.9)
  assert not any('by_task' in point for point in points)


def test_a_network_of_four_blocks_is_conv4():
  """Fails if another network than the library's is compared."""
  images = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
  plain = conv4.Conv4(width=3, pool='global', pool_edges='same')
  variables = plain.init(jax.random.key(1), images, train=False)
  of = lambda model: model.apply(variables, images, train=False)
  np.testing.assert_array_equal(of(networks.Blocks(width=3)), of(plain))
  deep = networks.Blocks(width=3, blocks=6)
  shapes = jax.eval_shape(
      lambda: deep.init(jax.random.key(0), images, train=False))['params']
  assert sum(name.startswith('conv_') for name in shapes) == 6


def test_anil_takes_the_rate_of_the_cell():
  """Fails if all values of lambda tau train alike, or adapt otherwise."""
  backbone = networks.Blocks(width=3, blocks=1)
  ours = networks._anil(backbone, SMALL)
  plain = anil.build(backbone, 0, 3, **{
      **fields.defaults(anil.OPTIONS), 'inner_steps': 2, 'test_steps': 2,
      'inner_rate': 0.25, 'batch_norm': 'running'})
  images = jax.random.normal(jax.random.key(0), (3, 2, 28, 28, 1))
  episode = episodes.split(images, jnp.arange(3), 1)
  variables = plain.init(jax.random.key(1), episode.support_x)
  rated = {**variables, 'rate': jnp.float32(0.25)}
  key = jax.random.key(2)

  def loss_and_logits(method, variables):
    adapted = method.adapt(variables, key, episode.support_x,
                           episode.support_y, 3)
    return (method.loss(variables, key, episode, 0)[0],
            method.predict(adapted, episode.query_x))

  got = loss_and_logits(ours, rated)
  expected = loss_and_logits(plain, variables)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  other = loss_and_logits(ours, {**variables, 'rate': jnp.float32(1.)})
  assert abs(float(other[0] - expected[0])) > 1e-4


def test_both_methods_start_from_one_backbone():
  """Fails if 'same start' is another one, or lambda tau another product."""
  data, backbone = networks.load(SMALL), networks.Blocks(width=3, blocks=1)
  joint = mtl.build(backbone, 2, 3, **fields.defaults(mtl.OPTIONS))
  first, second, other = (
      networks._make_training(SMALL, data, method)[0](cell).variables
      for method, cell in (
          (networks._anil(backbone, SMALL), Cell('anil', 1, 0.5, 4)),
          (joint, Cell('mtl', 1, 0., 4)), (joint, Cell('mtl', 1, 0., 5))))
  kernel = lambda variables: variables['params']['backbone']['conv_0']['kernel']
  np.testing.assert_array_equal(kernel(first), kernel(second))
  assert np.abs(kernel(first) - kernel(other)).max() > 0.1
  assert first['rate'] * SMALL.inner_steps == 0.5


def test_untrained_networks_have_new_heads_by_hand(folder):
  """Fails if tasks or images are mixed up on their way to a file."""
  data = networks.load(SMALL)
  backbone = networks.Blocks(width=3, blocks=1)
  key, _ = jax.random.split(
      episodes.stream_key(1, episodes.Stream.INIT))  # as algorithms.network
  variables = backbone.init(key, jnp.zeros((2, 28, 28, 1)), train=False)
  kept = np.load(folder / 'cells/untrained_1_0.0_1.npz')[NEW_HEAD]
  task = protocol_task(data, 2)

  def features(ids):
    images = augment.normalise(data.test.images[ids], data.test.mean,
                               data.test.std)
    return layers.unit_norm(backbone.apply(variables, images, train=False))

  head = logistic.fit(features(task[:, :2].ravel()),
                      episodes.labels(3, 2), 3, C=3.)
  logits = logistic.logits(head, features(task[:, 2:].ravel()))
  np.testing.assert_allclose(kept[2], jax.nn.softmax(logits), atol=2e-3)


def protocol_task(data, number):
  """Returns the images [N, K + Q] of an unseen task."""
  key = jax.random.fold_in(episodes.stream_key(0, episodes.Stream.TEST),
                           number)
  return np.asarray(episodes.sample(
      key, jnp.asarray(data.test.offsets), ways=3, images_per_class=4)[1])


def test_training_moves_every_network_from_its_start(folder):
  """Fails if a method or a seed is not trained, or two are the same."""
  kept = {file.name: np.load(file)[NEW_HEAD]
          for file in (folder / 'cells').iterdir()}
  assert len(kept) == 6
  for a, b in itertools.combinations(kept.values(), 2):
    assert np.abs(a - b).max() > 1e-4
  for p in kept.values():
    assert p.shape == (3, 6, 3)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)


def test_a_stopped_run_resumes_and_a_damaged_cell_is_named(
    folder, monkeypatch):
  """Fails if networks are trained again, or a damaged file is a traceback."""
  monkeypatch.setattr(networks, 'make', lambda *args: pytest.fail('trains'))
  result = CHECK.run(OPTIONS, folder)
  assert result['holds'] is None
  assert len(result['points']) == 2 == len(CHECK.table(result)[1])
  assert len(CHECK.table(result)[0]) == len(CHECK.table(result)[1][0])
  assert CHECK.verdict(result) in CHECK.summary(result)
  assert json.loads((folder / 'closeness.json').read_text()) == result
  for name, caption in CHECK.figures(result, folder):
    assert (folder / name).read_bytes()[1:4] == b'PNG' and caption
  with pytest.raises(UserError, match='--out: .* holds --steps=2, not 3'):
    CHECK.run({**OPTIONS, 'steps': 3}, folder)
  file = folder / 'cells' / 'mtl_1_0.0_0.npz'
  whole = file.read_bytes()
  file.write_bytes(whole[:-30])
  with pytest.raises(UserError, match='mtl_1_0.0_0.npz is damaged: delete'):
    CHECK.run(OPTIONS, folder)
  file.write_bytes(whole)


def test_fixed_tasks_come_again_and_others_do_not():
  """Fails if the theory's finite number of tasks is not kept."""
  draw = lambda arrays, pixels, key: jax.random.key_data(key)
  keys = jax.random.split(jax.random.key(1), 40)
  drawn = lambda count: np.unique(np.stack([
      networks._of_fixed_tasks(draw, count)(None, None, key)
      for key in keys]), axis=0)
  assert len(drawn(3)) == 3
  assert len(drawn(0)) == 40


def test_the_report_has_the_quick_size():
  """Fails if the report takes as long as the full size."""
  part, = (p for p in report.parts(closeness.check.settle(report.OPTIONS, {}))
           if p.check == 'closeness')
  assert part.options == closeness.QUICK
  closeness.settle(part.options)


@pytest.mark.parametrize('change, message', [
    ({'depths': ()}, '--depths: one number or more'),
    ({'times': (0.,)}, '--times has 0.0: must be above 0'),
    ({'seeds': 1}, '--seeds is 1: must be at least 2')])
def test_wrong_options_are_named(change, message, tmp_path):
  """Fails if a yardstick of one seed is asked for, or a traceback shown."""
  with pytest.raises(UserError, match=message):
    CHECK.run({**OPTIONS, **change}, epath.Path(tmp_path) / 'made')
  assert not (tmp_path / 'made').exists()
