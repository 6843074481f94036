"""Training on the classes of training and validation together."""

import jax
import numpy as np
import pytest
import tiny_run

from mtl_jax import main
from mtl_jax.config.check import validate
from mtl_jax.data import episodes
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.run import loop, metrics, parts, report, seeds, trained, workdir

BOTH = 'train+validation'


def config_of(**changes):
  return tiny_run.config_of(**{
      'train__classes': BOTH, 'train__max_epochs': 2, 'eval__tasks': 4,
      'train__stop_patience': 0, **changes})


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(workdir, contents of test.json) of a run, pixels on the device."""
  path = tmp_path_factory.mktemp('both') / 'run'
  return path, loop.train_and_evaluate(config_of(), path)


def test_the_tasks_have_classes_of_both_splits_and_none_of_the_test():
  store = parts.make_run(config_of()).splits['train']
  names = {split: set(stores.load('glyphs/tiny', split).class_names)
           for split in ('train', 'validation', 'test')}
  keys = episodes.task_keys(episodes.stream_key(0, 1), 0, 50)
  class_ids, image_ids = jax.vmap(lambda key: episodes.draw_ids(
      jax.numpy.asarray(store.offsets), key, config_of().train))(keys)
  drawn = {store.class_names[m] for m in np.ravel(class_ids)}
  assert drawn == names['train'] | names['validation']
  assert not drawn & names['test']
  # The images are those of their classes.
  for m, i in zip(np.ravel(class_ids), image_ids.reshape(-1, 4), strict=True):
    assert (store.offsets[m] <= i).all() and (i < store.offsets[m + 1]).all()


def test_the_store_has_the_images_of_both():
  first, second, both = (stores.load('glyphs/tiny', split)
                         for split in ('train', 'validation', BOTH))
  np.testing.assert_array_equal(
      both.images, np.concatenate([first.images, second.images]))
  assert both.class_names == first.class_names + second.class_names
  assert (both.mean, both.std) == (first.mean, first.std)


def test_the_last_step_is_tested_on_unseen_classes(run):
  path, result = run
  assert result['checkpoint_step'] == 8
  assert result['validation_accuracy'] is None
  assert result['training']['classes'] == BOTH
  assert (result['split'], result['seen_classes']) == ('test', 0)
  assert not [r for r in metrics.read(path) if 'validation_accuracy' in r]
  assert len(trained.load(path).data['classes']) == 18
  assert 'trained on training and validation classes' in report.scores(result)
  assert (path / 'curves.png').exists()
  last = tiny_run.final_state(path)
  jax.tree.map(np.testing.assert_array_equal, last.variables,
               jax.device_get(trained.load(path).variables))


def test_the_start_counts_the_classes_of_both(run, capsys):
  config = workdir.saved_config(run[0])
  config.log.progress = True
  loop.train_and_evaluate(config, run[0])
  said = capsys.readouterr().out
  assert ('data: train+validation 18 classes, 360 images, test 8 classes'
          in said) and 'no validation: the last step is tested' in said


def test_seeds_with_pixels_on_the_host_give_the_same(run, tmp_path):
  """Fails if a placement or several seeds train on other classes."""
  results = seeds.train_and_evaluate(config_of(
      seeds=(0, 1), parallel__seeds='together', data__store='host'), tmp_path)
  assert [r['training']['classes'] for r in results] == [BOTH, BOTH]
  alone, same, other = (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(
          tiny_run.final_state(path).variables)])
      for path in (run[0], tmp_path / 'seed_0', tmp_path / 'seed_1'))
  np.testing.assert_allclose(same, alone, atol=2e-3)
  assert np.abs(other - alone).max() > 0.1


def test_a_run_does_not_resume_on_other_classes(run):
  config = config_of()
  config.train.classes = 'train'
  with pytest.raises(UserError, match=r'classes=train\+validation, not train'):
    loop.train_and_evaluate(config, run[0])


def test_validation_classes_are_no_unseen_classes_then(run, tmp_path, capsys):
  assert main.main(['--mode=evaluate', f'--checkpoint={run[0]}',
                    '--config.eval.split=validation', '--config.eval.tasks=2',
                    f'--workdir={tmp_path}', '--config.log.progress=True']) == 0
  assert '6 of these classes were trained on' in capsys.readouterr().out


@pytest.mark.parametrize('changes, line', [
    ({'optimizer__schedule': 'plateau'}, 'optimizer.schedule is plateau'),
    ({'train__stop_patience': 5}, 'train.stop_patience is 5'),
    ({'eval__choose_C': (1., 3.)}, r'eval.choose_C is \(1.0, 3.0\)')])
def test_what_needs_validation_is_refused(changes, line):
  with pytest.raises(UserError, match=f'config.{line}, but config.train.classes'
                     " is 'train.validation'"):
    validate(config_of(**changes))
