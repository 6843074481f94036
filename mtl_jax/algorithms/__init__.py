"""The methods: each is one file of pure functions over ONE task.

A new method is one file and one line in METHODS. Nothing here knows about
devices, meta-batches or files: `train/step.py` maps `loss` over tasks.
"""

from mtl_jax.algorithms import (
  anil,
  imaml,
  maml,
  meta_sgd,
  metaoptnet,
  minibatch_prox,
  mtl,
  protonet,
  r2d2,
  whole_class,
)
from mtl_jax.algorithms.base import Method


def _method(module, any_ways=True):
  return Method(module.build, module.options, module.published, any_ways)


METHODS = {
    'mtl': _method(mtl),
    # Inner loop on the last layer.
    'anil': _method(anil, any_ways=False),
    'metaoptnet': _method(metaoptnet),
    'r2d2': _method(r2d2),
    # Inner loop on all layers.
    'maml': _method(maml, any_ways=False),
    'meta_sgd': _method(meta_sgd, any_ways=False),
    'imaml': _method(imaml, any_ways=False),
    'minibatch_prox': _method(minibatch_prox, any_ways=False),
    # Baselines.
    'protonet': _method(protonet),
    'whole_class': _method(whole_class),
}
