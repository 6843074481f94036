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
  adapt(variables, key, support_x, support_y) -> adapted, the method's own
    way to learn an unseen task.
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
  says where they stand; `ours` marks settings that nobody published.
  """

  overrides: dict[str, Any]
  source: str
  ours: bool


class Method(NamedTuple):
  """An entry of METHODS.

  build(backbone, num_classes, ways, **options) -> Algorithm; raises UserError
    for an option's wrong value.
  options() -> ConfigDict of the method's own fields and their defaults.
  published(benchmark, shots) -> Published.
  """

  build: Callable
  options: Callable
  published: Callable
