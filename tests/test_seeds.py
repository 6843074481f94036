"""Several seeds of one config: one after another, and side by side."""

import json
import shutil

import command
import jax
import numpy as np
import pytest
import tiny_run
from etils import epath
from tiny_run import final_state, lasting

from mtl_jax.algorithms import METHODS
from mtl_jax.config.check import validate
from mtl_jax.data import episodes, feed
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.run import build, checkpoint, loop, metrics, parts, seeds, workdir
from mtl_jax.train import together

SEEDS = 0, 3


def config_of(**changes):
  """Returns the config of 20 tiny steps; seed 0 stops early, seed 3 not."""
  return tiny_run.config_of(**{
      'log__every_steps': 1, 'seeds': SEEDS, 'train__max_epochs': 5,
      'train__stop_patience': 2, 'method__head_init': 'rows', **changes})


@pytest.fixture(scope='module')
def in_turn(tmp_path_factory):
  """Returns (workdir, contents of test.json) of two seeds."""
  path = tmp_path_factory.mktemp('turn') / 'runs'
  return path, seeds.train_and_evaluate(config_of(), path)


@pytest.fixture(scope='module')
def side_by_side(tmp_path_factory):
  """The same of a run that is killed in its second epoch, then resumed.

  Every step is saved; seed 0 is then at one step more than seed 3.
  """
  path = tmp_path_factory.mktemp('side') / 'runs'
  config = config_of(parallel__seeds='together', train__save_minutes=1e-9)
  with pytest.MonkeyPatch.context() as patch:
    save = checkpoint.save
    def dies(manager, step, *args, **kwargs):
      if step == 7 and 'seed_3' in str(manager.directory):
        raise InterruptedError
      save(manager, step, *args, **kwargs)
    patch.setattr(checkpoint, 'save', dies)
    with pytest.raises(InterruptedError):
      seeds.train_and_evaluate(config, path)
  assert [checkpoint.last_step(epath.Path(path / f'seed_{seed}'))
          for seed in SEEDS] == [7, 6]
  return path, seeds.train_and_evaluate(config, path)


def records(path, seed):
  return lasting(metrics.read(epath.Path(path / f'seed_{seed}')))


def test_one_after_another_they_are_the_runs_of_each_seed(in_turn, tmp_path):
  """To the bit; fails if a seed knows that there are others."""
  path, results = in_turn
  config = config_of(seeds=(), seed=3)
  assert loop.train_and_evaluate(config, tmp_path / 'run') == results[1]
  for a, b in zip(jax.tree.leaves(final_state(tmp_path / 'run')),
                  jax.tree.leaves(final_state(path / 'seed_3')), strict=True):
    np.testing.assert_array_equal(a, b)
  for name in ('test.json', 'config.json', 'settings.md', 'data.json'):
    assert (path / 'seed_3' / name).read_text() == (
        tmp_path / 'run' / name).read_text()
  assert lasting(metrics.read(epath.Path(tmp_path / 'run'))) == records(path, 3)


@pytest.mark.parametrize('number', range(len(SEEDS)))
def test_side_by_side_the_first_20_steps_are_the_same(
    number, in_turn, side_by_side):
  """Each seed has its tasks, records, best epoch and end, and is resumed."""
  first, second = (records(path, SEEDS[number])
                   for path, _ in (in_turn, side_by_side))
  last = (12, 20)[number]
  assert [r['step'] for r in first][-1] == last, 'no early stop'
  assert len([r for r in first if 'loss' in r]) == last
  # They share the seconds, but for what each did alone after the kill, and
  # after the end of the other.
  alone = ({7}, {6, 7, *range(12, 20)})[number]
  shared = [r.pop('seeds', 1) for r in second if 'loss' in r]
  assert shared == [1 if i in alone else 2 for i in range(last)]
  assert [list(r) for r in first] == [list(r) for r in second]
  for a, b in zip(first, second, strict=True):
    assert a == pytest.approx(b, abs=1e-5)
  states = [final_state(path / f'seed_{SEEDS[number]}')
            for path, _ in (in_turn, side_by_side)]
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  results = [result[number] for _, result in (in_turn, side_by_side)]
  assert results[0]['checkpoint_step'] == results[1]['checkpoint_step']
  assert abs(results[0]['accuracy'] - results[1]['accuracy']) <= (
      results[0]['ci95'])


def prepared(config, numbers, run=None):
  """Returns (compiled step, state, arrays, keys, run) of seeds."""
  run = run or parts.make_run(config)
  store = run.splits['train']
  keys = together.stack([episodes.stream_key(seed, episodes.Stream.TRAIN)
                         for seed in numbers])
  state = together.stack([build.initial_state(
      seeds.of_seed(config, seed), run.algorithm, store.images.shape[1:])
                          for seed in numbers])
  compiled = run.compiled(len(numbers))
  return (compiled, *compiled.put((state, stores.arrays(
      store, config.data.store), keys)), keys, run)


def stepped(config, numbers, run=None):
  """Returns the variables of each seed after two steps side by side."""
  compiled, state, arrays, key, keys, run = prepared(config, numbers, run)
  batches = [None] * 2 if config.data.store == 'device' else feed.make(
      run.splits['train'], keys, config.train, range(run.meta_batch),
      compiled.divide)(range(2))
  for pixels in batches:
    state, _ = compiled.step(state, arrays, key, pixels)
  return [s.variables for s in together.split(
      jax.device_get(compiled.get(state)), len(numbers))]


# Adam would divide round-off by its own size where a gradient is zero.
SGD = {'optimizer__name': 'sgd', 'optimizer__learning_rate': 0.1,
       'optimizer__warmup_epochs': 0}


@pytest.fixture(scope='module')
def each_alone():
  config = config_of(**SGD)
  run = parts.make_run(config)
  return [stepped(config, [seed], run)[0] for seed in (4, 5)]


@pytest.mark.parametrize('how, num_devices, place', [
    ('jit', 2, 'host'), ('pmap', 2, 'device')])
def test_a_step_of_seeds_on_any_devices(how, num_devices, place, each_alone):
  """Fails if seeds exchange their tasks, their pixels or their states."""
  config = config_of(data__store=place, parallel__compile=how,
                     parallel__devices=num_devices, **SGD)
  for a, b in zip(each_alone, stepped(config, [4, 5]), strict=True):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(
        x, y, rtol=1e-4, atol=1e-5), a, b)
  gaps = jax.tree.map(lambda x, y: np.abs(x - y).max(), *each_alone)
  assert max(jax.tree.leaves(gaps)) > 0.01, 'the seeds are the same'


@pytest.mark.parametrize('method', sorted(METHODS))
def test_every_method_can_be_mapped_over_seeds(method):
  """Fails if a solver of a method has no rule for a mapped axis."""
  config = tiny_run.config_of(method)
  run = parts.make_run(config)
  store = run.splits['train']
  keys = together.stack([jax.random.key(0), jax.random.key(1)])
  states = jax.eval_shape(lambda: together.stack([build.initial_state(
      config, run.algorithm, store.images.shape[1:])] * 2))
  run.compiled(2).step.trace(states, stores.arrays(store), keys, None)


def test_the_command_ends_with_a_table_of_the_seeds(in_turn, tmp_path):
  """The runs are finished: it tests them again, and writes the table."""
  finished, results = in_turn
  path = shutil.copytree(finished, tmp_path / 'runs')
  flags = command.arguments(
      path, config__seeds='0,3', config__log__every_steps=1,
      config__parallel__devices=1, config__train__max_epochs=5,
      config__train__stop_patience=2)
  result = command.run(flags)
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert 'Seed 3, 2 of 2' in lines
  assert 'Resuming at step 12.' in lines and 'Resuming at step 20.' in lines
  mean = np.mean([r['accuracy'] for r in results])
  row, = [line.split() for line in lines if line.startswith(str(path))]
  assert row[1:7] == ['mtl', 'logistic', 'A', '2', '2', f'{100 * mean:.2f}']
  assert f'| {100 * mean:.2f} |' in (path / 'seeds.md').read_text()
  row, = json.loads((path / 'seeds.json').read_text())
  assert row['seeds'] == [0, 3] and row['accuracy'] == pytest.approx(mean)


@pytest.mark.parametrize('prepare, line', [
    (lambda p: (p / 'seed_0').mkdir(), None),
    # Such as the page that a report has written there.
    (lambda p: (p / 'seed_0').mkdir() or (p / 'page').mkdir(), None),
    (lambda p: (p / 'config.json').write_text('{}'), 'run of one seed'),
    (lambda p: (p / 'thesis.tex').write_text('x'), 'holds thesis.tex'),
    (lambda p: (p / 'seed_3').mkdir() or (p / 'seed_3/a').write_text('x'),
     'seed_3 holds other files'),
])
def test_a_workdir_of_something_else_is_refused(prepare, line, tmp_path):
  prepare(tmp_path)
  before = command.snapshot(tmp_path)
  if line is None:
    return seeds.check(epath.Path(tmp_path))
  with pytest.raises(UserError, match=line):
    seeds.train_and_evaluate(config_of(), tmp_path)
  assert command.snapshot(tmp_path) == before


def test_the_workdir_of_all_is_not_that_of_one(in_turn):
  with pytest.raises(UserError, match='a seed, such as .*/seed_0$'):
    workdir.saved_config(in_turn[0])


def test_a_config_file_may_set_seeds_but_not_both(tmp_path):
  validate(config_of(seed=0))
  with pytest.raises(UserError, match='config.seed 5: set one of them'):
    validate(config_of(seed=5))
  with pytest.raises(UserError, match='mtl_jax.run.seeds trains several'):
    loop.train_and_evaluate(config_of(), tmp_path / 'run')
  with pytest.raises(UserError, match='--checkpoint=WORKDIR/seed_N'):
    validate(config_of(), trains=False)
  assert not list(tmp_path.iterdir())
