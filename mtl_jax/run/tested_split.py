"""The split that a run is tested on, and all that a test may refuse."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import heads
from mtl_jax.data import (
  augment,
  episode_files,
  episodes,
  overlap,
  pictures,
)
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters
from mtl_jax.run import protocols


def load(config, data, splits=None):
  """Loads the split that config.eval names, and checks that it can be used.

  Args:
    config: read for `eval` and `data`.
    data: what was trained on, of build.describe_data.
    splits: split -> Store of the trained data set, those that are loaded;
      'train' has the classes of config.train.classes.

  Returns:
    Store; its images have the shape of the training images and are normalised
    as these were. Its `tested`, for test.json, says how they became so
    ('images') and which of its classes were trained on ('seen').

  Raises:
    UserError: too few classes or images for the tasks, or classes that were
      trained on in another data set.
  """
  c = config.eval
  name = c.data or config.data.name
  loaded = (splits or {}).get(c.split)
  if name == config.data.name and loaded and loaded.split == c.split:
    built = loaded
  else:
    built = stores.load(name, c.split, config.data.dir,
                        config.data.manual_dir)
  for shots in (c.shots, *c.also_shots):
    episodes.check(built, ways=c.ways, images_per_class=shots + c.queries,
                   field='eval')
  seen, compared = _seen(config, built, data, splits)
  if seen and name != data['name'] and not c.allow_seen_classes:
    raise UserError(
        f'config.eval.data is {name!r}: {len(seen)} of its {c.split} classes '
        f'were trained on in {data["name"]} ({seen[0]}, ..; compared by '
        f'{compared}), so these scores would mean little: test another data '
        'set, or set config.eval.allow_seen_classes')
  check_unseen(config, built, data)
  before = {name for _, names in _before(built, data) for name in names}
  seen = tuple(name for name in built.class_names if name in {*seen, *before})
  store = as_trained(built, data, config.data.dir, c.invert)
  images = {'shape': list(built.images.shape[1:]),
            'trained_shape': list(data['image_shape']), 'inverted': c.invert,
            'normalised_by': data['name'], 'classes_compared_by': compared,
            'white_background': name != data['name'] and _are_white(
                store, data)}
  return store._replace(tested={'images': images, 'seen': seen})


def check_unseen(config, store, data):
  """Raises UserError for classes that the first weights were trained on.

  Args:
    config: read for `eval`.
    store: a split that is to be unseen.
    data: what was trained on, of build.describe_data.
  """
  if config.eval.allow_seen_classes or store.split not in (
      'validation', 'test'):
    return
  for name, seen in _before(store, data):
    if seen:
      raise UserError(
          f'the first weights were trained on {len(seen)} of the '
          f'{store.split} classes of {store.name}, in {name} ({seen[0]}, ..), '
          'so their scores would mean little: start from other weights, or set '
          'config.eval.allow_seen_classes')


def _before(store, data):
  """Returns [(data set, classes of a store that first weights trained on)]."""
  return [(earlier['name'], overlap.by_name(
      (store.name, store.class_names), (earlier['name'], earlier['classes'])))
          for earlier in data.get('before', ())]


def _seen(config, store, data, splits):
  """Returns (classes of a store that were trained on, what was compared)."""
  seen = overlap.by_name((store.name, store.class_names),
                         (data['name'], data['classes']))
  if store.name != data['name'] and any(
      map(overlap.is_own, (store.name, data['name']))):
    trained = _trained_images(config, data, splits)
    if trained and trained.images.shape[1:] == store.images.shape[1:]:
      also = overlap.by_image(store, trained)
      return tuple(name for name in store.class_names
                   if name in {*seen, *also}), 'name and image'
  return seen, 'name'


def _trained_images(config, data, splits):
  """Returns the Store that was trained on; None where it is not here."""
  if splits and 'train' in splits:
    return splits['train']
  try:
    built = stores.builder(data['name'], config.data.dir)
    if built.data_path.exists():
      return stores.load(data['name'], config.train.classes, config.data.dir)
  except UserError:  # a finished run is tested without them
    pass
  return None


def _are_white(store, data):
  """Returns whether most images are dark ink on white, and trained ones not.

  Looks at the first image of each class.
  """
  return bool(np.mean(pictures.look_inverted(
      np.asarray(store.images[store.offsets[:-1]]), data['mean'])) > 0.5)


def as_trained(store, data, directory=None, invert=False):
  """Returns a store whose images are those that a network was trained for.

  Images of another shape are brought to it as pictures.prepare does, and all
  are normalised as the training images were.

  Args:
    store: of stores.load.
    data: what was trained on, of build.describe_data.
    directory: TFDS data_dir of the store.
    invert: exchange black and white.

  Raises:
    UserError: the data set that was trained on has images of another shape
      now.
  """
  shape = tuple(data['image_shape'])
  differ = store.images.shape[1:] != shape
  if differ and store.name == data['name']:
    raise UserError(
        f'the images of {store.name} are {store.images.shape[1:]} now, but '
        f'this run is trained on {shape}: restore them, or name another data '
        'set by config.eval.data')
  if differ or invert:
    store = stores.fitted(store, shape, directory, invert)
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
