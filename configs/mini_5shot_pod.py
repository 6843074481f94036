"""mini-ImageNet, 5-way 5-shot, on a pod: the published settings, more tasks.

Ours; not run on a pod yet. Every device has one task of a step, so the devices
of all hosts make the meta-batch. The rates below are for 16 devices, such as
v5e-16. A rule makes them of the published rate and meta-batch of each method.
For SGD the rate grows in proportion to the tasks (Goyal et al., 2017), for Adam
and RAdam with their square root (Malladi et al., 2022). On n devices set
--config.optimizer.learning_rate to rate * n / 16, or to rate * sqrt(n / 16).
Epochs are counted in tasks, so they have fewer steps. docs/processes.md says
how to start it on every host.
"""

from mtl_jax.config import base_config, set_method

RATES = {
    'mtl': 2.83e-3,  # RAdam, published: 1e-3 with 2 tasks
    'anil': 1e-3,  # Adam, 1e-3 with 16
    'metaoptnet': 0.2,  # SGD, 0.1 with 8
    'r2d2': 2e-2,  # Adam, 5e-3 with 1
    'maml': 2e-3,  # Adam, 1e-3 with 4
    'meta_sgd': 2e-3,  # Adam, 1e-3 with 4
    'imaml': 7.07e-4,  # Adam, 1e-3 with 32
    'minibatch_prox': 3.2,  # SGD, 1 with 5
    'protonet': 4e-3,  # Adam, 1e-3 with 1
    'whole_class': 0.8,  # SGD, 0.05 with 1
}


def get_config(method='mtl'):
  """Returns the config of one method, `configs/mini_5shot_pod.py:method`."""
  c = base_config()
  c.data.name = 'mini_imagenet'
  set_method(c, method, benchmark='mini_imagenet', shots=5)
  c.parallel.tasks_per_device = 1
  c.optimizer.learning_rate = RATES.get(method, c.optimizer.learning_rate)
  return c
