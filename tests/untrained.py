"""Workdirs of networks that were not trained, and pictures of noise: both are
made in a moment, and what a command does with them is the same."""

import numpy as np
from PIL import Image

from mtl_jax import files
from mtl_jax.config import base_config, set_method
from mtl_jax.run import build, checkpoint, workdir

SIDE = 16


def run(path, method='mtl', **fields):
  """Makes the workdir of a run; returns its path as text.

  Args:
    path: of the workdir.
    method: its name.
    **fields: of the config, with __ for dots.
  """
  config = base_config()
  config.data.name = 'glyphs'
  set_method(config, method, benchmark='glyphs', shots=5, scale='cpu')
  config.update_from_flattened_dict({
      'model.width': 4, 'model.pool': 'global', 'parallel.cpu_devices': 0,
      **{name.replace('__', '.'): value for name, value in fields.items()}})
  data = {'name': 'noise', 'classes': ['x', 'y'],
          'image_shape': [SIDE, SIDE, 1], 'mean': [0.5], 'std': [0.25]}
  path = files.at(path)
  workdir.claim(path, config, data)
  state = build.initial_state(config, build.algorithm_of(config, 2),
                              data['image_shape'])
  manager = checkpoint.manager(path, 'best')
  checkpoint.save(manager, 0, state)
  manager.close()
  return str(path)


def pictures(folder, sizes, seed=0):
  """Writes images of classes, a pattern with noise each; returns the folder.

  Args:
    folder: of the class folders.
    sizes: name -> number of images.
    seed: of the noise.
  """
  rng = np.random.default_rng(seed)
  for number, (name, count) in enumerate(sizes.items()):
    (folder / name).mkdir(parents=True, exist_ok=True)
    pattern = np.random.default_rng([7, number]).integers(
        0, 256, (SIDE, SIDE))
    for i in range(count):
      image = 0.7 * pattern + 0.3 * rng.integers(0, 256, (SIDE, SIDE))
      Image.fromarray(image.astype(np.uint8)).save(folder / name / f'{i}.png')
  return folder
