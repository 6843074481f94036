"""mini-ImageNet, CNN-4, 1-shot: half an hour on two CPU cores.

As mini_5shot_cpu.py, validated and tested with one image per class. MAML, ANIL,
Meta-SGD, iMAML and ProtoNet also train with one. The others have one training
for all shots: --config=mini_5shot_cpu --config.eval.also_shots=1, tests both.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_1shot_cpu.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  c.augment.operations = ('flip',)
  set_method(c, method, benchmark='mini_imagenet', shots=1, scale='cpu')
  c.validation.tasks = 200
  c.validation.shots = 1
  c.eval.shots = 1
  c.eval.baselines = True
  return c
