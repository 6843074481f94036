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
the stored ones; with None it equals `train`, which also turns dropout on.
`tasks_seen` ([] int32 or int), the training tasks before this step, drives
schedules within a model. A new model is one file and one line in MODELS.

`check` says whether a network keeps this contract; a run calls it for a network
of the user's own.

A file of the user's own defines BACKBONE, a class of this kind. Its dataclass
fields are the model's options. It checks their values when it is created, and
raises UserError (mtl_jax/errors.py) for one that it does not take.
"""

import dataclasses

from mtl_jax import registry
from mtl_jax.errors import UserError
from mtl_jax.models import conv4, mlp, r2d2_net, resnet12
from mtl_jax.models.contract import check as check
from mtl_jax.models.torch_weights import from_torch as from_torch
from mtl_jax.models.torch_weights import to_torch as to_torch

MODELS = {
    'conv4': conv4.Conv4,
    'mlp': mlp.Mlp,
    'r2d2_net': r2d2_net.R2d2Net,
    'resnet12': resnet12.Resnet12,
}


def find(name):
  """Returns the class of a backbone.

  Args:
    name: a key of MODELS, or the path of a user's file, which ends in .py.

  Raises:
    UserError: there is no such model, or the file has no BACKBONE.
  """
  entry = registry.find('config.model.name', name, MODELS, ('BACKBONE',))
  return entry.BACKBONE if registry.is_own(name) else entry


def create(name, **options):
  """Builds the backbone `name`; see `find`.

  Raises UserError for an unknown name, an option that the model does not
  have, or a value that it does not take. No data is needed.
  """
  allowed = defaults(name)
  for option in options:
    if option not in allowed:
      raise UserError(f'config.model.{option} is unknown: {name} has the '
                      'options ' + ', '.join(allowed))
  return find(name)(**options)


def defaults(name):
  """Returns option -> default of a backbone; see `find`."""
  return {field.name: field.default
          for field in dataclasses.fields(find(name))
          if field.name not in ('parent', 'name')}
