"""Meta-test and stores: against scikit-learn, task by task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from mtl_jax import algorithms, devices, fields, models
from mtl_jax.algorithms import METHODS, base, last_layer, mtl, network
from mtl_jax.data import augment, episodes, sources
from mtl_jax.data import store as stores
from mtl_jax.data.__main__ import main as data_main
from mtl_jax.evaluate import adapters, features, interval, measure
from mtl_jax.evaluate import protocol as drawing
from mtl_jax.evaluate.protocol import Protocol

DATA = 'glyphs/tiny'


@pytest.fixture(scope='module')
def store():
  return stores.load(DATA, 'test')


@pytest.fixture(scope='module')
def trained(store):
  algorithm = mtl.build(models.create('conv4', width=16, pool='flat'),
                        12, 5, **fields.defaults(mtl.OPTIONS))
  variables = jax.jit(algorithm.init)(
      jax.random.key(3), jnp.zeros((2, 28, 28, 1)))
  return algorithm, variables


def protocol(**changes):
  return Protocol(**{
      'key': episodes.stream_key(0, episodes.Stream.TEST), 'num_tasks': 30,
      'ways': 5, 'shots': 2, 'queries': 6, 'normalise_features': True,
      'batch_size': 64, 'tasks_at_once': 7} | changes)


HEADS = {'logistic': ('logistic', {'C': 3.})}


@pytest.fixture(scope='module')
def whole(store, trained):
  """The accuracies of the protocol's tasks."""
  return measure.meta_test(*trained, store, protocol(), HEADS)['logistic']


def test_accuracies_are_those_of_scikit_learn_on_the_same_tasks(
    store, trained, whole):
  algorithm, variables = trained
  rules = protocol()
  images = augment.normalise(store.images, store.mean, store.std)
  expected_features = np.asarray(
      jax.jit(algorithm.features)(variables, images), np.float64)
  expected_features /= np.linalg.norm(expected_features, axis=1, keepdims=True)
  expected = []
  for key in episodes.task_keys(rules.key, 0, rules.num_tasks):
    _, ids = jax.device_get(episodes.sample(
        key, jnp.asarray(store.offsets), ways=5, images_per_class=8))
    with threadpool_limits(1):  # many threads on tiny products only wait
      model = LogisticRegression(C=3., tol=1e-10, max_iter=10_000).fit(
          expected_features[ids[:, :2].ravel()], np.repeat(range(5), 2))
    hits = model.predict(expected_features[ids[:, 2:].ravel()]) == np.repeat(
        range(5), 6)
    expected.append(hits.mean())
  # A query between two classes may fall to either side: one in 900.
  difference = np.abs(whole - expected) * 30
  assert difference.sum() <= 1 + 1e-6
  assert len(np.unique(expected)) > 5, 'tasks too easy to show anything'


def test_a_terminal_shows_how_far_a_test_is(store, trained, bars):
  measure.meta_test(*trained, store, protocol(progress=True), HEADS)
  (features_of, seen, images), (what, done, tasks) = bars
  assert (features_of, what) == ('features', 'adapting')
  assert seen == images > 100 and done == tasks == 30
  del bars[:]
  measure.meta_test(*trained, store, protocol(), HEADS)
  assert not bars, 'what is to be quiet is not'


@pytest.mark.parametrize('changes', [
    {'batch_size': 1000}, {'tasks_at_once': 30}, {'tasks_at_once': 1}])
def test_sizes_of_batches_and_chunks_change_nothing(
    store, trained, whole, changes):
  other = measure.meta_test(
      *trained, store, protocol(**changes), HEADS)['logistic']
  np.testing.assert_allclose(whole, other, atol=0.034)
  assert np.mean(whole != other) < 0.1


def test_more_tasks_begin_with_the_same_tasks(store, trained, whole):
  few = measure.meta_test(*trained, store, protocol(num_tasks=5), HEADS)
  np.testing.assert_allclose(few['logistic'], whole[:5])


def test_pixels_are_a_backbone_like_any_other(store, trained, whole):
  algorithm, variables = trained
  scores = measure.meta_test(features.pixels(algorithm), variables, store,
                              protocol(), HEADS)
  assert not np.array_equal(scores['logistic'], whole)
  assert scores['logistic'].mean() > 0.3


@pytest.mark.parametrize('count', [1, 8, 13, 29])
def test_all_devices_compute_the_features_that_one_computes(
    store, trained, count):
  """Fails if images of other devices are mixed up, or filling is kept."""
  algorithm, variables = trained
  network = features.make(algorithm, store, True)
  assert network.mesh.size == 8
  ids = np.random.default_rng(0).permutation(len(store.images))[:count]
  batches = features.in_batches(network, variables, store, ids, 3)
  assert {d for batch in batches for d in batch.devices()} == {
      jax.devices()[0]}
  assert max(map(len, batches)) <= 8 * 3
  np.testing.assert_allclose(
      jnp.concatenate(batches)[:count],
      network.of_batch(variables, store.images[ids]), rtol=1e-5, atol=1e-6)


def test_pixels_of_few_tasks_are_held_at_a_time(store, trained, monkeypatch):
  """Fails if raw pixels as a baseline take gigabytes."""
  pixels, rules = features.pixels(trained[0]), protocol(batch_size=16)
  kept = pixels._replace(features=lambda *given: pixels.features(*given))
  monkeypatch.setattr(adapters, '_PIXELS', 2 * 40 * 28 * 28 * 4)
  # Pixels are dealt with on one device, and so are those that they are compared
  # with: the numbers then are the same to the last bit.
  one_device = devices.mesh_of_tasks(1)
  monkeypatch.setattr(devices, 'mesh_of_tasks', lambda _: one_device)
  held, in_batches = [], features.in_batches
  monkeypatch.setattr(features, 'in_batches', lambda *given: held.append(
      in_batches(*given)) or held[-1])
  ids = np.random.default_rng(0).permuted(
      np.tile(np.arange(160).reshape(8, 20)[:5], (4, 1, 1)), axis=-1)[..., :8]
  tasks = drawing.tasks(rules, ids)
  parts = [drawing.some(tasks, rows) for rows in ([0, 1], [2, 3])]
  few, = adapters.make(pixels, store, rules, {'x': ('centroid', {})}, 4)
  whole, = adapters.make(kept, store, rules, {'x': ('centroid', {})}, 4)
  assert (few.at_once, whole.at_once) == (2, 7)
  for one, other in zip(few.answers({}, parts), whole.answers({}, parts),
                        strict=True):
    np.testing.assert_array_equal(one['x'].logits, other['x'].logits)
  of_all, of_few, of_others = (16 * len(batches) for batches in held)
  assert max(of_few, of_others) <= 2 * 40 < of_all


@pytest.mark.parametrize('count', [3, 11])  # eight devices, a task on each
def test_a_method_adapts_to_each_task_once_with_the_tasks_own_key(
    store, trained, count):
  algorithm, variables = trained
  guess = lambda key: jax.random.normal(key, (30, 5))
  guessing = algorithm._replace(adapt=lambda variables, key, *task: key,
                                predict=lambda key, query: guess(key),
                                convergence=None, from_features=None)
  rules = protocol(num_tasks=count)
  ours = measure.meta_test(guessing, variables, store, rules,
                           {'own': ('own', {})})['own']
  hits = [np.argmax(guess(key), -1) == np.repeat(range(5), 6)
          for key in episodes.task_keys(rules.key, 0, count)]
  np.testing.assert_allclose(ours, np.mean(hits, -1), atol=1e-6)


def test_adapters_give_the_logits_of_each_of_their_tasks(store, trained):
  algorithm, variables = trained
  rules = [protocol(num_tasks=4), protocol(num_tasks=2, shots=1, ways=4)]
  tasks = [drawing.tasks(p, drawing.draw(p, store.offsets)) for p in rules]
  both, = adapters.make(algorithm, store, rules[0], {
      'a': ('centroid', {}), 'b': ('ridge', {})}, fewest=2)
  by_task = list(both.answers(variables, tasks))
  for answers, shape in zip(by_task, ((4, 30, 5), (2, 24, 4)), strict=True):
    assert {k: v.logits.shape for k, v in answers.items()} == {
        'a': shape, 'b': shape}
  alone, = both.answers(variables, tasks[1:])
  np.testing.assert_allclose(alone['b'].logits, by_task[1]['b'].logits,
                             atol=1e-6)


def unsolved(backbone):
  """Returns a method whose head is as far from solved as its features say."""
  parts = last_layer.make(
      network.Body(backbone, 'running'), lambda params, *task: task[0],
      lambda params, head, features: features @ head[:5].T,
      diagnostics=lambda head, features, labels: {
          'gap': jnp.mean(features), 'not_converged': features[0, 0] > 0.4})
  return base.Algorithm(
      lambda key, images: network.init(backbone, key, images)[0], *parts[:1],
      network.features_function(backbone), *parts[1:4], '', parts.from_features)


def created(name, **options):
  """Returns a method with a small network, and its first variables."""
  backbone = models.create('conv4', width=8, pool='flat')
  algorithm = unsolved(backbone) if name == 'unsolved' else algorithms.create(
      name, backbone, 12, 5, **options)
  return algorithm, jax.jit(algorithm.init)(
      jax.random.key(3), jnp.zeros((2, 28, 28, 1)))


def test_a_head_is_shared_among_tasks_where_features_are_the_same_in_each():
  """Fails if BatchNorm of a task, or a network that adapts, is left out."""
  found = set()
  for name, method in METHODS.items():
    allowed = method.OPTIONS['batch_norm'].allowed
    for how in allowed:
      if created(name, batch_norm=how)[0].from_features:
        found.add((name, how))
  assert found == {
      ('mtl', 'running'), ('whole_class', 'running'), ('r2d2', 'running'),
      *((name, how) for name in ('anil', 'metaoptnet', 'protonet')
        for how in ('running', 'running_apart'))}


@pytest.mark.parametrize('limit', [2**31, 1])
@pytest.mark.parametrize('name, options', [
    ('mtl', {}), ('whole_class', {}), ('r2d2', {'scale': 3., 'shift': 0.1}),
    ('metaoptnet', {'scale': 3.}), ('protonet', {'scale': 0.5}),
    ('anil', {'batch_norm': 'running', 'learned_rate': True}),
    ('unsolved', {}),
    ('metaoptnet', {'head': 'ridge', 'batch_norm': 'running'})])
def test_a_shared_head_answers_as_the_method_does_task_by_task(
    store, name, options, limit, monkeypatch):
  algorithm, variables = created(name, **options)
  variables['batch_stats'] = jax.tree.map(lambda x: x + 0.3,
                                          variables['batch_stats'])
  if 'learned_rate' in options:
    variables['params']['rate'] = jnp.float32(0.03)
  monkeypatch.setattr(adapters, '_FEATURES', limit)
  held, of_tasks = [], features.of_tasks
  monkeypatch.setattr(features, 'of_tasks', lambda *given, **more: held.append(
      len(given[3])) or of_tasks(*given, **more))
  # Copies are of new heads alone.
  rules = protocol(tasks_at_once=4, support_copies=2, augmentation={})
  tasks = drawing.tasks(rules, drawing.draw(rules, store.offsets)[:11])
  parts = [drawing.some(tasks, np.array(rows))
           for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 10])]
  shared, = adapters.make(algorithm, store, rules, {'own': ('own', {})}, 11)
  found = list(shared.answers(variables, parts))
  assert held == ([3] if limit > 1 else [1, 1, 1])
  assert shared.at_once == 4
  alone = adapters.own(algorithm, store, 'own', 4)
  for one, other in zip(found, alone.answers(variables, parts), strict=True):
    logits, convergence = one['own']
    expected, solved = other['own']
    np.testing.assert_allclose(
        logits, expected, atol=2e-4 * np.abs(expected).max())
    assert convergence.keys() == solved.keys()
    for key in solved:
      np.testing.assert_allclose(convergence[key], solved[key], rtol=1e-3,
                                 atol=1e-5)
  if name == 'unsolved':
    assert len(np.unique(convergence['residual'])) == 3, 'all tasks alike'


def test_features_are_held_until_they_take_more_than_allowed(
    store, trained, monkeypatch):
  algorithm, variables = trained
  network_of = features.make(algorithm, store, False)
  rules = protocol()
  tasks = [drawing.tasks(rules, drawing.draw(rules, store.offsets)[:9])]
  images = len({*tasks[0].support.ravel(), *tasks[0].query.ravel()})
  dim = len(algorithm.features(variables, jnp.zeros((1, 28, 28, 1)))[0])
  for limit, many in ((4 * dim * images, False), (4 * dim * images - 1, True)):
    monkeypatch.setattr(adapters, '_FEATURES', limit)
    assert adapters._are_many(network_of, variables, store, tasks) == many


def test_summary_is_the_normal_interval():
  values = np.array([.2, .4, .9, 1.])
  result = interval.summary(values)
  assert result['accuracy'] == pytest.approx(.625)
  spread = (((values - .625) ** 2).sum() / 3) ** .5
  assert result['ci95'] == pytest.approx(1.96 * spread / 2)


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_a_store_holds_every_record_under_its_class(split):
  store = stores.load(DATA, split)
  builder = stores.builder(DATA)
  names = builder.info.features['label'].names
  by_class = {}
  for record in builder.as_data_source(split=split):
    by_class.setdefault(names[record['label']], []).append(record['image'])
  assert tuple(by_class) == store.class_names or set(by_class) == set(
      store.class_names)
  for i, name in enumerate(store.class_names):
    np.testing.assert_array_equal(
        store.images[store.offsets[i]:store.offsets[i + 1]], by_class[name])


def test_no_class_is_in_two_splits():
  names = [set(stores.load(DATA, split).class_names)
           for split in ('train', 'validation', 'test')]
  assert sum(map(len, names)) == len(set.union(*names))


def test_the_data_command_lists_what_is_built(store, capsys):
  assert data_main(['list']) == 0
  assert f'{DATA:<24} built' in capsys.readouterr().out
  assert DATA in sources.names()


def test_the_data_command_checks_a_data_set(capsys):
  assert data_main(['check', DATA]) == 0
  assert '8 classes of 20 to 20 images' in capsys.readouterr().out


@pytest.mark.parametrize('words', [
    ['build', 'imagenet'], ['fetch'], ['build'], []])
def test_wrong_words_to_the_data_command_get_one_line(words, capsys):
  assert data_main(words) == 2
  assert len(capsys.readouterr().err.strip().splitlines()) == 1
