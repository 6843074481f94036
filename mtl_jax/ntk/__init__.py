"""Wide networks in closed form: kernels, and what training predicts.

`docs/theory.md` derives what is computed here. Nothing in this folder reads
a training config.
"""

from mtl_jax.ntk.kernels import (
    Kernels,
    convolutional,
    empirical,
    fully_connected,
)
from mtl_jax.ntk.predictors import (
    Predictions,
    anil_predictions,
    maml_predictions,
    mtl_predictions,
    predict,
)

__all__ = [
    'Kernels', 'Predictions', 'anil_predictions', 'convolutional', 'empirical',
    'fully_connected', 'maml_predictions', 'mtl_predictions', 'predict',
]
