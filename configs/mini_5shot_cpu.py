"""mini-ImageNet, CNN-4, 5-shot: under an hour on two CPU cores.

Ours, chosen on the validation classes. The schedule is counted in steps:
eight passes over the training images. A task holds half of the 64 classes
with one image each, so that many rows compete in every step; SGD at a high
rate with a cosine learns more from few passes than RAdam's plateaus. Images
are cropped and flipped but not jittered: a network this small does not
overfit in eight passes. Each of the two tasks of a step runs on its own core.
To test 1-shot with the same checkpoint: --config.eval.shots=1.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_5shot_cpu.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  c.augment.operations = ('crop', 'flip')
  set_method(c, method, benchmark='mini_imagenet', shots=5, scale='cpu')
  c.validation.tasks = 100
  c.eval.baselines = True
  return c
