"""Wide networks in closed form: kernels, and what training predicts.

    kernels = fully_connected(x, depth=3)
    predictions = predict('anil', query_x=.., depth=3, ..)

`docs/theory.md` has the derivations. The names below are meant for users. The
library reads no training config and no files; the experiments on it are in
`checks/`, which `python -m mtl_jax.ntk` runs.
"""

from mtl_jax.ntk.flow import Steps
from mtl_jax.ntk.kernels import (
    Kernels,
    convolutional,
    empirical,
    fully_connected,
)
from mtl_jax.ntk.predictors import METHODS, Predictions, predict

__all__ = [
    'METHODS', 'Kernels', 'Predictions', 'Steps', 'convolutional', 'empirical',
    'fully_connected', 'predict',
]
