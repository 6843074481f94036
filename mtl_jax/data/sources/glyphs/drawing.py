"""Draws a letter 28x28 with a random face, affine map, elastic warp, stroke."""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from mtl_jax.data.sources.glyphs import outlines

SIZE = 28
SEED = 20210

# The source drawing. Its blur makes coverage a ramp of about 2 BLUR pixels
# across each edge, so that a threshold on it moves the edge.
_EM = 72
_BLUR = 1.6
_MARGIN = 6
_SUPERSAMPLE = 2

# The random drawing: largest departures, all drawn uniformly.
EM_PIXELS = 23.0  # font size in the image, before the random scale
LARGEST = 21.0  # longest side of a letter's box, before the random scale
ROTATION = np.deg2rad(20.0)
SHEAR = 0.25
LOG_SCALE = 0.22  # of each axis, on its own
SHIFT = 2.5  # pixels
WARP = 2.0  # pixels, at the knots of a 4 x 4 grid
STROKE = (0.25, 0.6)  # threshold on the blurred drawing: low is bold
INK = (0.7, 1.0)
NOISE = 0.04  # of full ink, standard deviation

_KNOTS = 4


def _knot_weights() -> np.ndarray:
  """Returns [pixels, knots] weights: cosine blending along one axis."""
  pixels = SIZE * _SUPERSAMPLE
  at = (np.arange(pixels) + 0.5) / pixels * (_KNOTS - 1)
  gap = np.clip(np.abs(at[:, None] - np.arange(_KNOTS)), 0.0, 1.0)
  return (0.5 + 0.5 * np.cos(np.pi * gap)).astype(np.float32)


_WEIGHTS = _knot_weights()
_GRID = ((np.arange(SIZE * _SUPERSAMPLE, dtype=np.float32) + 0.5) / _SUPERSAMPLE
         - SIZE / 2)


@functools.cache
def _font(face: str) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(str(outlines.faces()[face]), _EM,
                            layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=64)  # images are drawn letter by letter
def _source(face: str, letter: str) -> np.ndarray:
  """Draws the letter large, blurred, in the middle of a black margin."""
  font = _font(face)
  left, top, right, bottom = font.getbbox(letter)
  image = Image.new('L', (right - left + 8, bottom - top + 8))
  ImageDraw.Draw(image).text((4 - left, 4 - top), letter, 255, font)
  image = image.crop(image.getbbox())
  canvas = ImageOps.expand(image, _MARGIN)
  blurred = canvas.filter(ImageFilter.GaussianBlur(_BLUR))
  return np.asarray(blurred, np.float32) / 255


def _bilinear(source: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Reads `source` at (x, y) pixels; beyond the border is the border's 0."""
  height, width = source.shape
  x = np.clip(x, 0, width - 1.001)
  y = np.clip(y, 0, height - 1.001)
  column, row = np.floor(x), np.floor(y)
  x, y = x - column, y - row
  at = row.astype(np.int32) * width + column.astype(np.int32)
  flat = source.ravel()
  upper_left, lower_left = flat[at], flat[at + width]
  upper = upper_left + x * (flat[at + 1] - upper_left)
  lower = lower_left + x * (flat[at + width + 1] - lower_left)
  return upper + y * (lower - upper)


def _places(size, affine, warp) -> tuple[np.ndarray, np.ndarray]:
  """Returns where each (finer) pixel of the image lies in the source.

  Args:
    size: (height, width) of the source, margins included.
    affine: rotation, shear, scale x, scale y, shift x, shift y, in -1..1.
    warp: [2, knots, knots] displacements in pixels of the image.

  Returns:
    x, y: float32 [56, 56], in pixels of the source.
  """
  rotate, shear, scale_x, scale_y, shift_x, shift_y = affine
  warp_x, warp_y = _WEIGHTS @ warp @ _WEIGHTS.T
  u = _GRID[None, :] + warp_x - np.float32(SHIFT * shift_x)
  v = _GRID[:, None] + warp_y - np.float32(SHIFT * shift_y)
  cos, sin = np.cos(ROTATION * rotate), np.sin(ROTATION * rotate)
  # A letter is as large as its font makes it, unless it would not fit.
  longest = max(size) - 2 * _MARGIN
  stretch = max(_EM / EM_PIXELS, longest / LARGEST) * np.exp(
      LOG_SCALE * np.array([scale_x, scale_y]))
  matrix = stretch[:, None] * np.array([[1, SHEAR * shear], [0, 1]]) @ (
      np.array([[cos, sin], [-sin, cos]]))
  (a, b), (c, d) = matrix.astype(np.float32)
  return (a * u + b * v + np.float32((size[1] - 1) / 2),
          c * u + d * v + np.float32((size[0] - 1) / 2))


def draw(letter: str, number: int) -> np.ndarray:
  """Draws image `number` of a letter.

  A pure function of (SEED, letter, number): the order of calls and the other
  letters play no part.

  Returns:
    uint8 [28, 28, 1], ink 255 on 0.
  """
  rng = np.random.default_rng((SEED, ord(letter), number))
  chosen, thickness, strength, *affine = rng.random(9)
  warp = WARP * (2 * rng.random((2, _KNOTS, _KNOTS), np.float32) - 1)
  noise = NOISE * 12**0.5 * (rng.random((SIZE, SIZE), np.float32) - 0.5)

  faces = outlines.faces_of(letter)
  source = _source(faces[int(chosen * len(faces))], letter)
  x, y = _places(source.shape, 2 * np.array(affine) - 1, warp)
  threshold = np.float32(STROKE[0] + (STROKE[1] - STROKE[0]) * thickness)
  ink = np.clip((_bilinear(source, x, y) - threshold) * 5 + 0.5, 0, 1)
  ink = ink.reshape(SIZE, _SUPERSAMPLE, SIZE, _SUPERSAMPLE).mean(axis=(1, 3))
  ink = ink * (INK[0] + (INK[1] - INK[0]) * strength) + noise
  return np.rint(255 * np.clip(ink, 0, 1)).astype(np.uint8)[..., None]
