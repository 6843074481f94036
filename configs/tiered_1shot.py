"""tiered-ImageNet, 5-way, 1 shot: every method as it was published.

Network, augmentation, training, validation and test are those of the method's
own source. A method that nobody published here has its settings for the nearest
data set. A run prints which fields are not published, and writes the reasons to
settings.md. MTL's settings reach 67.11 +- 0.12% (Wang, Zhao & Li, 2021;
theirs, not measured here). The files: see docs/tiered_imagenet.md.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/tiered_1shot.py:method`."""
  c = base_config()
  c.data.name = 'tiered_imagenet'
  c.validation.shots = c.eval.shots = 1
  set_method(c, method, benchmark='tiered_imagenet', shots=1)
  return c
