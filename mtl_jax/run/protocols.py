"""The protocols of a run: from sections of its config."""

from mtl_jax.data import episodes
from mtl_jax.evaluate import adapters, tune_all
from mtl_jax.evaluate.protocol import Protocol


def options(config, head):
  """Returns the keywords of a name of config.eval.heads, such as a head's."""
  if head == tune_all.NAME:
    return dict(config.tune_all)
  return {} if head == adapters.OWN else dict(config.heads.get(head, {}))


def validation(config):
  """Returns the Protocol of config.validation."""
  return _protocol(config, config.validation, config.validation.shots,
                   episodes.stream_key(config.seed,
                                       episodes.Stream.VALIDATION))


def test(config):
  """Returns a Protocol for each of config.eval's shots, the run's first."""
  c = config.eval
  key = episodes.stream_key(c.seed, episodes.Stream.TEST)
  return [_protocol(config, c, shots, key)._replace(**_copies(config))
          for shots in dict.fromkeys((c.shots, *c.also_shots))]


def choice(config):
  """Returns the Protocol by which config.eval.choose_C is decided.

  It has the tasks of config.validation with the test's ways, first shots and
  copies of the support.
  """
  c = config.eval
  return validation(config)._replace(
      ways=c.ways, shots=c.shots, queries=c.queries,
      normalise_features=c.normalise_features, **_copies(config))


def _protocol(config, section, shots, key):
  return Protocol(
      key=key, num_tasks=section.tasks, ways=section.ways, shots=shots,
      queries=section.queries, normalise_features=section.normalise_features,
      batch_size=config.eval.batch_size,
      tasks_at_once=config.eval.tasks_at_once, progress=config.log.progress)


def _copies(config):
  return {'support_copies': config.eval.support_copies,
          'augmentation': dict(config.augment)}
