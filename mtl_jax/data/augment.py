"""Turn stored pixels into network input, inside the compiled step.

The augmentation is the chain that MetaOptNet (Lee et al., CVPR 2019) trains
with. It works in pixel space and with whole numbers throughout, as Pillow and
torchvision's transforms of Pillow images do: the deterministic pieces (`crop`,
`flip`, `brightness`, `contrast`, `saturation`, `jitter`) give the same bytes as
Pillow.
"""

import itertools

import jax
import jax.numpy as jnp

from mtl_jax.data.sources import omniglot
from mtl_jax.errors import UserError, check_choice

# Luma of ITU-R 601 in units of 2^-16, as Pillow converts RGB to grey.
_GREY = (19595., 38470., 7471.)
# Drawn factors are multiples of this. A factor times a difference of two
# pixels, and that plus a pixel, then fit the 24 bits of a float32 or lie
# beyond what is clipped: nothing is ever rounded, and no device, fused
# multiply-add or not, can disagree with another about a pixel.
_FACTOR_UNIT = 2.**-15
_ORDERS = tuple(itertools.permutations(range(3)))


def normalise(images, mean, std):
  """Scales images [.., h, w, c] of 0..255 to (x / 255 - mean) / std, float32.

  Takes stored uint8 images and the float32 images of `augment`.
  """
  return (images.astype(jnp.float32) / 255. - mean) / std


def check(operations, channels):
  """Raises UserError for operations that such images cannot have.

  Args:
    operations: names, as config.augment.operations.
    channels: c of the images.
  """
  for name in operations:
    check_choice('config.augment.operations', name, OPERATIONS)
  if 'jitter' in operations and channels != 3:
    raise UserError('config.augment.operations has jitter: it needs images of '
                    f'3 channels, RGB, and these have {channels}')


def augment(key, images, *, operations, padding, brightness, contrast,
            saturation):
  """Applies random operations, drawn for each image on its own.

  The draws depend on the task's key and on the image's place in the task. The
  images of a task, support and query alike, are augmented independently of
  each other. Neither their number nor the devices change what an image becomes.

  Args:
    key: the task's key.
    images: uint8 [B, h, w, c].
    operations: names of OPERATIONS, applied in this order; none: no change.
    padding: p of `crop`, pixels.
    brightness: x of jitter's brightness factor, U[max(0, 1 - x), 1 + x].
    contrast: the same of its contrast.
    saturation: the same of its saturation.

  Returns:
    float32 [B, h, w, c], whole numbers 0..255.

  Raises:
    UserError: as `check`.
  """
  check(operations, images.shape[-1])
  options = dict(padding=padding, brightness=brightness, contrast=contrast,
                 saturation=saturation)

  def of_image(index, image):
    image_key = jax.random.fold_in(key, index)
    for place, name in enumerate(operations):
      image = OPERATIONS[name](jax.random.fold_in(image_key, place), image,
                               **options)
    return image

  images = jax.vmap(of_image)(jnp.arange(len(images)), images)
  return images.astype(jnp.float32)


def check_turns(store):
  """Raises UserError for training classes that `turn_classes` cannot turn.

  Args:
    store: the training split.
  """
  height, width = store.images.shape[1:3]
  if height != width:
    raise UserError('config.train.turn_classes is True, but the images of '
                    f'{store.name} are {height}x{width}: a quarter turn needs '
                    'squares')
  turned = next((name for name in store.class_names
                 if omniglot.character_of(name) != name), None)
  if turned:
    raise UserError('config.train.turn_classes is True, but the training '
                    f'classes of {store.name} are turned already ({turned}), '
                    'so that two classes of a task could be the same: name '
                    'one whose classes are upright, such as '
                    'omniglot/vinyals_upright')


def turn_classes(key, images):
  """Turns each class of a task by a random multiple of 90 degrees.

  All images of a class are turned alike, as in the loaders of MAML (Finn et
  al. 2017) and iMAML.

  Args:
    key: draws the turns.
    images: [N, n, s, s, c].

  Returns:
    The same, class k turned counter-clockwise 0 to 3 times, each equally
    likely.
  """
  turns = jax.random.randint(key, (len(images), 1, 1, 1, 1), 0, 4)
  # Two turns mirror both axes, and one more is a transposition and a mirror.
  images = jnp.where(turns >= 2, images[:, :, ::-1, ::-1], images)
  return jnp.where(turns % 2 == 1, images.swapaxes(2, 3)[:, :, ::-1], images)


def random_crop(key, image, *, padding, **_):
  """Crops at a uniform place of the padded image: offsets 0..2p."""
  top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  return crop(image, top, left, padding)


def random_jitter(key, image, *, brightness, contrast, saturation, **_):
  """Changes the three in one of their six orders, each equally likely.

  Factors are uniform, to the nearest 2^-15.
  """
  factor_key, order_key = jax.random.split(key)
  spread = jnp.array([brightness, contrast, saturation], jnp.float32)
  factors = jax.random.uniform(
      factor_key, (3,), minval=jnp.maximum(0., 1. - spread),
      maxval=1. + spread)
  factors = jnp.round(factors / _FACTOR_UNIT) * _FACTOR_UNIT
  order = jnp.array(_ORDERS)[
      jax.random.randint(order_key, (), 0, len(_ORDERS))]
  return jitter(image, factors, order)


def random_flip(key, image, **_):
  """Mirrors with probability one half."""
  return jnp.where(jax.random.bernoulli(key), flip(image), image)


# (key, image [h, w, c], all options by name) -> image of the same shape with
# whole numbers 0..255, uint8 or float32; in the order of the published chain.
OPERATIONS = {
    'crop': random_crop,
    'jitter': random_jitter,
    'flip': random_flip,
}


def crop(image, top, left, padding):
  """Pads [h, w, c] by zeros on all sides, cuts h x w out at (top, left)."""
  padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip(image):
  """Mirrors [h, w, c] left to right."""
  return image[:, ::-1]


def brightness(image, factor):
  """Blends [h, w, 3] with black; Pillow's ImageEnhance.Brightness."""
  return _blend(0., image.astype(jnp.float32), factor)


def contrast(image, factor):
  """Blends [h, w, 3] with its mean grey; Pillow's ImageEnhance.Contrast."""
  image = image.astype(jnp.float32)
  return _blend(_mean(_grey(image)), image, factor)


def saturation(image, factor):
  """Blends [h, w, 3] with its grey image; Pillow's ImageEnhance.Color."""
  image = image.astype(jnp.float32)
  return _blend(_grey(image), image, factor)


def jitter(image, factors, order):
  """Applies brightness, contrast and saturation in the given order.

  Args:
    image: [h, w, 3], whole numbers 0..255.
    factors: float32 [3], of brightness, contrast and saturation. Multiples
      of 2^-15 give Pillow's bytes on any device. Others leave a rounding to
      the device: one value in 100,000 may be off by 1, or 2 after all three.
    order: int32 [3], a permutation of 0 (brightness), 1 (contrast) and 2
      (saturation).

  Returns:
    float32 [h, w, 3]; whole numbers, after each of the three.
  """
  image = image.astype(jnp.float32)
  # One blend with a chosen image, since under vmap a lax.switch would compute
  # all three.
  for name in order:
    grey = _grey(image)
    base = jnp.where(name == 2, grey, jnp.where(name == 1, _mean(grey), 0.))
    image = _blend(base, image, factors[name])
  return image


def _grey(image):
  """Returns [h, w, 1]; exact, as no sum reaches 2^24."""
  red, green, blue = (image[..., i:i + 1] for i in range(3))
  total = _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue + 2.**15
  return jnp.floor(total * 2.**-16)


def _mean(grey):
  """Returns the mean, halves rounded up, in integers so as to be exact."""
  total = jnp.sum(grey.astype(jnp.int32))
  return ((2 * total + grey.size) // (2 * grey.size)).astype(jnp.float32)


def _blend(base, image, factor):
  """Goes from base to image and, for a factor above 1, beyond.

  Pillow truncates. It clips values beyond the two images; between them there
  is nothing to clip.
  """
  return jnp.floor(jnp.clip(base + factor * (image - base), 0., 255.))
