"""The methods: each is one file of pure functions over ONE task.

A new method is one file and one line in METHODS. Nothing here knows about
devices, meta-batches or files: `train/step.py` maps `loss` over tasks.
"""

from mtl_jax.algorithms import mtl
from mtl_jax.algorithms.base import Method

METHODS = {
    'mtl': Method(mtl.build, mtl.options, mtl.published),
}
