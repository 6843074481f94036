"""mini-ImageNet, ResNet-12, 5-way 1-shot: published settings.

MTL's published settings reach 59.84 +- 0.22% (Wang, Zhao & Li, 2021; theirs,
not measured here). The files: see docs/mini_imagenet.md.
"""

from ml_collections import ConfigDict

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_1shot.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  c.model = ConfigDict({
      'name': 'resnet12', 'widths': (64, 160, 320, 640), 'drop_rate': 0.1,
      'drop_block': 5, 'ramp_tasks': 40_000, 'pool': 'global',
      'dtype': 'float32'})
  c.augment.operations = ('crop', 'jitter', 'flip')
  set_method(c, method, benchmark='mini_imagenet', shots=1)
  c.validation.shots = 1
  c.eval.shots = 1
  c.validation.queries = c.eval.queries = 30
  return c
