"""CIFAR-FS, 5-way, 5 shots: every method as it was published.

Network, augmentation, training, validation and test are those of the method's
own source. A method that nobody published here has its settings for the nearest
data set. A run prints which fields are not published, and writes the reasons to
settings.md. The files: see docs/cifar100.md.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/cifar_fs_5shot.py:method`."""
  c = base_config()
  c.data.name = 'cifar_fs'
  c.validation.shots = c.eval.shots = 5
  set_method(c, method, benchmark='cifar_fs', shots=5)
  return c
