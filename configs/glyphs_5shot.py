"""Few-shot recognition of characters of unseen alphabets, 5 shots.

No download. Settings are ours: mini-ImageNet's published ones with a shorter
epoch, for a data set on which 1600 tasks a validation are more than needed.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/glyphs_5shot.py:method`."""
  c = base_config()
  c.data.name = 'glyphs'
  set_method(c, method, benchmark='glyphs', shots=5)
  c.train.epoch_tasks = 400
  c.validation.tasks = 200
  c.eval.baselines = True
  return c
