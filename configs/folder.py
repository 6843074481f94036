"""Your own folder of images, 5-way 5-shot: settings of ours.

    --config=folder --config.data.name=birds

A folder of images for each class will do; docs/own.md says what else may be in
it. The network is small and training takes minutes on two cores. With more
images and an accelerator, raise config.model.width, and
config.train.max_epochs and config.optimizer.decay_epochs together.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='mtl'):
  """Returns the config of one method, `configs/folder.py:method`."""
  c = base_config()
  c.data.name = ''  # to be given
  set_method(c, method, benchmark='glyphs', shots=5, scale='fast')
  if c.train.ways > 10:  # MTL and whole-class training: few classes will do
    c.train.update({'ways': 5, 'shots': 2, 'queries': 2, 'meta_batch': 8,
                    'epoch_tasks': 8 * 250})
  c.model.width = 32  # 64 takes three times as long
  c.validation.tasks = 200
  c.eval.tasks = 1000
  c.eval.baselines = True
  return c
