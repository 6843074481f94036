"""TFDS builders, one file a data set.

A builder yields `image` (encoded bytes: no TensorFlow needed) and `label`
with the class names of all splits, in the splits train, validation and test,
and states MEAN and STD of its pixels / 255. A new data set is one file and
one line in DATASETS.
"""

from mtl_jax.data.sources import glyphs, mini_imagenet, omniglot

DATASETS = {
    'glyphs': glyphs.Glyphs,
    'mini_imagenet': mini_imagenet.MiniImagenet,
    'omniglot': omniglot.Omniglot,
}


def names():
  """Returns all names that `config.data.name` may hold, sorted.

  'name' is a builder's first configuration, 'name/configuration' any other.
  """
  return sorted(
      name if i == 0 else f'{name}/{config.name}'
      for name, cls in DATASETS.items()
      for i, config in enumerate(cls.BUILDER_CONFIGS or (None,)))
