"""Take the recipe of a method: what its file declares for a benchmark."""

from mtl_jax.algorithms import METHODS
from mtl_jax.errors import check_choice


def set_method(config, name, *, benchmark, shots, scale='published'):
  """Sets `config.method` and the method's published settings.

  Args:
    config: from base_config, changed in place.
    name: of algorithms.METHODS.
    benchmark: data set whose published settings are wanted.
    shots: K of the test.
    scale: not used yet.
  """
  del scale
  check_choice('the method behind the config file', name, METHODS)
  config.method = METHODS[name].options()
  config.method.name = name
  published = METHODS[name].published(benchmark, shots)
  config.update_from_flattened_dict(published.overrides)
  config.source = ('ours; nearest: ' * published.ours) + published.source
