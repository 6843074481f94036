"""What a method is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Aux(NamedTuple):
  """What a task's loss returns beside the loss."""

  batch_stats: Any  # this task's own BatchNorm statistics, not running ones
  metrics: dict[str, tuple]  # name -> (sum, count)


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
    method's own way to learn an unseen task.
  predict(adapted, query_x) -> logits [.., N].
  """

  init: Callable
  loss: Callable
  features: Callable
  adapt: Callable
  predict: Callable


class Published(NamedTuple):
  """A method's settings for one benchmark.

  `overrides` maps config fields ('train.meta_batch') to values; `source`
  says where they stand; `ours` marks settings that nobody published, of which
  `source` is the nearest.
  """

  overrides: dict[str, Any]
  source: str
  ours: bool


# Benchmarks of ours, small enough for a CPU, and what all methods but MTL and
# whole-class training share on them: tasks of 5 ways, 5 + 5 images a class.
SMALL = ('glyphs', 'omniglot')
SMALL_TRAINING = {
    'train.ways': 5, 'train.shots': 5, 'train.queries': 5,
    'train.meta_batch': 4, 'train.epoch_tasks': 800, 'train.max_epochs': 3,
    'train.stop_patience': 0,
    'optimizer.name': 'adam', 'optimizer.learning_rate': 3e-3,
    'optimizer.weight_decay': 0., 'optimizer.schedule': 'cosine',
    'optimizer.decay_epochs': 3, 'optimizer.step_epochs': (),
    'optimizer.step_scales': (), 'parallel.cpu_devices': 2,
}
# Where all layers adapt, each task has kernels of its own: on a CPU one task
# at a time is fastest, and not in a loop.
SMALL_ALL_LAYERS = SMALL_TRAINING | {
    'parallel.tasks_at_once': 1, 'parallel.unroll_passes': True,
    'train.epoch_tasks': 480,
}
# A method that is tested by its own adaptation.
OWN_TEST = {'validation.head': 'own', 'eval.heads': ('own',)}


def settings(benchmark, overrides, small, source, ours):
  """Returns Published; on a benchmark of SMALL with `small` on top, as ours."""
  if benchmark in SMALL:
    overrides, ours = {**overrides, **small}, True
  return Published(overrides, source, ours)


class Method(NamedTuple):
  """An entry of METHODS.

  build(backbone, num_classes, ways, **options) -> Algorithm; raises UserError
    for an option's wrong value.
  options() -> ConfigDict of the method's own fields and their defaults.
  published(benchmark, shots) -> Published.
  any_ways: whether `adapt` takes other numbers of ways than training had.
  """

  build: Callable
  options: Callable
  published: Callable
  any_ways: bool = True
