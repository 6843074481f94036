"""The config of a run, as a config file: `saved_config.py:WORKDIR`."""

from etils import epath

from mtl_jax.config import base_config
from mtl_jax.train import workdir


def get_config(path):
  """Returns the config that the run in `path` was trained with.

  Fields that came later than the run have their defaults.
  """
  saved = workdir.read_config(epath.Path(path))
  config = base_config()
  for section in ('model', 'method'):  # these have fields of their own
    config[section] = saved[section]
  config.update(saved)
  return config
