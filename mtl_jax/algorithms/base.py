"""What a method is made of."""

from collections.abc import Callable
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
    method's own way to learn an unseen task; a tree of arrays.
  predict(adapted, query_x) -> logits [.., N].
  """

  init: Callable
  loss: Callable
  features: Callable
  adapt: Callable
  predict: Callable


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

  overrides: config field ('train.meta_batch') -> value.
  source: where the settings were published. If nobody published them: where the
    nearest settings were, or '' if the config file gives the reasons.
  ours: whether the settings are ours, which nobody published.
  """

  overrides: dict[str, Any]
  source: str
  ours: bool

  def __str__(self):
    """Returns config.source, which a run prints at its start."""
    if not self.ours:
      return self.source
    return (f'ours; nearest: {self.source}' if self.source
            else 'ours, see the head of the config file')


# Benchmarks of ours that are small enough for a CPU, with their scales.
SMALL = (('glyphs', 'cpu'), ('glyphs', 'fast'), ('omniglot', 'cpu'))
# The settings that all methods but MTL and whole-class training share there:
# tasks of 5 ways with 5 + 5 images per class.
SMALL_TRAINING = {
    'train.ways': 5, 'train.shots': 5, 'train.queries': 5,
    'train.meta_batch': 4, 'train.epoch_tasks': 800, 'train.max_epochs': 3,
    'train.stop_patience': 0,
    'optimizer.name': 'adam', 'optimizer.learning_rate': 3e-3,
    'optimizer.weight_decay': 0., 'optimizer.schedule': 'cosine',
    'optimizer.decay_epochs': 3, 'optimizer.step_epochs': (),
    'optimizer.step_scales': (), 'parallel.cpu_devices': 2,
}
# Where all layers adapt, each task has kernels of its own. A CPU is then
# fastest with one task at a time, and outside of a loop.
SMALL_ALL_LAYERS = SMALL_TRAINING | {
    'parallel.tasks_at_once': 1, 'parallel.unroll_passes': True,
    'train.epoch_tasks': 480,
}
# A method that is tested by its own adaptation.
OWN_TEST = {'validation.head': 'own', 'eval.heads': ('own',)}


def small_recipes(nearest, changes, benchmarks=SMALL):
  """Returns RECIPES of ours for small benchmarks, for any number of shots.

  Args:
    nearest: the nearest published Recipe.
    changes: overrides on top of it.
    benchmarks: pairs (benchmark, scale).
  """
  recipe = Recipe(nearest.overrides | changes, nearest.source, ours=True)
  return {(benchmark, None, scale): recipe for benchmark, scale in benchmarks}
