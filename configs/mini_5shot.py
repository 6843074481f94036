"""mini-ImageNet, 5-way 5-shot: every method as it was published.

Network, augmentation, training, validation and test are those of the method's
own source: ResNet-12 for MTL, MetaOptNet and whole-class training, CNN-4 for
MAML, and so on. A run prints which fields are not published, and writes the
reasons to settings.md. MTL's settings reach 77.72 +- 0.09% (Wang, Zhao & Li,
2021; theirs, not measured here) in 3.7 GPU hours of the authors. The files:
see docs/mini_imagenet.md.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_5shot.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  set_method(c, method, benchmark='mini_imagenet', shots=5)
  return c
