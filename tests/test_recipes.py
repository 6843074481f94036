"""Recipes against the publications that they name, typed in a second time.

SOURCES holds what the public codes and papers have, converted to what our
fields mean (losses are means here, tasks are counted and not steps).
"""

import json

import numpy as np
import pytest
from conftest import ROOT
from etils import epath

from mtl_jax import algorithms
from mtl_jax.algorithms import METHODS
from mtl_jax.config import __main__ as config_command
from mtl_jax.config import flags, settings, to_json
from mtl_jax.errors import UserError
from mtl_jax.run import parts, workdir
from mtl_jax.train.step import steps_per_epoch

ADAM = {'optimizer.name': 'adam'}
OWN = {'validation.head': 'own', 'eval.heads': ('own',)}
RAW = {'augment.operations': (), 'data.normalise': False}
LEE = {'augment.operations': ('crop', 'jitter', 'flip'),
       'augment.brightness': 0.4, 'augment.contrast': 0.4,
       'augment.saturation': 0.4, 'data.normalise': True}
R12 = {'model.name': 'resnet12', 'model.widths': (64, 160, 320, 640),
       'model.drop_rate': 0.1}
BIG = LEE | R12 | {'augment.padding': 8, 'model.drop_block': 5}
SMALL = LEE | R12 | {'augment.padding': 4, 'model.drop_block': 2}
CNN32 = {'model.name': 'conv4', 'model.width': 32, 'model.pool': 'flat'}
CNN64 = CNN32 | {'model.width': 64}


def halved(start, stop, every):
  epochs = tuple(range(every, stop, every))
  return {'optimizer.learning_rate': start, 'optimizer.schedule': 'step',
          'optimizer.step_epochs': epochs,
          'optimizer.step_scales': tuple(2. ** -(i + 1)
                                         for i in range(len(epochs)))}


def train(ways, shots, queries, tasks, **more):
  return {'train.ways': ways, 'train.shots': shots, 'train.queries': queries,
          'train.meta_batch': tasks,
          **{f'train.{name}': value for name, value in more.items()}}


def method(**options):
  return {f'method.{name}': value for name, value in options.items()}


def mtl(shots, per_task, tasks, images, normalised=True):
  return images | train(5, *per_task, tasks, epoch_tasks=1600,
                        max_epochs=1000, stop_patience=15) | {
      'optimizer.name': 'radam', 'optimizer.learning_rate': 0.001,
      'optimizer.weight_decay': 0, 'optimizer.schedule': 'plateau',
      'optimizer.plateau_factor': 0.1, 'optimizer.plateau_patience': 4,
      'validation.head': 'logistic', 'eval.heads': ('logistic',),
      'heads.logistic.C': 3, 'validation.tasks': 400,
      'validation.shots': shots, 'validation.queries': 30,
      'eval.tasks': 2000, 'eval.queries': 30, 'model.pool': 'global',
      'model.ramp_tasks': 32_000,  # the end of epoch 20
  } | method(head_init='rows', loss='cross_entropy',
             normalise_train_features=normalised)


def metaoptnet(shots, images, ramp, smoothing=0):
  return images | OWN | train(5, shots, 6, 8, epoch_tasks=8000, max_epochs=60,
                              stop_patience=0) | {
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.1,
      'optimizer.momentum': 0.9, 'optimizer.nesterov': True,
      'optimizer.weight_decay': 0.0005, 'optimizer.schedule': 'step',
      'optimizer.step_epochs': (20, 40, 50),
      'optimizer.step_scales': (0.06, 0.012, 0.0024),
      'validation.tasks': 2000, 'validation.shots': 5,
      'validation.queries': 15, 'eval.tasks': 1000, 'eval.queries': 15,
      'model.pool': 'flat', 'model.ramp_tasks': ramp,
  } | method(head='svm', C=0.1, svm_ridge=1, scale=1,
             label_smoothing=smoothing,
             batch_norm='8 supports, and 8 queries')


def r2d2(shots, ways, images, scale, drop, test):
  return RAW | OWN | ADAM | halved(0.005, 1200, 20) | train(
      ways, 1, images - 1, 1, epoch_tasks=100, max_epochs=1200,
      stop_patience=200) | {
          'optimizer.weight_decay': 0, 'validation.tasks': 200,
          'validation.shots': 'a network each is kept for 1 and for 5',
          'eval.tasks': 10_000, 'eval.queries': test - shots,
          'model.name': 'r2d2_net', 'model.widths': (96, 192, 384, 512),
          'model.drop_rate': drop,
  } | method(regulariser=50, scale=scale, shift=0, max_shots=9)


def maml(shots, clip, eps, queries=15, tasks=4, rate=0.05, steps=5,
         network=CNN32):
  return RAW | OWN | ADAM | network | train(
      5, shots, queries, tasks, max_epochs=120,
      stop_patience=0) | {
          'optimizer.learning_rate': 0.001, 'optimizer.epsilon': eps,
          'optimizer.clip': clip, 'optimizer.schedule': 'constant',
          'eval.tasks': 600, 'eval.queries': shots,
  } | method(adapts='all', inner_rate=rate, inner_steps=steps, test_steps=10,
             first_order=False, batch_norm='transductive')


def imaml(shots):
  return RAW | OWN | ADAM | train(5, shots, shots, 32, max_epochs=20,
                                  stop_patience=0) | {
      'optimizer.learning_rate': 0.001, 'optimizer.epsilon': 0.001,
      'optimizer.schedule': 'constant', 'eval.tasks': 600,
      'eval.queries': shots, 'train.turn_classes': True,
      'model.name': 'four convolutions of stride 2',
      'model.width': 64, 'model.pool': 'no pools, 256 features',
  } | method(l2=2, inner_steps=16, inner_rate=0.1, test_steps=16, test_l2=0,
             cg_steps=5, damping=1, curvature_damping=10, public_code=True,
             batch_norm='transductive')


def prox(test_batch, tasks, l2):
  return RAW | OWN | CNN32 | train(5, 15, 0, tasks, max_epochs=20,
                                   stop_patience=0) | {
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 1,
      'optimizer.momentum': 0, 'optimizer.weight_decay': 0,
      'optimizer.schedule': 'linear', 'optimizer.decay_epochs': 20,
      'eval.tasks': 2000, 'eval.queries': 1, 'model.pool_edges': 'same',
  } | method(l2=l2, inner_steps=8, inner_rate=0.001, inner_batch=10,
             test_steps=50, test_batch=test_batch, public_code=False,
             batch_norm='each_query')


def anil(network, rate, tasks, **more):
  return RAW | OWN | ADAM | network | train(
      5, 5, 5, tasks, stop_patience=0, **more) | {
          'optimizer.learning_rate': 0.001, 'optimizer.weight_decay': 0,
          'optimizer.schedule': 'constant',
  } | method(inner_rate=rate, inner_steps=5, test_steps=5, first_order=False,
             batch_norm='episode')


PROTO = OWN | ADAM | CNN64 | {
    'augment.operations': (), 'optimizer.weight_decay': 0,
} | method(distance='squared', scale=1, learned_scale=False)


def proto_mini(shots, ways):
  return PROTO | halved(0.001, 200, 20) | train(
      ways, shots, 15, 1, epoch_tasks=100, max_epochs=200,
      stop_patience=0) | {
          'data.normalise': 'by the constants of ImageNet',
          'method.batch_norm': 'running_apart', 'validation.tasks': 400,
          'validation.shots': shots, 'validation.queries': 15,
          'eval.tasks': 2000, 'eval.queries': 30}


def proto_omniglot(shots):
  return PROTO | halved(0.001, 1000, 20) | train(
      60, shots, 5, 1, epoch_tasks=100, stop_patience=200) | {
          'data.normalise': False, 'method.batch_norm': 'running',
          'eval.tasks': 1000}


def rfs(images, batches, ramp):
  # The counter of DropBlock rises by every batch, of validation too.
  return images | train(64, 1, 0, 1, epoch_tasks=batches, max_epochs=100,
                        stop_patience=0) | {
      'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.05,
      'optimizer.momentum': 0.9, 'optimizer.nesterov': False,
      'optimizer.weight_decay': 0.0005, 'optimizer.schedule': 'step',
      'optimizer.step_epochs': (60, 80), 'optimizer.step_scales': (0.1, 0.01),
      'validation.head': 'logistic', 'eval.heads': ('logistic',),
      'heads.logistic.C': 1, 'eval.normalise_features': True,
      'eval.support_copies': 5, 'eval.tasks': 600, 'eval.queries': 15,
      'model.pool': 'global', 'model.ramp_tasks': ramp}


STRIDED = {'model.name': 'four convolutions of stride 2, mean over pixels',
           'model.width': 64, 'model.pool': 'no pools'}
# The clip of 10, on a sum over N Q query images divided by K: 10 K / (N Q).
MAML_5 = maml(5, clip=0.6667, eps=6.667e-10)
MAML_1 = maml(1, clip=0.1333, eps=1.333e-10)
NEVER = 'never, by an error under several GPUs'
SOURCES = {
    ('mtl', 'mini_imagenet', 5): mtl(5, (5, 5), 2, BIG),
    ('mtl', 'mini_imagenet', 1): mtl(1, (5, 5), 6, BIG),
    ('mtl', 'tiered_imagenet', 5): mtl(5, (5, 35), 1, BIG),
    ('mtl', 'tiered_imagenet', 1): mtl(1, (5, 35), 2, BIG),
    ('mtl', 'cifar_fs', 5): mtl(5, (5, 5), 6, SMALL),
    ('mtl', 'cifar_fs', 1): mtl(1, (5, 15), 2, SMALL),
    ('mtl', 'fc100', 5): mtl(5, (5, 5), 6, SMALL, normalised=False),
    ('mtl', 'fc100', 1): mtl(1, (1, 4), 1, SMALL, normalised=False),
    ('metaoptnet', 'mini_imagenet', None): metaoptnet(
        15, BIG, NEVER, smoothing=0.1),
    ('metaoptnet', 'tiered_imagenet', None): metaoptnet(10, BIG, NEVER),
    # 40,000 forward passes, 6000 an epoch of 8000 tasks.
    ('metaoptnet', 'cifar_fs', None): metaoptnet(5, SMALL, 53_333),
    ('metaoptnet', 'fc100', None): metaoptnet(15, SMALL, 53_333),
    ('r2d2', 'mini_imagenet', 5): r2d2(5, 16, 15, 0.0001, 0.1, 48),
    ('r2d2', 'mini_imagenet', 1): r2d2(1, 16, 15, 0.0001, 0.1, 48),
    ('r2d2', 'cifar_fs', 5): r2d2(5, 20, 12, 10, 0.4, 48),
    ('r2d2', 'cifar_fs', 1): r2d2(1, 20, 12, 10, 0.4, 48),
    ('r2d2', 'omniglot', 5): r2d2(5, 60, 10, 10, 0, 20),
    ('r2d2', 'omniglot', 1): r2d2(1, 60, 10, 10, 0, 20),
    ('maml', 'mini_imagenet', 5): MAML_5,
    ('maml', 'mini_imagenet', 1): MAML_1,
    ('maml', 'cifar_fs', 5): MAML_5,
    ('maml', 'cifar_fs', 1): MAML_1,
    ('maml', 'omniglot', 1): maml(
        1, clip=0, eps=2e-9, queries=1, tasks=32, rate=2, steps=1,
        network=STRIDED) | {'train.turn_classes': True},
    ('imaml', 'omniglot', 5): imaml(5),
    ('imaml', 'omniglot', 1): imaml(1),
    ('minibatch_prox', 'mini_imagenet', 5): prox(15, 5, 0.1),
    ('minibatch_prox', 'mini_imagenet', 1): prox(5, 5, 0.1),
    ('minibatch_prox', 'tiered_imagenet', 5): prox(20, 20, 10),
    ('minibatch_prox', 'tiered_imagenet', 1): prox(15, 20, 10),
    ('anil', 'mini_imagenet', 5): anil(
        {'model.name': 'resnet12'}, 0.1, 16, epoch_tasks=160,
        max_epochs=25_000),
    ('anil', 'cifar_fs', 5): anil(CNN64, 0.05, 16, epoch_tasks=160,
                                  max_epochs=2000),
    ('anil', 'fc100', 5): anil(CNN64, 0.1, 32) | {
        'eval.tasks': 600, 'eval.queries': 5},
    ('protonet', 'mini_imagenet', 5): proto_mini(5, 20),
    ('protonet', 'mini_imagenet', 1): proto_mini(1, 30),
    ('protonet', 'omniglot', 5): proto_omniglot(5),
    ('protonet', 'omniglot', 1): proto_omniglot(1),
    # 38,400, 448,695 and 36,000 images in batches.
    ('whole_class', 'mini_imagenet', None): rfs(BIG, 600, 20_000),
    ('whole_class', 'tiered_imagenet', None): rfs(BIG, 7010, 40_000),
    ('whole_class', 'cifar_fs', None): rfs(SMALL, 600, 13_333),
    ('whole_class', 'fc100', None): rfs(SMALL, 562, 14_226),
}
PUBLISHED = {
    (name, benchmark, shots): recipe
    for name, module in METHODS.items()
    for (benchmark, shots, scale), recipe in module.RECIPES.items()
    if scale == 'published' and not recipe.ours}


def test_every_published_recipe_has_its_source_here():
  assert set(PUBLISHED) == set(SOURCES)


@pytest.mark.parametrize('key', SOURCES,
                         ids=lambda key: '-'.join(map(str, key)))
def test_a_recipe_is_its_source_or_says_why_not(key):
  recipe, source = PUBLISHED[key], SOURCES[key]
  stated = recipe.stated()
  assert set(stated) == set(source)
  for field, value in source.items():
    assert same(stated[field], value), field
  for field, value in recipe.overrides.items():
    if field in source and same(value, source[field]):
      assert field not in recipe.reasons, f'{field} does not differ'
    else:
      assert recipe.reasons.get(field), f'{field} differs without a reason'
  assert set(source) <= set(recipe.overrides)


def same(a, b):
  if isinstance(a, tuple) or isinstance(b, tuple):
    return isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(
        b) and all(map(same, a, b))
  if isinstance(a, str | bool) or isinstance(b, str | bool):
    return type(a) is type(b) and a == b
  return a == pytest.approx(b, rel=1e-3, abs=0)


@pytest.mark.parametrize('name, benchmark, steps', [
    ('maml', 'mini_imagenet', 60_000), ('maml', 'omniglot', 60_000),
    ('imaml', 'omniglot', 20_000), ('minibatch_prox', 'mini_imagenet', 100_000),
    ('minibatch_prox', 'tiered_imagenet', 100_000), ('anil', 'fc100', 1000),
    ('anil', 'cifar_fs', 20_000), ('anil', 'mini_imagenet', 250_000),
    ('metaoptnet', 'mini_imagenet', 60_000),
    ('whole_class', 'mini_imagenet', 60_000)])
def test_a_recipe_takes_the_published_number_of_steps(name, benchmark, steps):
  for (other, of, _), recipe in PUBLISHED.items():
    if (other, of) == (name, benchmark):
      c = recipe.overrides
      assert steps_per_epoch(c['train.epoch_tasks'], c['train.meta_batch']
                             ) * c['train.max_epochs'] == steps


def config_of(text, *changes):
  return flags.parse([f'--config={ROOT}/configs/{text}', *changes],
                     None).config


def origins(config):
  return {s.field: s.origin for s in settings.settings(config)}


@pytest.mark.parametrize('name', sorted(METHODS))
def test_no_field_of_a_published_run_claims_a_source_it_does_not_have(name):
  """Fails if the config file changes a published value without a word."""
  for shots in (1, 5):
    config = config_of(f'mini_{shots}shot.py:{name}')
    source = SOURCES.get((name, 'mini_imagenet', shots),
                         SOURCES.get((name, 'mini_imagenet', None)))
    if source is None:
      assert config.source.startswith('ours')
      continue
    for field, value, origin, *_ in settings.settings(config):
      assert (origin == 'published') == (
          field in source and same(_plain(value), source[field])), field
    assert {field for field, origin in origins(config).items()
            if origin == 'config file'} <= {
                'data.name', 'eval.shots', 'validation.shots'}


def _plain(value):
  return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize('change, field, origin', [
    ('--config.train.max_epochs=3', 'train.max_epochs', 'command line'),
    ('--config.model.width=8', 'model.width', 'command line'),
    ('--config.optimizer.beta1=0.5', 'optimizer.beta1', 'command line'),
    # Named on the command line and still that of the source.
    ('--config.eval.tasks=600', 'eval.tasks', 'published'),
    ('--config.seed=0', 'optimizer.beta1', 'default'),
    ('--config.seed=0', 'validation.tasks', 'ours')])
def test_what_the_command_line_changes_is_said(change, field, origin):
  config = config_of('mini_5shot.py:maml', change)
  assert origins(config)[field] == origin
  if origin == 'command line':
    assert f'command line: {field}' in settings.summary(config)
    assert f'| {field} |' in settings.page(config)


def test_what_a_config_file_changes_is_said(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('''
from mtl_jax.config import base_config, set_method
def get_config(method='maml'):
  c = base_config()
  c.data.name = 'mini_imagenet'
  set_method(c, method, benchmark='mini_imagenet', shots=5)
  c.augment.operations = ('crop', 'flip')
  c.optimizer.beta1 = 0.8
  return c
''')
  config = flags.parse([f'--config={path}'], None).config
  assert ('  config file: augment.operations, data.name, optimizer.beta1'
          in settings.summary(config))


def test_the_first_line_names_the_source_and_what_is_ours():
  assert settings.summary(config_of('mini_5shot.py:maml')).splitlines() == [
      'settings: cbfinn/maml main.py, mini_imagenet, K = 5; 26 fields as '
      'published, the rest and why: settings.md',
      '  ours: train.epoch_tasks, validation.queries, validation.shots, '
      'validation.tasks',
      '  config file: data.name']


def test_a_recipe_of_ours_claims_nothing():
  lines = settings.summary(config_of('quickstart.py')).splitlines()
  assert lines[0].startswith('settings: ours; nearest: ')
  assert 'as published' not in lines[0]


def test_a_run_of_an_older_version_prints_what_it_kept():
  config = config_of('quickstart.py')
  del config['recipe']
  config.source = 'an old line'
  assert settings.summary(config).splitlines()[0] == 'settings: an old line'
  assert 'an old line' in settings.page(config)


@pytest.mark.parametrize('change', ['source=me', 'recipe.scale=published'])
def test_the_source_cannot_be_claimed_on_the_command_line(change):
  with pytest.raises(UserError, match='says where the settings come from'):
    config_of('quickstart.py', f'--config.{change}')


@pytest.mark.parametrize('name', ['maml', 'imaml', 'r2d2', 'protonet'])
def test_published_recipes_of_omniglot_are_reached(name):
  config = config_of(f'omniglot_1shot_published.py:{name}')
  recipe = PUBLISHED[name, 'omniglot', 1]
  for field, value in recipe.overrides.items():
    section, _, last = field.rpartition('.')
    found = config
    for part in section.split('.'):
      found = found[part]
    assert same(_plain(found[last]), value), field


def test_small_recipes_take_neither_network_nor_protocol():
  """Fails if a published network or test slips into a recipe of ours."""
  for module in METHODS.values():
    for (_, _, scale), recipe in module.RECIPES.items():
      if scale != 'published':
        assert recipe.ours
        assert not any(field.startswith(('model.', 'data.', 'augment.'))
                       for field in recipe.overrides)


TRIALS = sorted(ROOT.glob('results/search/*/*.json'))


@pytest.mark.parametrize('path', TRIALS, ids=lambda p: f'{p.parent.name}-'
                         f'{p.stem}')
def test_a_recipe_has_what_the_search_chose(path):
  """Fails if a recipe was changed by hand, or one method had more trials."""
  trials = json.loads(path.read_text())
  assert len(trials) == 4
  best = max(trials, key=lambda trial: trial['validation_accuracy'])
  recipe = algorithms.recipe(path.stem, path.parent.name, 5, 'cpu').overrides
  assert {field: recipe[field] for field in best['changes']} == best['changes']


def test_the_table_is_printed_and_kept(tmp_path, capsys):
  words = [f'--config={ROOT}/configs/mini_5shot.py:maml',
           '--config.train.max_epochs=3']
  assert config_command.main(words) == 0
  page = capsys.readouterr().out
  assert '| train.max_epochs | 3 | command line | 120 |  |' in page
  assert '- BatchNorm has a scale' in page
  path = epath.Path(tmp_path / 'run')
  workdir.claim(path, config_of('mini_5shot.py:maml', words[1]), {})
  assert (path / 'settings.md').read_text() == page


def test_a_wrong_config_is_one_line(capsys):
  assert config_command.main(['--config=nowhere.py']) == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_an_option_of_a_method_that_was_added_later_has_its_default(tmp_path):
  """Fails if a run of an older version cannot be loaded or resumed."""
  path = epath.Path(tmp_path)
  config = config_of('quickstart.py:minibatch_prox')
  old = json.loads(to_json(config))
  del old['method']['test_batch'], old['recipe'], old['data']['normalise']
  (path / 'config.json').write_text(json.dumps(old))
  assert workdir.saved_config(path).method.test_batch == 0
  workdir.check(path, config)


@pytest.mark.parametrize('normalise', [True, False])
def test_all_splits_are_normalised_or_none(normalise):
  config = config_of('quickstart.py', '--config.data.name=glyphs/tiny',
                     '--config.train.ways=5',
                     f'--config.data.normalise={normalise}')
  for store in parts.make_run(config).splits.values():
    plain = np.all(store.mean == 0) and np.all(store.std == 1)
    assert plain != normalise
