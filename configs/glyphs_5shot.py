"""Few-shot recognition of characters of unseen alphabets, 5 shots.

No download. Training is ours, chosen on the validation alphabets by
benchmarks/search.py; its length is counted in steps, so that the time is known
beforehand: about a minute by any method on two cores, with 32 channels. In MTL
a task has 80 of the 2,049 classes with one image each, so that many rows
compete. Rows start equal (the published scale grows with the number of classes,
and random rows of that size take long to unlearn), and features keep their
length (there is no temperature).
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/glyphs_5shot.py:method`."""
  c = base_config()
  c.data.name = 'glyphs'
  set_method(c, method, benchmark='glyphs', shots=5, scale='cpu')
  c.validation.tasks = 200
  c.eval.baselines = True
  return c
