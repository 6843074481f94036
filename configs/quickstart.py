"""MTL on glyphs in a few minutes on two CPU cores: `make quickstart`.

Ours: a step-counted schedule, so that the time is known beforehand.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/quickstart.py:method`."""
  c = base_config()
  c.data.name = 'glyphs'
  set_method(c, method, benchmark='glyphs', shots=5)
  c.source = 'ours, for a few minutes on two CPU cores'
  c.train.epoch_tasks = 400
  c.train.max_epochs = 5
  c.optimizer.schedule = 'cosine'
  c.optimizer.cosine_epochs = 5
  c.validation.tasks = 200
  c.eval.tasks = 1000
  c.eval.baselines = True
  return c
