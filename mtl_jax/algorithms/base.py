"""What a method is made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mtl_jax.errors import UserError


class Aux(NamedTuple):
  """What a task's loss returns beside the loss."""

  batch_stats: Any  # this task's own BatchNorm statistics, not running ones
  # name -> (sum, count). 'loss' must be among them; 'accuracy' is shown.
  metrics: dict[str, tuple]


class Algorithm(NamedTuple):
  """Pure functions over one task; shapes as in data/episodes.py.

  init(key, images [B, h, w, c]) -> variables, a dict with 'params',
    'batch_stats' and what else the method keeps.
  loss(variables, key, episode, tasks_seen) -> (loss [], Aux). `tasks_seen`
    [] int32, the training tasks before this step, drives schedules within a
    network. Differentiated with respect to 'params'.
  features(variables, images [B, h, w, c]) -> [B, D], float32; frozen, with
    running statistics: what heads are fitted on.
  adapt(variables, key, support_x, support_y, num_ways) -> adapted, the
    method's own way to learn an unseen task; a tree of arrays. It may take a
    keyword example_weights [S] too, as a head's `fit` does (heads/__init__.py).
  predict(adapted, query_x) -> logits [.., N].
  convergence(adapted, query_x) -> of heads.convergence: how well `adapt` (or
    `predict`) solved what it solves. None where nothing is solved, such as
    where a number of steps is fixed by design.
  remedy: which fields to change where training or `adapt` has not converged;
    the second half of a sentence. The metrics of `loss` say that by
    `not_converged`, beside `residual` or `stationarity`.
  from_features(variables, support [S, D], support_y, num_ways, query [Q, D])
    -> (logits [Q, N], of heads.convergence or {}): what `adapt`, `predict` and
    `convergence` do, from `features` of the images. A test then passes each
    image through the network once, and not once for each of its tasks. None
    where the network adapts, or where an image's features depend on the task.
    Who replaces `features`, `adapt` or `predict` replaces it, too.
  """

  init: Callable
  loss: Callable
  features: Callable
  adapt: Callable
  predict: Callable
  convergence: Callable | None = None
  remedy: str = ''
  from_features: Callable | None = None


def need_queries(options, train):
  """Raises UserError where a task has no query images.

  It is the `check` of methods whose loss is that of the query.
  """
  del options
  if not train.queries:
    raise UserError('config.train.queries is 0: the loss of this method is '
                    'that of the query images, so at least 1 is needed')


SCALES = ('published', 'cpu', 'fast')


class Recipe(NamedTuple):
  """The settings of a method for a benchmark, a number of shots and a scale.

  A recipe's key in RECIPES is (benchmark, shots, scale). The benchmark or the
  shots may be None, which means any. The scale is one of SCALES: the
  size of the publication, a run for two CPU cores, or one of a few minutes.

  overrides: config field ('train.meta_batch') -> value. With 'model.name' the
    recipe chooses the whole network.
  source: where the settings were published. If nobody published them: where the
    nearest settings were, or '' if the config file gives the reasons.
  ours: whether the settings as a whole are ours, which nobody published.
  published: field -> value in `source`, converted to what the field means
    here; a text where no value of the field says it. None: the overrides are
    the published values, if they are not ours.
  reasons: field -> why it differs from `source`.
  notes: differences that no field can mend.
  """

  overrides: dict[str, Any]
  source: str
  ours: bool
  published: Mapping[str, Any] | None = None
  reasons: Mapping[str, str] = {}
  notes: tuple[str, ...] = ()

  def stated(self):
    """Returns field -> value in the source, of all fields it has."""
    if self.published is not None:
      return self.published
    return {} if self.ours else self.overrides

  def __str__(self):
    """Returns config.source, which a run prints at its start."""
    if not self.ours:
      return self.source
    return (f'ours; nearest: {self.source}' if self.source
            else 'ours, see the head of the config file')


def published(values, source, changes=None, notes=()):
  """Returns the Recipe of a publication.

  Args:
    values: field -> value in the source, converted; a text where no value of
      the field says it, and then `changes` has the field.
    source: where they were published.
    changes: field -> (value, reason), where the recipe differs or the source
      has nothing.
    notes: as in Recipe.
  """
  changes = changes or {}
  return Recipe(
      values | {field: value for field, (value, _) in changes.items()}, source,
      ours=False, published=values,
      reasons={field: reason for field, (_, reason) in changes.items()},
      notes=tuple(notes))


def network(name, **options):
  """Returns the fields of a network for a recipe."""
  return {'model.name': name,
          **{f'model.{option}': value for option, value in options.items()}}


def protocol(validation=None, test=None):
  """Returns fields of validation and test: (tasks, shots, queries) of each.

  The shots of the test are those of the benchmark, which the config file sets.
  """
  fields = {}
  if validation:
    fields = {f'validation.{name}': value for name, value in zip(
        ('tasks', 'shots', 'queries'), validation, strict=True)}
  if test:
    fields |= {'eval.tasks': test[0], 'eval.queries': test[1]}
  return fields


def selection(queries, shots=None):
  """Returns the changes of a source that tests its last epoch.

  Args:
    queries: Q of validation.
    shots: K of validation; None: the config file sets it.
  """
  reason = ('the source tests its last step; here validation chooses the '
            'epoch, for all methods alike')
  return {field: (value, reason) for field, value in protocol(
      validation=(400, shots, queries)).items() if value is not None}


def pooled(reason):
  """Returns the changes of a source whose CNN-4 has strides and no pools."""
  return {field: (value, reason) for field, value in network(
      'conv4', width=64, pool='flat').items() if field != 'model.width'}


# Changes and a note for sources that turn the classes of each task.
TURNS_ARE_CLASSES = {'train.turn_classes': (
    False, 'a quarter turn of a character is a class of its own in '
    'omniglot/vinyals; True needs --config.data.name=omniglot/vinyals_upright')}
UPRIGHT_TEST = 'The test turns no class; the source turns them there, too.'
# Benchmarks that settings are taken from where a method has none of its own.
NEIGHBOURS = {'tiered_imagenet': ('mini_imagenet',),
              'cifar_fs': ('fc100', 'mini_imagenet'),
              'fc100': ('cifar_fs', 'mini_imagenet')}


def with_neighbours(recipes):
  """Returns RECIPES with those of NEIGHBOURS for data sets that have none.

  Nobody published them there, so they are ours.
  """
  taken = {}
  for benchmark, others in NEIGHBOURS.items():
    for shots in (5, 1):
      keys = [(name, shots, 'published') for name in (benchmark, *others)]
      nearest = next(key for key in keys if key in recipes)
      if nearest != keys[0]:
        taken[keys[0]] = recipes[nearest]._replace(ours=True)
  return recipes | taken


# A method that is tested by its own adaptation.
OWN_TEST = {'validation.head': 'own', 'eval.heads': ('own',)}
# Pixels / 255, neither augmented nor normalised.
PLAIN = {'data.normalise': False, 'augment.operations': ()}
BIASES = ('Convolutions have no biases in front of BatchNorm; the source has '
          'them, but BatchNorm removes what they add.')
START = ('Weights start as in models/layers.py; the source takes Glorot '
         'uniform ones.')
EPSILON = "BatchNorm adds 1e-5 to a variance, not the source's 1e-3."
NORM_SCALE = "BatchNorm's scale starts at 1; the source draws it from U(0, 1)."


def resnet12(small_images=False, **options):
  """Returns ResNet-12 of Lee et al. (2019) and its chain of augmentations.

  Args:
    small_images: whether images have 32 pixels and not 84.
    **options: further fields of the network, such as `pool`.
  """
  return network(
      'resnet12', widths=(64, 160, 320, 640), drop_rate=0.1,
      drop_block=2 if small_images else 5, **options) | {
          'data.normalise': True,
          'augment.operations': ('crop', 'jitter', 'flip'),
          'augment.padding': 4 if small_images else 8,
          'augment.brightness': 0.4, 'augment.contrast': 0.4,
          'augment.saturation': 0.4}


# Benchmarks that two CPU cores are enough for: (name, scale, share of steps).
_SMALL = (('glyphs', 'cpu', 1.), ('glyphs', 'fast', 0.25),
          ('omniglot', 'cpu', 1.))
_MINI = (('mini_imagenet', 'cpu', 1.),)
# The settings that methods share there, unless they say otherwise: tasks of 5
# ways with K + 5 images per class.
SMALL_TRAINING = {
    'train.ways': 5, 'train.shots': 5, 'train.queries': 5,
    'train.meta_batch': 4, 'train.epoch_tasks': 800, 'train.max_epochs': 3,
    'train.stop_patience': 0,
    'optimizer.name': 'adam', 'optimizer.learning_rate': 3e-3,
    'optimizer.weight_decay': 0.,
    'optimizer.schedule': 'cosine', 'optimizer.decay_epochs': 3,
    'optimizer.step_epochs': (), 'optimizer.step_scales': (),
    'parallel.cpu_devices': 2,
}
_MINI_TRAINING = SMALL_TRAINING | {
    'train.meta_batch': 2, 'train.max_epochs': 5, 'optimizer.decay_epochs': 5,
}
# Where all layers adapt, each task has kernels of its own. A CPU is then
# fastest with one task at a time, and outside of a loop.
ALL_LAYERS = {'parallel.tasks_at_once': 1, 'parallel.unroll_passes': True}
# What a small recipe takes from the nearest published one: how it trains and
# which head is tested, but neither network, data nor protocol.
_TAKEN = ('train', 'optimizer', 'method', 'heads', 'validation.head',
          'eval.heads')


def cpu_recipes(nearest, changes, steps, chosen):
  """Returns RECIPES of ours for two CPU cores.

  A training takes about a minute on a small benchmark and 23 minutes on
  mini-ImageNet, by every method.

  Args:
    nearest: the nearest published Recipe.
    changes: overrides on top of it, everywhere.
    steps: 'small' and 'mini' -> {K: steps of an epoch}. Training and test tasks
      have K shots; None: one training for all shots.
    chosen: benchmark -> overrides of this benchmark alone: those that
      benchmarks/search.py chose, where it has been run.
  """
  recipes = {}
  for size, benchmarks, training in (
      ('small', _SMALL, SMALL_TRAINING), ('mini', _MINI, _MINI_TRAINING)):
    for benchmark, scale, share in benchmarks:
      for shots, count in steps[size].items():
        values = (training | ({'train.shots': shots} if shots else {})
                  | changes | chosen.get(benchmark, {}))
        recipes[benchmark, shots, scale] = small_recipe(nearest, values | {
            'train.epoch_tasks':
                int(share * count) * values['train.meta_batch']})
  return recipes


def small_recipe(nearest, changes):
  """Returns a Recipe of ours for a small machine or benchmark.

  Args:
    nearest: the nearest published Recipe.
    changes: overrides on top of it.
  """
  taken = {field: value for field, value in nearest.overrides.items()
           if field in _TAKEN or field.partition('.')[0] in _TAKEN}
  return Recipe(taken | changes, nearest.source, ours=True,
                published=nearest.stated())
