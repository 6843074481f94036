"""mini-ImageNet, ResNet-12, 5-way 5-shot: the paper's main comparison.

MTL's published settings reach 77.72 +- 0.09% (Wang, Zhao & Li, 2021; theirs,
not measured here) in 3.7 GPU hours of the authors. The files: see
docs/mini_imagenet.md.
"""

from ml_collections import ConfigDict

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_5shot.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  c.model = ConfigDict({
      'name': 'resnet12', 'widths': (64, 160, 320, 640), 'drop_rate': 0.1,
      'drop_block': 5, 'ramp_tasks': 40_000, 'pool': 'global',
      'dtype': 'float32'})
  c.augment.operations = ('crop', 'jitter', 'flip')
  set_method(c, method, benchmark='mini_imagenet', shots=5)
  c.validation.queries = c.eval.queries = 30
  return c
