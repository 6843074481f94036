"""Backbones: Flax Linen modules, used as pure functions.

    model = create('conv4', width=64)
    variables = model.init(key, images, train=False)
    features = model.apply(variables, images, train=False)        # [B, D]
    features, mutated = model.apply(variables, images, train=True,
                                    tasks_seen=0, mutable=['batch_stats'],
                                    rngs={'dropout': key})

Images are [B, h, w, c], features float32. In training `mutated` holds the
statistics of this batch itself, not running ones: see layers.py.
`own_statistics` says whether BatchNorm takes the statistics of this batch or
stored ones; None is as `train`, which also says whether values are dropped.
`tasks_seen` ([] int32 or int), the training tasks before this step, drives
schedules within a model. A new model is one file and one line in MODELS.
"""

import dataclasses

from mtl_jax.errors import UserError, check_choice
from mtl_jax.models import conv4, mlp, r2d2_net, resnet12
from mtl_jax.models.torch_weights import from_torch as from_torch

MODELS = {
    'conv4': conv4.Conv4,
    'mlp': mlp.Mlp,
    'r2d2_net': r2d2_net.R2d2Net,
    'resnet12': resnet12.Resnet12,
}


def create(name, **options):
  """Builds the backbone `name`, a key of MODELS.

  Raises UserError for an unknown name, an option that the model does not
  have, or a value that it does not take.
  """
  check_choice('config.model.name', name, MODELS)
  model = MODELS[name]
  allowed = [field.name for field in dataclasses.fields(model)
             if field.name not in ('parent', 'name')]
  for option in options:
    if option not in allowed:
      raise UserError(f'config.model.{option} is unknown: {name} has the '
                      'options ' + ', '.join(allowed))
  return model(**options)
