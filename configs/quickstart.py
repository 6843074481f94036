"""MTL on glyphs in about a minute on two CPU cores: `make quickstart`.

The settings of glyphs_5shot.py with a quarter of its steps.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/quickstart.py:method`."""
  c = base_config()
  c.data.name = 'glyphs'
  set_method(c, method, benchmark='glyphs', shots=5, scale='fast')
  c.validation.tasks = 200
  c.eval.tasks = 1000
  c.eval.baselines = True
  return c
