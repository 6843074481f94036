"""mini-ImageNet, ResNet-12, 5-shot: a short run for one accelerator.

Ours, not the paper's. It should end within five minutes on an H100, but has not
been run on a GPU yet. The schedule is counted in steps: 100 passes over the
training images in bfloat16, 30,000 steps of 128 images. The operations of a
step, one after another, take 5.2 ms there by their bytes and products
(docs/speed.md), so all steps take 2.6 minutes. A task holds all 64 classes, and
the rows of all classes compete in every step. An image then teaches more than
in a task of five classes, and the batch is large enough for SGD at a high rate.
"""

from ml_collections import ConfigDict

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_5shot_fast.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  c.model = ConfigDict({
      'name': 'resnet12', 'widths': (64, 160, 320, 640), 'drop_rate': 0.1,
      'drop_block': 5, 'ramp_tasks': 15000, 'pool': 'global',
      'dtype': 'bfloat16'})
  c.augment.operations = ('crop', 'jitter', 'flip')
  set_method(c, method, benchmark='mini_imagenet', shots=5, scale='fast')
  return c
