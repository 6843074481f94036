"""The config of a run, as a config file: `saved_config.py:WORKDIR`."""

from etils import epath

from mtl_jax.run import workdir


def get_config(path):
  """Returns the config that the run in `path` was trained with."""
  return workdir.saved_config(epath.Path(path))
