"""The config: validated as a whole, and what makes two runs the same."""

import copy
import importlib.util
import itertools

import pytest
from conftest import ROOT
from etils import epath

from mtl_jax.algorithms import METHODS, base
from mtl_jax.config import base_config, set_method, to_json
from mtl_jax.config.check import validate
from mtl_jax.data import sources
from mtl_jax.errors import UserError
from mtl_jax.run import workdir

CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def load(path, method):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(method)


# Files whose promise few methods keep: a short run on one accelerator, and what
# was published for Omniglot.
FEW = {'mini_5shot_fast': ('mtl',),
       'omniglot_1shot_published': ('imaml', 'maml', 'meta_sgd', 'protonet',
                                    'r2d2'),
       'omniglot_5shot_published': ('imaml', 'protonet', 'r2d2')}


def test_every_data_set_has_configs_of_1_and_5_shots_with_all_methods():
  """Fails if a method cannot be tried on a data set by one word."""
  whole = {(load(path, 'mtl').data.name.partition('/')[0], load(
      path, 'mtl').eval.shots) for path in CONFIGS if path.stem not in FEW}
  assert whole >= set(itertools.product(sources.SOURCES, (1, 5)))


@pytest.mark.parametrize('method', sorted(METHODS))
@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_config_is_valid_with_every_method(path, method):
  if method not in FEW.get(path.stem, METHODS):
    with pytest.raises(UserError, match=f'{method} has no recipe'):
      load(path, method)
    return
  config = load(path, method)
  config.data.name = config.data.name or 'glyphs/tiny'  # folder: to be given
  validate(config)
  assert config.method.name == method and config.source


def test_a_refused_method_is_told_which_recipes_it_has():
  with pytest.raises(UserError) as refused:
    load(ROOT / 'configs/mini_5shot_fast.py', 'anil')
  assert str(refused.value) == (
      'anil has no recipe (fast, 5 shots) for mini_imagenet: it has '
      '(published, 5 shots), (published, 1 shot), (cpu, 5 shots), '
      '(cpu, 1 shot)')


def test_a_benchmark_without_recipes_is_told_those_that_have_some():
  with pytest.raises(UserError, match='for svhn: it has recipes for cifar'):
    set_method(base_config(), 'anil', benchmark='svhn', shots=5)


@pytest.mark.parametrize('method', sorted(METHODS))
def test_every_recipe_is_valid(method):
  for (benchmark, shots, scale), recipe in METHODS[method].RECIPES.items():
    assert scale in base.SCALES and shots in (None, 1, 5) and str(recipe)
    config = config_with()
    set_method(config, method, benchmark=benchmark, shots=shots or 5,
               scale=scale)
    validate(config)


@pytest.mark.parametrize('benchmark, shots, source', [
    ('here', 1, 'exact'), ('here', 5, 'any shots'),
    ('there', 1, 'any benchmark'), ('there', 5, 'anything')])
def test_the_most_specific_recipe_is_taken(benchmark, shots, source, tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(OWN_METHOD)
  config = base_config()
  set_method(config, str(path), benchmark=benchmark, shots=shots, scale='fast')
  assert config.source == source


OWN_METHOD = """
from mtl_jax.algorithms import base, mtl
from mtl_jax.fields import Field
OPTIONS = mtl.OPTIONS | {'extra': Field(1, 'a field of its own')}
RECIPES = {key: base.Recipe({'train.shots': 3}, source, ours=False)
           for key, source in {
               (None, None, 'fast'): 'anything',
               (None, 1, 'fast'): 'any benchmark',
               ('here', None, 'fast'): 'any shots',
               ('here', 1, 'fast'): 'exact'}.items()}
ANY_WAYS = True
def build(backbone, num_classes, ways, *, extra, **options):
  return mtl.build(backbone, num_classes, ways, **options)
"""


def test_a_method_of_the_users_own_is_configured_by_its_path(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(OWN_METHOD)
  config = config_with()
  set_method(config, str(path), benchmark='glyphs', shots=5, scale='fast')
  validate(config)
  assert (config.method.name, config.method.extra) == (str(path), 1)


def config_with(**changes):
  c = base_config()
  c.data.name = 'glyphs'
  set_method(c, 'mtl', benchmark='glyphs', shots=5, scale='cpu')
  c.update_from_flattened_dict(changes)
  return c


@pytest.mark.parametrize('change, line', [
    ({'eval.ways': 1}, 'config.eval.ways is 1: must be at least 2'),
    ({'optimizer.beta2': 1.}, 'optimizer.beta2 is 1.0: must be at least 0, '),
    ({'optimizer.warmup_epochs': 100}, 'warmup_epochs is 100: must be below'),
    ({'heads.svm.C': 0.}, 'config.heads.svm.C is 0.0: must be above 0'),
    ({'eval.heads': ()}, 'config.eval.heads is empty'),
    ({'optimizer.step_epochs': (5, 2), 'optimizer.step_scales': (1., 2.)},
     'rising epochs'),
    ({'parallel.tasks_per_device': 0}, 'tasks_per_device is 0'),
    ({'train.max_epochs': 7, 'optimizer.schedule': 'cosine',
      'optimizer.decay_epochs': 6}, 'of the cosine schedule is zero after'),
    ({'train.max_epochs': 7, 'optimizer.schedule': 'linear',
      'optimizer.decay_epochs': 6}, 'of the linear schedule is zero after'),
    ({'eval.choose_C': (1., 1e300)}, 'choose_C has 1e.300: must be finite'),
    ({'heads.logistic.C': 1e-300}, 'C has 1e-300: must be finite'),
    ({'heads.ridge.target': float('inf')}, 'target has inf: must be finite'),
    ({'train.epoch_tasks': 2**31}, 'has 2147483648: must be at most'),
    ({'eval.tasks': 2**31}, 'eval.tasks is 2147483648: must be at least 1, '),
    ({'train.epoch_tasks': 2**31 - 1}, 'max_epochs has .* must be at most'),
    ({'train.meta_batch': 2**31 - 1}, 'max_epochs has .* must be at most'),
    ({'optimizer.schedule': 'cosine', 'optimizer.decay_epochs': 2**31 - 1},
     'decay_epochs has 2147483647 epochs of .* must be at most 2147483647'),
    ({'optimizer.schedule': 'step', 'optimizer.step_epochs': (2**31 - 1,),
      'optimizer.step_scales': (2.,)}, 'step_epochs has .* must be at most'),
    ({'validation.tasks': 10**6}, 'tasks is 1000000: .* below 1000000'),
    ({'eval.support_copies': 1000}, 'copies is 1000: .* below 1000'),
    ({'parallel.cpu_devices': 257}, 'cpu_devices is 257: .* below 257'),
    ({'method.test_C': 5.}, "5.0, but only the head 'own' reads it"),
    ({'optimizer.step_epochs': (1, 2), 'optimizer.step_scales': (0., .1)},
     'step_scales has 0.0: must be above 0'),
    ({'optimizer.step_epochs': (1, 'a'), 'optimizer.step_scales': (1., .1)},
     "step_epochs has 'a': must be at least 0"),
])
def test_an_invalid_value_is_named(change, line):
  with pytest.raises(UserError, match=line):
    validate(config_with(**change))


def test_a_C_is_taken_where_a_head_reads_it():
  validate(config_with(**{'method.test_C': 5., 'eval.heads': ('own',)}))


def test_a_finished_run_is_tested_whatever_its_schedule():
  """Fails if the runs of earlier versions cannot be tested any more."""
  validate(config_with(**{
      'train.max_epochs': 7, 'optimizer.schedule': 'cosine',
      'optimizer.decay_epochs': 6, 'method.test_C': 5.}), trains=False)


@pytest.mark.parametrize('method', sorted(METHODS))
def test_a_method_whose_loss_is_that_of_the_query_needs_one(method):
  config = load(ROOT / 'configs/glyphs_5shot.py', method)
  config.train.queries = 0
  if method in ('mtl', 'whole_class', 'minibatch_prox'):
    validate(config)
  else:
    with pytest.raises(UserError, match='train.queries is 0|max_shots'):
      validate(config)


def test_an_implicit_gradient_needs_a_step():
  """Fails if iMAML trains on a meta-gradient of zero."""
  config = load(ROOT / 'configs/glyphs_5shot.py', 'imaml')
  config.method.cg_steps = 0
  with pytest.raises(UserError, match='cg_steps is 0: must be at least 1'):
    validate(config)


@pytest.mark.parametrize('field, value, line', [
    ('train', 3, 'config.train is 3'), ('seed', True, 'config.seed is True'),
    ('seed', 'x', "config.seed is 'x': must be of type int"),
    ('extra', 1, 'config.extra is unknown')])
def test_an_unlocked_config_file_cannot_change_the_structure(
    field, value, line):
  c = config_with()
  with c.unlocked(), c.ignore_type():
    c[field] = value
  with pytest.raises(UserError, match=line):
    validate(c)


@pytest.mark.parametrize('change, same', [
    ({'train.max_epochs': 7}, True), ({'log.every_steps': 9}, True),
    ({'eval.tasks': 9}, True), ({'parallel.devices': 1}, True),
    ({'data.dir': '/x'}, True), ({'seed': 1}, False),
    ({'train.shots': 3}, False), ({'optimizer.step_epochs': (3,)}, False),
    ({'heads.svm.C': 5.}, True), ({'heads.logistic.C': 5.}, False),
    ({'method.loss': 'squared'}, False), ({'validation.tasks': 9}, False),
    ({'validation.normalise_features': False}, False),
    ({'eval.normalise_features': False}, True),
    ({'parallel.tasks_per_device': 2}, True)])
def test_a_run_resumes_only_with_what_trains_the_same(change, same, tmp_path):
  path = epath.Path(tmp_path)
  (path / 'config.json').write_text(to_json(config_with()))
  (path / 'checkpoints/4').mkdir(parents=True)
  other = copy.deepcopy(config_with())
  other.update_from_flattened_dict(change)
  if same:
    workdir.check(path, other)
  else:
    with pytest.raises(UserError, match='holds a run with config'):
      workdir.check(path, other)


@pytest.mark.parametrize('saved, free', [
    ('', True), ('checkpoints/4.orbax-checkpoint-tmp', True),
    ('checkpoints/4', False), ('best/4', False)])
def test_a_folder_is_taken_where_no_state_was_saved(saved, free, tmp_path):
  """Fails if a first step without memory forbids the corrected command."""
  path = epath.Path(tmp_path)
  (path / 'config.json').write_text(to_json(config_with()))
  (path / 'data.json').write_text('{"mean": [0.5]}')
  (path / saved).mkdir(parents=True, exist_ok=True)
  data = {name: None for name in ('name', 'classes', 'image_shape', 'mean',
                                  'std')}
  for check in (
      lambda: workdir.check(path, config_with(**{'train.meta_batch': 3})),
      lambda: workdir.check_data(path, data)):
    if free:
      check()
    else:
      with pytest.raises(UserError, match='holds a run'):
        check()
