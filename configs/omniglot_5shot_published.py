"""Omniglot, 5-way, 5 shots: the methods that were published with it.

Network, training, validation and test are those of the method's own source. A
run prints which fields are not published, and writes the reasons to
settings.md. The split is that in use since Vinyals et al. (2016); the files:
see docs/omniglot.md, the two large zips. Some methods train for days on a CPU;
omniglot_5shot.py has settings of ours for minutes.
"""

from mtl_jax.config import base_config, set_method


def get_config(method='protonet'):
  """Returns the config, `configs/omniglot_5shot_published.py:method`."""
  c = base_config()
  c.data.name = 'omniglot/vinyals'
  c.validation.shots = c.eval.shots = 5
  set_method(c, method, benchmark='omniglot', shots=5)
  return c
