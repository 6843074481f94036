"""Omniglot, characters of unseen alphabets, 1 shot: minutes on two cores.

The files: see docs/omniglot.md; the two small zips will do. Training is ours,
partly chosen on the validation alphabets (docs/results.md); its length is
counted in steps, so that the time is known beforehand. Some methods train with
one image per class, too.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/omniglot_1shot.py:method`."""
  c = base_config()
  c.data.name = 'omniglot'
  set_method(c, method, benchmark='omniglot', shots=1, scale='cpu')
  c.validation.tasks = 400
  c.validation.shots = 1
  c.eval.shots = 1
  c.eval.tasks = 1000
  c.eval.baselines = True
  return c
