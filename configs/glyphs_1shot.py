"""Few-shot recognition of characters of unseen alphabets, 1 shot.

As glyphs_5shot.py, validated and tested with one image per class; some methods
also train with one.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/glyphs_1shot.py:method`."""
  c = base_config()
  c.data.name = 'glyphs'
  set_method(c, method, benchmark='glyphs', shots=1, scale='cpu')
  c.validation.tasks = 200
  c.validation.shots = 1
  c.eval.shots = 1
  c.eval.baselines = True
  return c
