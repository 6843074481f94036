"""Check that a user's network does what methods expect of a backbone."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError, first_line

_MEND = ('use mtl_jax.models.layers.BatchNorm, and pass it own_statistics '
         '(mtl_jax/models/__init__.py)')


def check(name, backbone, image_shape):
  """Raises UserError for a network that breaks the contract of mtl_jax.models.

  It computes features of three random images in all ways that methods use.

  Args:
    name: config.model.name, for messages.
    backbone: Flax module.
    image_shape: (h, w, c).
  """
  try:
    found = jax.jit(lambda key: _passes(backbone, key, image_shape))(
        jax.random.key(0))
  except UserError:
    raise
  except Exception as error:  # a user's file may raise anything
    raise UserError(
        f'config.model.name: {name} cannot be used on images {image_shape} '
        f'({type(error).__name__}: {first_line(error)})') from error
  wrong = _wrong(jax.device_get(found))
  if wrong:
    raise UserError(f'config.model.name: {name} {wrong}')


def _passes(backbone, key, image_shape):
  """Returns (features [3, D], batch_stats) of each kind of pass."""
  images = jax.random.normal(key, (3, *image_shape))
  others = images.at[1:].add(1.)
  variables = backbone.init(key, images, train=False)
  stored = variables.get('batch_stats', {})
  changed = jax.tree.map(lambda s: 2. * s + 3., stored)

  def run(stats, images, train, own):
    features, mutated = backbone.apply(
        {'params': variables.get('params', {}), 'batch_stats': stats}, images,
        train=train, own_statistics=own, tasks_seen=0,
        mutable=['batch_stats'], rngs={'dropout': key} if train else {})
    return features, mutated.get('batch_stats', {})

  return {
      'training': run(stored, images, True, True),
      'training, other stored': run(changed, images, True, True),
      'own': run(stored, images, False, True),
      'own, other stored': run(changed, images, False, True),
      'frozen': run(stored, images, False, False),
      'frozen, other stored': run(changed, images, False, False),
      'frozen, other images': run(stored, others, False, False)}


def _wrong(found):
  """Returns what is wrong with the results of `_passes`, or None."""
  features = found['frozen'][0]
  if features.ndim != 2 or features.dtype != jnp.float32:
    return (f'maps 3 images to {features.dtype} {features.shape}: features '
            'must be float32 [B, D]')
  for how, when in (('training', 'in training'),
                    ('own', 'under own_statistics=True')):
    a, b = found[how], found[f'{how}, other stored']
    if not _same(a[1], b[1]):
      return (f'writes running BatchNorm statistics {when}: batch_stats must '
              f'be those of the batch itself; {_MEND}')
    if not _same(a[0], b[0]):
      return f'normalises by stored BatchNorm statistics {when}: {_MEND}'
  if not np.allclose(found['frozen'][0][0], found['frozen, other images'][0][0],
                     1e-3, 1e-3):
    return ('normalises by the statistics of the batch under '
            f'own_statistics=False: {_MEND}')
  if found['frozen'][1] and _same(found['frozen'][0],
                                  found['frozen, other stored'][0]):
    return ('ignores the stored BatchNorm statistics under '
            f'own_statistics=False: {_MEND}')
  return None


def _same(a, b):
  return all(np.allclose(x, y, 1e-3, 1e-3) for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
