"""mini-ImageNet, 5-way 1-shot: every method as it was published.

As mini_5shot.py. MTL's settings reach 59.84 +- 0.22% (Wang, Zhao & Li, 2021;
theirs, not measured here). The files: see docs/mini_imagenet.md.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_1shot.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  c.validation.shots = c.eval.shots = 1  # where the recipe has none of its own
  set_method(c, method, benchmark='mini_imagenet', shots=1)
  return c
