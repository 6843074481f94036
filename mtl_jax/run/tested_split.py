"""The split that a run is tested on, and all that a test may refuse."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import heads
from mtl_jax.data import augment, episode_files, episodes
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters
from mtl_jax.run import protocols


def load(config, data, splits=None):
  """Loads the split that config.eval names, and checks that it can be used.

  Args:
    config: read for `eval` and `data`.
    data: what was trained on, of build.describe_data.
    splits: split -> Store of the trained data set, those that are loaded.

  Returns:
    Store; its images are normalised as the training images were.

  Raises:
    UserError: too few classes or images for the tasks, images of another
      shape, or classes that were trained on.
  """
  c = config.eval
  name = c.data or config.data.name
  if name == config.data.name and c.split in (splits or {}):
    store = splits[c.split]
  else:
    store = stores.load(name, c.split, config.data.dir,
                        config.data.manual_dir)
  store = as_trained(store, data)
  for shots in (c.shots, *c.also_shots):
    episodes.check(store, ways=c.ways, images_per_class=shots + c.queries,
                   field='eval')
  seen = sorted(set(store.class_names) & set(data['classes']))
  if seen and name != config.data.name and not c.allow_seen_classes:
    raise UserError(
        f'config.eval.data is {name!r}: {len(seen)} of its {c.split} classes '
        f'were trained on in {config.data.name} ({seen[0]}, ..), so these '
        'scores would mean little: test another data set, or set '
        'config.eval.allow_seen_classes')
  return store


def as_trained(store, data):
  """Returns a store whose images are normalised as the training images were.

  Raises:
    UserError: images of another shape.
  """
  shape = tuple(data['image_shape'])
  if store.images.shape[1:] != shape:
    raise UserError(
        f'config.eval.data is {store.name!r}, whose images are '
        f'{store.images.shape[1:]}: this run is trained on {shape}; name a '
        'data set of such images')
  return store._replace(mean=np.array(data['mean'], np.float32),
                        std=np.array(data['std'], np.float32))


def given_tasks(config, store):
  """Returns (protocols of the test, the images of their tasks or None).

  The images are those of config.eval.read_episodes; None: to be drawn.

  Raises:
    UserError: the file does not fit the test.
  """
  rules, file = protocols.test(config), config.eval.read_episodes
  if not file:
    return rules, None
  image_ids = episode_files.read(file, store, rules, config.data.dir)
  return [p._replace(num_tasks=len(ids)) for p, ids in zip(
      rules, image_ids, strict=True)], image_ids


def check_test(config, splits):
  """Checks all that a test would refuse, so that no training is in vain.

  Args:
    config: read for `eval`, `validation`, `heads` and `data`.
    splits: 'test' -> Store, of `load`; 'validation' where C is chosen.

  Raises:
    UserError: a file of tasks that does not fit, too few validation classes
      or images to choose C, augmentation that the images do not have the
      channels for, or an option that a head refuses.
  """
  given_tasks(config, splits['test'])
  c = config.eval
  if c.choose_C:
    episodes.check(splits['validation'], ways=c.ways,
                   images_per_class=c.shots + c.queries, field='eval')
  if c.support_copies:
    image = jax.ShapeDtypeStruct((1, *splits['test'].images.shape[1:]),
                                 jnp.uint8)
    jax.eval_shape(lambda x: augment.augment(
        jax.random.key(0), x, **config.augment), image)
  for head in filter(adapters.is_head, (*c.heads, config.validation.head)):
    _check_head(head, protocols.options(config, head), c.ways)


def _check_head(name, options, ways):
  """Raises what a head raises for its options; computes nothing."""
  features = jax.ShapeDtypeStruct((ways, 1), jnp.float32)
  head = heads.find(name)
  jax.eval_shape(
      lambda x: head.logits(head.fit(x, jnp.arange(ways), ways, **options), x),
      features)
