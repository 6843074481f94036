"""Turn stored pixels into network input, inside the compiled step."""

import jax.numpy as jnp


def normalise(images, mean, std):
  """Scales uint8 images [.., h, w, c] to (x / 255 - mean) / std, float32."""
  return (images.astype(jnp.float32) / 255. - mean) / std
