"""The command line: what a good run leaves, and what a bad input gets.

Bad input: one line on stderr that names the field or file, exit code 2, and
the folder as it was.
"""

import ctypes
import json
import os
import resource
import shutil
import signal

import command
import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

READ_ONLY_CAPABILITIES = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The workdir of a tiny run, with what it printed."""
  path = tmp_path_factory.mktemp('finished') / 'run'
  result = command.run(command.arguments(
      path, config__eval__baselines=True, config__log__every_steps=3,
      config__eval__heads="('logistic','own')"))
  assert result.returncode == 0, result.stderr
  return path, result


def test_a_run_leaves_what_it_says(finished):
  path, result = finished
  assert {p.name for p in path.iterdir()} >= {
      'config.json', 'data.json', 'env.json', 'metrics.jsonl', 'checkpoints',
      'best', 'test.json', 'tasks.npz', 'curves.png'}
  test = json.loads((path / 'test.json').read_text())
  assert (test['num_tasks'], test['ways'], test['shots'], test['queries']) == (
      10, 5, 2, 3)
  assert test['batch_norm'] == 'running' and test['method'] == 'mtl'
  assert test['checkpoint_step'] in (4, 8, 12, 16)
  assert set(test['scores']) == {'logistic', 'own', 'untrained', 'raw_pixels'}
  with np.load(path / 'tasks.npz') as tasks:
    accuracies = tasks['logistic']
  assert accuracies.shape == (10,)
  np.testing.assert_allclose(test['accuracy'], accuracies.mean())
  np.testing.assert_allclose(
      test['ci95'], 1.96 * accuracies.std(ddof=1) / 10 ** 0.5)
  records = [json.loads(line)
             for line in (path / 'metrics.jsonl').read_text().splitlines()]
  assert [r['step'] for r in records if 'loss' in r] == [
      3, 4, 7, 8, 11, 12, 15, 16]
  validated = [r for r in records if 'validation_accuracy' in r]
  assert [r['step'] for r in validated] == [4, 8, 12, 16]
  # Equal means may differ in the last digit of a double.
  best = max(validated, key=lambda r: np.float32(r['validation_accuracy']))
  assert test['checkpoint_step'] == best['step'], 'not the best epoch'
  with Image.open(path / 'curves.png') as image:
    assert min(image.size) > 300
  for label in ('untrained backbone', 'raw pixels', 'mtl, trained'):
    assert label in result.stdout


def test_features_and_the_methods_own_adaptation_agree(finished):
  """Fails if two ways through the evaluation differ for the same head."""
  with np.load(finished[0] / 'tasks.npz') as tasks:
    np.testing.assert_allclose(tasks['logistic'], tasks['own'], atol=1e-6)


def test_a_pipe_gets_plain_lines(finished):
  assert 'step 16  loss ' in finished[1].stdout
  assert '\r' not in finished[1].stdout + finished[1].stderr


def test_starting_a_finished_run_again_changes_no_result(finished, tmp_path):
  path = tmp_path / 'run'
  shutil.copytree(finished[0], path)
  result = command.run(command.arguments(
      path, config__eval__baselines=True, config__log__every_steps=3,
      config__eval__heads="('logistic','own')"))
  assert result.returncode == 0, result.stderr
  assert 'Resuming at step 16' in result.stdout
  for name in ('test.json', 'metrics.jsonl', 'config.json'):
    assert (path / name).read_text() == (finished[0] / name).read_text()


# Name -> (fields, what the line must name).
BAD_FIELDS = {
    'unknown field': (
        {'config.train.wayz': 3}, ('config.train.wayz', 'ways')),
    'unknown section': ({'config.trian.ways': 3}, ('trian', 'train')),
    'text for a number': (
        {'config.train.ways': 'three'}, ('config.train.ways', "'three'")),
    'unknown model': (
        {'config.model.name': 'resnet99'}, ('config.model.name', 'conv4')),
    'option of another model': (
        {'config.model.pool': 'none'}, ('model.pool', 'global')),
    'unknown data set': (
        {'config.data.name': 'imagenet'}, ('config.data.name', 'glyphs')),
    'unknown head': (
        {'config.eval.heads': "('svn',)"}, ('config.eval.heads', 'logistic')),
    'unknown optimizer': (
        {'config.optimizer.name': 'adamm'}, ('optimizer.name', 'adam')),
    'unknown loss': (
        {'config.method.loss': 'hinge'}, ('method.loss', 'squared')),
    'more ways than classes': (
        {'config.train.ways': 50}, ('config.train.ways is 50', '12')),
    'more images than a class has': (
        {'config.eval.queries': 30}, ('config.eval.shots', 'has 20 images')),
    'negative rate': (
        {'config.optimizer.learning_rate': -1.},
        ('config.optimizer.learning_rate', 'above 0')),
    'no epochs': ({'config.train.max_epochs': 0}, ('max_epochs', 'least 1')),
    'more devices than there are': (
        {'config.parallel.devices': 3}, ('config.parallel.devices', 'at most')),
    'chunks that do not divide': (
        {'config.parallel.tasks_at_once': 3}, ('tasks_at_once', '1 tasks')),
    'scales without epochs': (
        {'config.optimizer.step_scales': '(.1,)'}, ('step_scales',)),
    'tasks that are not there': (
        {'config.eval.read_episodes': 'none.json'},
        ('eval.read_episodes: none.json', 'write_episodes wrote')),
    'no seeds': ({'config.seeds': ''}, ('config.seeds is empty', '0,1,2')),
    'a seed twice': ({'config.seeds': '0,1,0'}, ('config.seeds', '0 is there')),
    'a negative seed': ({'config.seeds': '0,-1'}, ('config.seeds has -1',)),
    'a seed that is a text': ({'config.seeds': 'x,1'}, ("has 'x'", 'whole')),
    'a seed and seeds': ({'config.seed': 0, 'config.seeds': '0,1'},
                         ('config.seeds is (0, 1) and config.seed 0', 'one')),
    'seeds side by side, misspelt': (
        {'config.parallel.seeds': 'both'}, ('parallel.seeds', 'together')),
    'unknown flag': ({'confg': 3}, ('confg',)),
}


def assert_one_line(result, *named):
  assert result.returncode == 2, result.stderr or result.stdout
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1, result.stderr
  for text in named:
    assert text in lines[0]


@pytest.fixture(scope='module')
def bad_fields(tmp_path_factory):
  """Returns case -> (workdir, result)."""
  paths = [tmp_path_factory.mktemp('bad') / 'run' for _ in BAD_FIELDS]
  results = command.run_each([
      command.arguments(path, **fields) for path, (fields, _) in zip(
          paths, BAD_FIELDS.values(), strict=True)])
  return dict(zip(BAD_FIELDS, zip(paths, results, strict=True), strict=True))


@pytest.mark.parametrize('case', BAD_FIELDS)
def test_a_bad_field_gets_one_line_and_no_folder(case, bad_fields):
  path, result = bad_fields[case]
  assert_one_line(result, *BAD_FIELDS[case][1])
  assert not path.exists()


def test_a_bad_config_file_gets_one_line(tmp_path):
  broken = tmp_path / 'broken.py'
  broken.write_text('def get_config(method):\n  return None +\n')
  extra = tmp_path / 'extra.py'
  extra.write_text('from mtl_jax.config import base_config\n'
                   'def get_config(method=None):\n  c = base_config()\n'
                   '  c.train.momentum = 0.9\n  return c\n')
  named = {
      tmp_path / 'none.py': ('none.py',), broken: ('broken.py', 'line 2'),
      extra: ('config.train.momentum', 'meta_batch'),
      f'{command.CONFIG}:maaml': ('maaml', 'mtl')}
  for result, names in zip(command.run_each([
      [f'--config={config}', f'--workdir={tmp_path / "run"}']
      for config in named]), named.values(), strict=True):
    assert_one_line(result, *names)
  assert not (tmp_path / 'run').exists()


def copy_of(finished, tmp_path):
  path = tmp_path / 'run'
  shutil.copytree(finished[0], path)
  return path


IMPORTS = """
import os, sys
class Finder:
  def find_spec(self, name, path=None, target=None):
    if name == 'jax':
      os.kill(os.getpid(), int(sys.argv[1]))
sys.meta_path.insert(0, Finder())
from mtl_jax import main
"""


@pytest.mark.parametrize('number, code', [
    (signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_python_imports(number, code):
  """Fails if it gets a traceback, or no code that a scheduler knows."""
  result = command.run([str(int(number))], ('-c', IMPORTS))
  assert result.returncode == code
  assert result.stderr.split('\n') == [
      '', 'mtl_jax: stopped before it began', '']


def test_a_workdir_that_is_somebodys_folder(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  before = command.snapshot(tmp_path)
  folder, file = command.run_each([
      command.arguments(path) for path in (tmp_path, tmp_path / 'thesis.tex')])
  assert_one_line(folder, str(tmp_path))
  assert_one_line(file, 'thesis.tex is a file')
  assert command.snapshot(tmp_path) == before


def damage(step, how):
  """Damages a saved step."""
  if how == 'other structure':
    (step / 'default/_METADATA').write_text('{}')
  for file in (step / 'default').rglob('*'):
    if file.is_file() and '/d/' in str(file) and how != 'other structure':
      file.unlink() if how == 'missing' else os.truncate(file, 20)


DAMAGES = ('truncated', 'missing', 'other structure')
# Case -> (what is done to a copy of the finished run, fields of its start).
CHANGES = {
    'another config': (lambda path: None, {'config__train__shots': 3}),
    'config.json': (
        lambda path: (path / 'config.json').write_text('{"seed": '), {}),
    **{f'newest {how}': (lambda path, how=how: damage(
        path / 'checkpoints/16', how), {}) for how in DAMAGES},
    'both truncated': (lambda path: [
        damage(step, 'truncated') for step in path.glob('checkpoints/*')], {}),
    'best truncated': (lambda path: [
        os.truncate(file, 20) for file in path.glob('best/*/default/**/d/*')],
                       {}),
    'best missing': (lambda path: shutil.rmtree(path / 'best'), {}),
    'best of the damaged step': (lambda path: [
        damage(path / 'checkpoints/16', 'truncated'),
        shutil.copytree(path / 'checkpoints/16', path / 'best/16')], {}),
    'a smaller limit': (lambda path: None, {'config__train__max_epochs': 3}),
    'no checkpoints': (
        lambda path: [shutil.rmtree(path / 'best'),
                      (path / 'checkpoints').rename(path / 'best')], {}),
    'nothing to resume from': (lambda path: [
        shutil.rmtree(path / name) for name in ('checkpoints', 'best')], {})}


@pytest.fixture(scope='module')
def changed(finished, tmp_path_factory):
  """Returns case -> (workdir, what was in it, result of its start)."""
  cases, starts = {}, []
  for case, (change, fields) in CHANGES.items():
    path = copy_of(finished, tmp_path_factory.mktemp('changed'))
    change(path)
    cases[case] = path, command.snapshot(path)
    starts.append(command.arguments(path, **fields))
  return {case: (*given, result) for (case, given), result in zip(
      cases.items(), command.run_each(starts), strict=True)}


def test_a_workdir_of_another_config(changed):
  path, before, result = changed['another config']
  assert_one_line(result, 'config.train.shots=2', 'not 3', str(path))
  assert command.snapshot(path) == before


@pytest.mark.parametrize('how', DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(how, finished, changed):
  path, _, result = changed[f'newest {how}']
  assert result.returncode == 0, result.stderr
  line, = result.stderr.splitlines()
  assert line.startswith(f'warning: {path}/checkpoints/16')
  assert line.endswith('going back to step 12')
  assert 'Resuming at step 12' in result.stdout
  # Nothing that an error which passes has made unreadable is lost.
  assert sorted(p.name for p in path.glob('checkpoints/*')) == [
      '12', '16', 'damaged-16']
  state = lambda path: jax.tree.leaves(tiny_run.final_state(path))
  for one, other in zip(state(path), state(finished[0]), strict=True):
    np.testing.assert_array_equal(one, other)
  score = lambda path: json.loads((path / 'test.json').read_text())['accuracy']
  assert score(path) == score(finished[0])


@pytest.mark.parametrize('case, line', [
    ('a smaller limit', 'holds a run of 4 epochs: set at least 4'),
    ('no checkpoints', 'would resume at step 0: restore'),
    ('nothing to resume from', 'remove test.json')])
def test_a_run_is_not_made_another_one(case, line, changed):
  """Fails if a test is lost, or says of a run what it was not."""
  path, before, result = changed[case]
  assert_one_line(result, line, str(path))
  assert command.snapshot(path) == before


def test_a_damaged_best_state_that_is_made_again(finished, changed):
  """Fails if it stays, though training reaches its step once more."""
  path, _, result = changed['best of the damaged step']
  assert result.returncode == 0, result.stderr
  lines = result.stderr.splitlines()
  assert [line.split(': ')[1] for line in lines] == [
      f'{path}/{name}/16' for name in ('checkpoints', 'best')]
  scores = [json.loads((run / 'test.json').read_text())['scores']['logistic']
            for run in (path, finished[0])]
  assert scores[0] == scores[1]


def test_two_damaged_checkpoints_are_left_as_they_are(changed):
  path, before, result = changed['both truncated']
  assert_one_line(result, 'checkpoints/16', 'restore it')
  assert command.snapshot(path) == before


@pytest.mark.parametrize('how', ['truncated', 'missing'])
def test_a_best_checkpoint_that_is_gone(how, changed):
  """Fails if the line promises an older state, which does not exist."""
  path, _, result = changed[f'best {how}']
  assert_one_line(result, str(path / 'best'), 'restore it')
  assert 'step before' not in result.stderr


def test_a_damaged_config_json(changed):
  path, before, result = changed['config.json']
  assert_one_line(result, 'config.json')
  assert command.snapshot(path) == before


def without_the_power_of_root():
  """Takes away what lets a superuser's process write anywhere."""
  libc = ctypes.CDLL(None, use_errno=True)
  for capability in READ_ONLY_CAPABILITIES:
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize('exists', [False, True])
def test_a_read_only_workdir(exists, finished, tmp_path):
  if exists:
    path = locked = copy_of(finished, tmp_path)
  else:
    locked = tmp_path / 'locked'
    locked.mkdir()
    path = locked / 'run'
  before = command.snapshot(tmp_path)
  os.chmod(locked, 0o555)
  try:
    result = command.run(
        command.arguments(path, config__train__max_epochs=6),
        preexec_fn=without_the_power_of_root)
  finally:
    os.chmod(locked, 0o755)
  assert_one_line(result, str(path), 'Permission denied')
  assert command.snapshot(tmp_path) == before


def test_a_full_disk(finished, tmp_path):
  """Fails if a save that finds no room damages what was saved before."""
  path = copy_of(finished, tmp_path)
  before = command.snapshot(path)
  result = command.run(
      command.arguments(path, config__train__max_epochs=6),
      preexec_fn=lambda: resource.setrlimit(
          resource.RLIMIT_FSIZE, (8192, 8192)))
  assert_one_line(result, 'cannot be written', str(path))
  after = command.snapshot(path)
  # The run has got a new limit, and records that the next start makes anew.
  growing = ('config.json', 'settings.md', 'metrics.jsonl', 'env.json')
  assert {k: v for k, v in after.items() if k not in growing} == {
      k: v for k, v in before.items() if k not in growing}
  assert after['metrics.jsonl'].startswith(before['metrics.jsonl'])
  assert json.loads(after['config.json'])['train']['max_epochs'] == 6
  result = command.run(command.arguments(path, config__train__max_epochs=6))
  assert result.returncode == 0, result.stderr
  assert 'Resuming at step 16' in result.stdout


def test_a_log_that_is_full_ends_no_run(tmp_path):
  """Fails if what was trained is lost with a traceback of a print."""
  with open('/dev/full', 'w') as full:
    result = command.run(command.arguments(
        tmp_path / 'run', config__train__max_epochs=1), stdout=full)
  assert result.returncode == 0, result.stderr
  line, = result.stderr.splitlines()
  assert line == ('warning: stdout: No space left on device: going on without '
                  'it')
  assert (tmp_path / 'run/test.json').exists()


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
  """Fails if the loss alone is looked at, which is that before the step."""
  flags = command.arguments(
      tmp_path / 'run', config__optimizer__name='adam',
      config__optimizer__learning_rate=3e38,
      config__optimizer__weight_decay=10.,
      config__optimizer__schedule='constant',
      config__train__classes='train+validation', config__train__epoch_tasks=1)
  assert_one_line(command.run(flags), 'not finite after step 0',
                  'lower config.optimizer.learning_rate', 'another --workdir')
  assert not list((tmp_path / 'run').glob('*/[0-9]*'))


def test_a_training_that_diverges_to_a_finite_loss(tmp_path):
  """Fails if a whole training goes on at chance, and nothing says so."""
  result = command.run(command.arguments(
      tmp_path / 'run', f'{command.CONFIG}:minibatch_prox',
      config__method__head_init=None, config__method__inner_rate=3.,
      config__train__max_epochs=1, config__validation__tasks=40))
  assert result.returncode == 0, result.stderr
  line, = (x for x in result.stdout.splitlines() if 'guessing' in x)
  assert 'in tasks of 5 classes. If this goes on' in line
  assert 'config.method.inner_rate' in line


def test_a_loss_that_is_not_finite(finished, tmp_path):
  path = copy_of(finished, tmp_path)
  before = command.snapshot(path / 'checkpoints')
  bad = command.run(command.arguments(path, config__train__max_epochs=6),
                    program=('-c', BROKEN_LOSS))
  assert_one_line(bad, 'loss is nan at step 18', 'learning_rate')
  assert command.snapshot(path / 'checkpoints') == before


BROKEN_LOSS = """
import sys
import jax.numpy as jnp
from mtl_jax import main
from mtl_jax.algorithms import mtl
make = mtl.build
def build(*args, **kwargs):
  algorithm = make(*args, **kwargs)
  def loss(variables, key, episode, tasks_seen):
    value, aux = algorithm.loss(variables, key, episode, tasks_seen)
    bad = jnp.where(tasks_seen == 36, jnp.nan, 1.)  # step 18 of two tasks
    total, count = aux.metrics['loss']
    return value * bad, aux._replace(
        metrics={**aux.metrics, 'loss': (total * bad, count)})
  return algorithm._replace(loss=loss)
mtl.build = build
sys.exit(main.main(sys.argv[1:]))
"""
