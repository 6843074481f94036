"""The meta-test of a trained run: settings, files, other tasks, other data."""

import json
import shutil

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from mtl_jax import files, main
from mtl_jax.data import augment, episode_files, episodes
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import features, measure, tune_all
from mtl_jax.evaluate import protocol as drawing
from mtl_jax.heads import logistic
from mtl_jax.models import layers
from mtl_jax.report import compare
from mtl_jax.run import (
  build,
  checkpoint,
  evaluate_mode,
  features_file,
  loop,
  parts,
  protocols,
  report,
  tested_split,
  trained,
  workdir,
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('run') / 'run'
  result = command.run(command.arguments(
      path, config__train__max_epochs=1, config__validation__tasks=20,
      config__parallel__cpu_devices=2,
      config__eval__baselines=True))
  assert result.returncode == 0, result.stderr
  assert '2 x cpu' in result.stdout, 'the CPU was not counted as two'
  return path


def config_of(run, **changes):
  config = workdir.saved_config(str(run))
  config.log.progress = False
  config.update_from_flattened_dict(
      {k.replace('__', '.'): v for k, v in changes.items()})
  return config


def evaluated(run, path, **changes):
  result = evaluate_mode.evaluate_run(config_of(run, **changes), run, path)
  return result, dict(np.load(path / 'tasks.npz'))


@pytest.fixture(scope='module')
def written(run, tmp_path_factory):
  """Returns (folder, test.json, tasks.npz) of a test that wrote its tasks."""
  path = tmp_path_factory.mktemp('written')
  return path, *evaluated(run, path, eval__write_episodes=True,
                          eval__also_shots=(1,),
                          eval__heads=('logistic', 'own'))


@pytest.fixture(scope='module')
def reread(run, written, tmp_path_factory):
  """The same of a test that read these tasks; its seed would draw others."""
  path = tmp_path_factory.mktemp('reread')
  return path, *evaluated(
      run, path, eval__read_episodes=str(written[0] / 'test_episodes.json'),
      eval__also_shots=(1,), eval__seed=7, eval__baselines=False)


def test_evaluating_a_run_gives_what_the_run_wrote(run, tmp_path):
  before = command.snapshot(run)
  result, accuracies = evaluated(run, tmp_path)
  assert result == json.loads((run / 'test.json').read_text())
  assert result == json.loads((tmp_path / 'test.json').read_text())
  np.testing.assert_array_equal(accuracies['logistic'],
                                np.load(run / 'tasks.npz')['logistic'])
  assert command.snapshot(run) == before


def test_several_heads_and_shots_are_scored_with_their_baselines(written):
  _, both, _ = written
  assert set(both['scores']) == {
      f'{name}{shots}' for name in ('logistic', 'own', 'untrained',
                                    'raw_pixels') for shots in ('', ' 1-shot')}


def test_shots_scored_together_are_those_scored_alone(run, written, tmp_path):
  _, single = evaluated(run, tmp_path, eval__shots=1, eval__baselines=False)
  np.testing.assert_array_equal(written[2]['logistic 1-shot'],
                                single['logistic'])


def test_the_own_adaptation_of_mtl_is_its_logistic_head(written):
  # On unit-length features.
  _, _, accuracies = written
  assert np.abs(accuracies['own'] - accuracies['logistic']).mean() < 0.01


def test_support_copies_are_augmented_and_replace_the_image(run):
  model = trained.load(run)
  store = stores.load('glyphs/tiny', 'test')
  rules = protocols.test(config_of(run))[0]._replace(
      num_tasks=3, support_copies=4, augmentation={
          **config_of(run).augment, 'operations': ('crop', 'flip'),
          'padding': 3})
  found = measure.meta_test(model.algorithm, model.variables, store, rules,
                             {'logistic': ('logistic', {'C': 3.})})
  shots, ways = rules.shots, rules.ways
  copied = jax.jit(lambda key, images: augment.augment(
      key, images, **rules.augmentation))
  fit = jax.jit(lambda x: logistic.fit(x, np.tile(np.repeat(
      np.arange(ways), shots), 4), ways, C=3.))
  for key, ids, accuracy in zip(
      episodes.task_keys(rules.key, 0, 3),
      drawing.draw(rules, store.offsets), found['logistic'],
      strict=True):
    images = np.tile(store.images[ids[:, :shots].ravel()], (4, 1, 1, 1))
    copies = copied(jax.random.fold_in(key, episodes.Use.COPIES), images)
    support = model.features(copies)
    assert len(np.unique(np.asarray(support), axis=0)) > ways * shots
    query = model.features(store.images[ids[:, shots:].ravel()])
    hits = np.argmax(logistic.logits(fit(support), query), -1) == np.repeat(
        np.arange(ways), rules.queries)
    assert accuracy == pytest.approx(float(hits.mean()))


def test_epochs_and_C_are_chosen_on_the_validation_split(run, tmp_path):
  """Fails if the best epoch, or C, is chosen on test classes."""
  config, model = config_of(run), trained.load(run)
  head = config.validation.head
  of = lambda split, rules, scored: measure.meta_test(
      model.algorithm, model.variables, stores.load('glyphs/tiny', split),
      rules, scored)
  scored = {head: (head, protocols.options(config, head))}
  right, wrong = (of(split, protocols.validation(config), scored)[head].mean()
                  for split in ('validation', 'test'))
  said = json.loads((run / 'test.json').read_text())['validation_accuracy']
  # The run counted its CPU as two: a query may fall on the other side.
  assert said == pytest.approx(right, abs=0.01)
  assert abs(said - wrong) > 0.02
  config = config_of(run, eval__choose_C=(1e-6, 3.), validation__tasks=40,
                     eval__baselines=False)
  result = evaluate_mode.evaluate_run(config, run, tmp_path)
  found = of('validation', protocols.choice(config),
             {str(C): ('logistic', {'C': C}) for C in (1e-6, 3.)})
  assert result['validation_by_C'] == pytest.approx(
      {C: x.mean() for C, x in found.items()}, abs=1e-6)


def test_C_is_chosen_on_validation_tasks(run, tmp_path):
  result, _ = evaluated(run, tmp_path, eval__choose_C=(1e-6, 3.),
                        validation__tasks=40, eval__baselines=False)
  by_value = result['validation_by_C']
  assert set(by_value) == {'1e-06', '3.0'}
  assert result['C'] == result['heads']['logistic']['C'] == max(
      (1e-6, 3.), key=lambda C: by_value[str(C)])
  assert 'chosen on validation' in report.scores(result)


@pytest.mark.parametrize('width', [10**6, 2**31 - 1])
def test_a_network_that_no_device_holds_is_refused(run, width):
  """Fails if XLA computes for ever, or is given a size that it cannot count."""
  config = config_of(run, model__width=width)
  with pytest.raises(UserError, match='conv4 has [0-9,]+ parameters: at most'):
    build.initial_state(config, build.algorithm_of(config, 12), (28, 28, 1))


@pytest.mark.parametrize('changes, line', [
    # The validation split has fewer classes than the test split.
    ({'eval__ways': 8, 'eval__choose_C': (1., 3.)},
     'config.eval.ways is 8.*validation'),
    ({'eval__heads': ('logistic', 'centroid'),
      'heads__centroid__distance': 'foo'}, "centroid.distance is 'foo'"),
    ({'eval__support_copies': 2, 'augment__operations': ('jitter',)},
     'jitter: it needs images of 3 channels'),
    ({'augment__operations': ('jitter',)},
     'jitter: it needs images of 3 channels'),
    ({'eval__read_episodes': 'nowhere.json'}, 'nowhere.json cannot be read'),
    ({'eval__read_episodes': '~/none.json'}, '~/none.json cannot be read'),
])
def test_what_a_test_refuses_is_refused_before_training(run, changes, line):
  with pytest.raises(UserError, match=line):
    parts.make_run(config_of(run, **changes))


def test_tasks_are_written_by_class_and_image(run, written):
  content = json.loads((written[0] / 'test_episodes.json').read_text())
  task = content['tests'][0]['tasks'][0]
  store = stores.load('glyphs/tiny', 'test')
  ids = drawing.draw(protocols.test(config_of(run))[0], store.offsets)[0]
  for of_class, row in zip(task, ids, strict=True):
    m = store.class_names.index(of_class['class'])
    numbers = map(int, of_class['support'] + of_class['query'])
    assert list(row - store.offsets[m]) == list(numbers)


def test_tasks_written_are_the_tasks_read(written, reread):
  np.testing.assert_array_equal(reread[2]['logistic'], written[2]['logistic'])
  assert reread[1]['num_tasks'] == written[1]['num_tasks']


def test_of_fewer_tasks_in_a_file_as_many_are_measured(
    run, written, tmp_path):
  file = changed_tasks(written, tmp_path, lambda content: content['tests'][0]
                       .update(tasks=content['tests'][0]['tasks'][:4]))
  few, read = evaluated(run, tmp_path, eval__read_episodes=str(file),
                        eval__baselines=False)
  np.testing.assert_array_equal(read['logistic'], written[2]['logistic'][:4])
  assert few['num_tasks'] == 4


@pytest.mark.parametrize('change, line', [
    (lambda content: content.update(data='mini_imagenet'),
     'tasks of mini_imagenet'),
    (lambda content: content.update(tests=[]), 'not of'),
    (lambda content: content.update(split=None), 'None'),
    (lambda content: content['tests'][0].update(tasks=[]), 'has no tasks'),
    (lambda content: content['tests'][0]['tasks'][0][0]['query'].__setitem__(
        0, content['tests'][0]['tasks'][0][0]['support'][1]),
     'an image twice in a task'),
    (lambda content: content['tests'][0]['tasks'][1].__setitem__(
        0, content['tests'][0]['tasks'][1][1]), 'a class twice in a task'),
    (lambda content: content['tests'][0]['tasks'][0][0]['support'].__setitem__(
        0, '999'), 'has an image'),
])
def test_tasks_that_do_not_fit_are_refused(
    run, written, tmp_path, change, line):
  file = changed_tasks(written, tmp_path, change)
  with pytest.raises(UserError, match=line):
    episode_files.read(file, stores.load('glyphs/tiny', 'test'),
                       protocols.test(config_of(run)))


def changed_tasks(written, folder, change):
  """Returns a copy of the file of tasks, after `change` of its content."""
  content = json.loads((written[0] / 'test_episodes.json').read_text())
  change(content)
  file = folder / 'changed.json'
  file.write_text(json.dumps(content))
  return file


@pytest.fixture
def other_data(run):
  """Returns (config, data): a test on a data set that shares two classes."""
  config = config_of(run, eval__data='glyphs')
  config.eval.data, config.data.name = 'glyphs/tiny', 'glyphs'
  seen = stores.load('glyphs/tiny', 'test').class_names[:2]
  return config, {'name': 'glyphs', 'image_shape': [28, 28, 1], 'mean': [0.5],
                  'std': [2.], 'classes': [*seen, 'another']}


def test_classes_seen_in_another_data_set_are_refused(other_data):
  with pytest.raises(UserError, match='2 of its test classes were trained on'):
    tested_split.load(*other_data)


def test_another_data_set_is_normalised_as_the_training_data(other_data):
  config, data = other_data
  config.eval.allow_seen_classes = True
  store = tested_split.load(config, data)
  assert store.split == 'test'
  assert store.mean == 0.5 and store.std == 2.


def test_features_are_those_of_the_backbone(run, tmp_path):
  features_file.write(config_of(run), run, tmp_path)
  found = np.load(tmp_path / 'features.npz')
  store = stores.load('glyphs/tiny', 'test')
  expected = trained.load(run).features(store.images[30:50])
  np.testing.assert_allclose(found['features'][30:50], expected, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(found['features'], axis=1), 1.,
                             atol=1e-5)
  assert tuple(found['class_names'][found['labels'][[0, -1]]]) == (
      store.class_names[0], store.class_names[-1])
  assert found['names'][21] == '1'


def test_the_difference_of_two_runs_is_paired(run, tmp_path):
  a = np.load(run / 'tasks.npz')['logistic']
  _, b = evaluated(run, tmp_path, eval__normalise_features=False,
                   eval__baselines=False)
  text = compare.compare(run, tmp_path)
  gaps = a - b['logistic']
  assert f'{100 * gaps.mean():+6.2f} points' in text
  assert f'+- {196 * gaps.std(ddof=1) / len(gaps) ** .5:.2f}' in text


@pytest.fixture(scope='module')
def drawn_by_7(run, tmp_path_factory):
  """The folder of a test whose tasks another seed drew."""
  path = tmp_path_factory.mktemp('seven')
  evaluated(run, path, eval__seed=7, eval__baselines=False)
  return path


def test_other_tasks_have_no_difference(run, drawn_by_7, tmp_path):
  with pytest.raises(UserError, match='different tasks: seed is 0 and 7'):
    compare.compare(run, drawn_by_7)
  with pytest.raises(UserError, match='holds no finished test'):
    compare.compare(run, tmp_path)


def test_tasks_drawn_and_the_same_tasks_read_are_paired(run, reread):
  """Fails if the seed and the path of a file decide, and not the images."""
  assert '+0.00 points' in compare.compare(run, reread[0])


def test_other_tasks_in_a_file_of_the_same_path_are_refused(
    run, written, reread, tmp_path):
  file = changed_tasks(written, tmp_path, lambda content: content['tests'][0][
      'tasks'].reverse())
  shutil.copytree(reread[0], tmp_path / 'a')
  evaluated(run, tmp_path / 'b', eval__read_episodes=str(file),
            eval__seed=7, eval__baselines=False)
  result = json.loads((tmp_path / 'a/test.json').read_text())
  (tmp_path / 'a/test.json').write_text(json.dumps(
      {**result, 'episodes': str(file)}))
  with pytest.raises(UserError, match='the images of the tasks differ'):
    compare.compare(tmp_path / 'a', tmp_path / 'b')


def test_an_older_test_is_compared_by_its_settings(
    run, drawn_by_7, tmp_path):
  shutil.copytree(run, tmp_path / 'old')
  file = tmp_path / 'old/test.json'
  result = json.loads(file.read_text())
  del result['tasks_sha256']
  file.write_text(json.dumps(result))
  text = compare.compare(run, tmp_path / 'old')
  assert '+0.00 points' in text and 'An older version made one' in text
  with pytest.raises(UserError, match='seed is 0 and 7'):
    compare.compare(tmp_path / 'old', drawn_by_7)


@pytest.mark.parametrize('contents', ['[]', '3', '{"accuracy": '])
def test_a_test_that_is_damaged_is_no_finished_test(contents, run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  (tmp_path / 'run/test.json').write_text(contents)
  with pytest.raises(UserError, match='holds no finished test'):
    compare.compare(run, tmp_path / 'run')


def test_the_baselines_have_the_chosen_C(run, tmp_path):
  """Fails if raw pixels are scored with the default C beside the chosen one."""
  _, accuracies = evaluated(run, tmp_path, eval__choose_C=(1e-9,),
                            eval__baselines=True)
  model = trained.load(run)
  expected = measure.meta_test(
      features.pixels(model.algorithm), model.variables,
      stores.load('glyphs/tiny', 'test'), protocols.test(config_of(run))[0],
      {'a': ('logistic', {'C': 1e-9}), 'b': ('logistic', {'C': 3.})})
  np.testing.assert_array_equal(accuracies['raw_pixels'], expected['a'])
  assert np.abs(expected['a'] - expected['b']).max() > 0


@pytest.mark.parametrize('split, line', [
    ('train', '12 of these classes were trained on'),
    ('validation', 'the best epoch was chosen on these classes')])
def test_a_score_on_classes_that_were_seen_says_so(
    split, line, run, tmp_path):
  result, _ = evaluated(run, tmp_path, eval__split=split, eval__tasks=2,
                        eval__baselines=False)
  assert line in report.scores(result)
  assert 'unseen' not in report.scores({
      **result, 'seen_classes': 0, 'split': 'test'})


def test_a_test_of_one_task_has_no_interval(run, tmp_path):
  """Fails if NaN, which is no JSON, is written or printed."""
  result, _ = evaluated(run, tmp_path, eval__tasks=1, eval__baselines=False)
  strict = json.loads((tmp_path / 'test.json').read_text(),
                      parse_constant=pytest.fail)
  assert strict['ci95'] is None
  text = report.scores(result)
  assert 'one task: no interval' in text and 'nan' not in text
  assert 'no interval' in compare.compare(tmp_path, tmp_path)


def test_what_is_not_finite_is_not_scored(run, tmp_path):
  """Fails if NaN logits are scored as the first class: chance."""
  with pytest.raises(UserError, match="broken.py' are not finite in 2 of 2"):
    head = tmp_path / 'broken.py'
    head.write_text(BROKEN_HEAD)
    evaluated(run, tmp_path, eval__heads=(str(head),), eval__tasks=2,
              eval__baselines=False)
  assert not (tmp_path / 'test.json').exists()


BROKEN_HEAD = """
import jax.numpy as jnp
OPTIONS = {}
def fit(features, labels, num_ways):
  return {'ways': jnp.zeros(num_ways)}
def logits(params, features):
  return jnp.nan + params['ways'] + features[:, :1]
def diagnostics(params, features, labels):
  return {}
"""


def test_tasks_of_an_earlier_test_do_not_stay_beside_a_new_one(run, tmp_path):
  for write in (True, False):
    evaluated(run, tmp_path, eval__write_episodes=write, eval__tasks=2,
              eval__baselines=False)
    assert (tmp_path / 'test_episodes.json').exists() is write


def test_a_second_start_in_a_workdir_is_refused(run):
  """Fails if two processes train in one folder, until both die."""
  before = command.snapshot(run)
  with files.lock(run):
    with pytest.raises(UserError, match=f'{run}: another process trains or'):
      loop.train_and_evaluate(config_of(run), run)
  assert command.snapshot(run) == before


def test_a_second_test_in_a_folder_is_refused(run, tmp_path):
  """Fails if the files of two tests are mixed, each by its own last write."""
  with files.lock(tmp_path), pytest.raises(UserError, match='or tests in this'):
    evaluated(run, tmp_path, eval__tasks=2, eval__baselines=False)
  assert [p.name for p in tmp_path.iterdir()] == [files.LOCK]


@pytest.mark.parametrize('calls', range(3))
def test_a_start_that_was_killed_while_it_claimed_may_start_again(
    calls, run, tmp_path, monkeypatch):
  """Fails if the files of a claim look like somebody's folder."""
  path, config = files.at(tmp_path / 'new'), config_of(run)
  written = []

  def write(file, contents):
    if len(written) == calls:
      (file.parent / f'{file.name}.77.tmp').write_text(contents)
      raise KeyboardInterrupt
    written.append(file)
    file.write_text(contents)

  monkeypatch.setattr(files, 'write', write)
  with pytest.raises(KeyboardInterrupt), workdir.alone(path):
    workdir.claim(path, config, {})
  workdir.check(path, config)


@pytest.mark.parametrize('contents', ['{}', '[]', 'null', '{"model": 3}'])
@pytest.mark.parametrize('name', ['config.json', 'data.json'])
def test_a_damaged_file_of_a_run_gets_one_line(
    name, contents, run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  (tmp_path / 'run' / name).write_text(contents)
  with pytest.raises(UserError, match=f'{name} cannot be read'):
    trained.load(tmp_path / 'run')


def test_the_command(run, tmp_path):
  out = tmp_path / 'out'
  result = command.run(['--mode=evaluate', f'--checkpoint={run}',
                        f'--workdir={out}', '--config.eval.tasks=3',
                        '--config.eval.baselines=False',
                        '--config.eval.also_shots=1,'])
  assert result.returncode == 0, result.stderr
  assert 'logistic head 1-shot' in result.stdout
  assert {p.name for p in out.iterdir()} == {
      'test.json', 'tasks.npz', files.LOCK}


@pytest.mark.parametrize('flags, line', [
    (['--mode=evaluate'], '--checkpoint is missing'),
    (['--checkpoint={run}', '--config=configs/quickstart.py'], 'is for --mode'),
    (['--mode=evaluate', '--checkpoint={run}/best'], 'config.json is missing'),
    (['--mode=evaluate', '--checkpoint={run}', '--config.eval.data=omniglott'],
     'config.eval.data is'),
    (['--mode=evaluate', '--checkpoint={run}', '--config.seed=4'],
     'config.seed=0, not 4'),
    (['--mode=evaluate', '--checkpoint={run}', '--config.eval.shots=30'],
     'at most 20'),
    (['--mode=evaluate', '--checkpoint={run}',
      '--config.eval.support_copies=5'], 'augment.operations is empty'),
])
def test_wrong_commands_get_one_line(run, flags, line, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  assert main.main([flag.format(run=run) for flag in flags]) == 2
  said = capsys.readouterr().err
  assert line in said and len(said.strip().splitlines()) == 1, said


def test_a_folder_of_a_run_without_rights_gets_one_line(
    run, capsys, monkeypatch):
  """Fails if the user's own folders end in a traceback."""
  def denied(path, like):
    raise PermissionError(13, 'Permission denied', str(path / 'best'))
  monkeypatch.setattr(checkpoint, 'restore_best', denied)
  assert main.main(['--mode=evaluate', f'--checkpoint={run}']) == 2
  assert f'{run}/best: cannot be read' in capsys.readouterr().err


def test_tune_all_keeps_the_tasks_of_a_call_apart(run):
  model = trained.load(run)
  rules = protocols.test(config_of(run))[0]._replace(num_tasks=3)
  measured = lambda at_once: measure.meta_test(
      model.algorithm, model.variables, stores.load('glyphs/tiny', 'test'),
      rules, {'tune_all': ('tune_all', {
          'learning_rate': 1e-2, 'steps': 2, 'tasks_at_once': at_once})}
  )['tune_all']
  np.testing.assert_array_equal(measured(1), measured(2))


def test_tune_all_moves_every_layer_from_the_centroids(run):
  model = trained.load(run)
  store = stores.load('glyphs/tiny', 'test')
  rules = protocols.test(config_of(run))[0]._replace(num_tasks=1)
  ids = drawing.draw(rules, store.offsets)
  support, query = (augment.normalise(
      store.images[part.ravel()], store.mean, store.std)
                    for part in (ids[0, :, :2], ids[0, :, 2:]))
  labels = np.repeat(np.arange(5), 2)
  features = jax.jit(lambda params, x: layers.unit_norm(
      model.algorithm.features({**model.variables, 'params': params}, x)))

  def loss(tuned):
    params, weight, bias = tuned
    logits = features(params, support) @ weight.T + bias
    return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(10), labels])

  params = model.variables['params']
  found = np.asarray(features(params, support))
  centroids = np.stack([found[labels == k].mean(0) for k in range(5)])
  tuned = (params, jnp.asarray(centroids), jnp.zeros(5))
  # Adam's first step is the sign of the gradient, where it is not tiny.
  gradient = jax.jit(jax.grad(loss))(tuned)
  tuned = jax.tree.map(
      lambda w, g: w - 1e-2 * g / (jnp.abs(g) + 1e-8), tuned, gradient)
  expected = features(tuned[0], query) @ tuned[1].T + tuned[2]
  tune = tune_all.make(model.algorithm, steps=1, learning_rate=1e-2)
  ours = tune(model.variables, support[None], labels, query[None], 5)[0]
  np.testing.assert_allclose(ours, expected, atol=2e-3)
  assert np.abs(ours - features(params, query) @ centroids.T).max() > 0.01
