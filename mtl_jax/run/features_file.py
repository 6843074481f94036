"""What `--mode=features` does with a trained run: features.npz."""

import os
import zipfile

import numpy as np

from mtl_jax import files, progress
from mtl_jax.config.check import validate
from mtl_jax.data import pictures
from mtl_jax.data import store as stores
from mtl_jax.evaluate import features
from mtl_jax.run import tested_split, weights, workdir

NAME = 'features.npz'
_AT_ONCE = 128  # pictures in memory


def write(config, checkpoint, path):
  """Writes the features of config.eval's split to features.npz.

  `features` float32 [I, D], `labels` int32 [I], `class_names` [M], `names`
  [I] of the images; of unit length where config.eval.normalise_features.

  Args:
    config: the run's, with other `eval` or `data` folders.
    checkpoint: workdir of the run; None: the file config.weights is taken.
    path: folder for the file.

  Raises:
    UserError: what a user can mend, in one line.
  """
  validate(config, trains=False)
  path = workdir.for_results(path)
  model = weights.of(config, checkpoint)
  c = config.eval
  store = tested_split.as_trained(stores.load(
      c.data or config.data.name, c.split, config.data.dir,
      config.data.manual_dir), model.data, config.data.dir, c.invert)
  values = features.of_store(
      model.algorithm, model.variables, store, c.normalise_features,
      c.batch_size, config.log.progress)
  _save(path, config, [values], {
      'class_names': np.array(store.class_names),
      'labels': np.repeat(np.arange(store.num_classes, dtype=np.int32),
                          np.diff(store.offsets)),
      'names': np.array(stores.image_names(store, config.data.dir))})


def write_of_folder(config, checkpoint, folder, path, invert=False):
  """Writes the features of all pictures of a folder to features.npz.

  The arrays are those of `write`. A class is a folder with pictures, at any
  depth, named by its path within `folder`; pictures directly in `folder` have
  the label -1. Only a part of the pictures is in memory. No data set is needed.

  Args:
    config, checkpoint, path: as in `write`.
    folder: of the pictures.
    invert: exchange black and white.

  Raises:
    UserError: no pictures, or one that cannot be read: nothing is written.
  """
  path = workdir.for_results(path)
  model = weights.of(config, checkpoint)
  found = pictures.list_below('--images', folder)
  classes = sorted({name for name in found.labels if name})
  number = {name: i for i, name in enumerate(classes)} | {'': -1}
  shape = model.data['image_shape']
  white, guessed = 0, []

  def parts():
    nonlocal white
    starts = range(0, len(found.paths), _AT_ONCE)
    for start in progress.each(starts, 'features', unit=f'{_AT_ONCE} images'):
      read = pictures.load(pictures.Files(
          *(x[start:start + _AT_ONCE] for x in found[:2]), []), classes, shape,
                           invert=invert)
      guessed.extend(read.guessed)
      white += pictures.look_inverted(read.images, model.data['mean']).sum()
      missing = _AT_ONCE - len(read.images)
      yield np.asarray(model.features(np.pad(
          read.images, [(0, missing)] + [(0, 0)] * 3)))[:len(read.images)]

  _save(path, config, parts(), {
      'class_names': np.array(classes, str),
      'labels': np.array([number[x] for x in found.labels], np.int32),
      'names': np.array([
          '/'.join(filter(None, [label, os.path.basename(pictures.text(x))]))
          for label, x in zip(found.labels, found.paths, strict=True)])})
  if config.log.progress:
    for line in pictures.guesses(found.paths, guessed):
      print(f'note: {line}')
  if white and config.log.progress:
    print(f'note: {white} images have a white background, and this run was '
          'trained on white ink on black: '
          + ('leave out --invert' if invert else 'try --invert'))


def _save(path, config, parts, arrays):
  """Writes features, which come in parts, and other arrays."""
  count = len(arrays['labels'])
  files.make(path)
  with files.writing(path / NAME) as file, zipfile.ZipFile(file, 'w') as packed:
    with packed.open('features.npy', 'w', force_zip64=True) as entry:
      for i, part in enumerate(parts):
        if not i:
          shape = count, part.shape[1]
          np.lib.format.write_array_header_1_0(entry, {
              'descr': '<f4', 'fortran_order': False, 'shape': shape})
        entry.write(part.astype('<f4').tobytes())
    for name, array in arrays.items():
      with packed.open(f'{name}.npy', 'w', force_zip64=True) as entry:
        np.lib.format.write_array(entry, array, allow_pickle=False)
  if config.log.progress:
    print(f'{shape[0]} features of {shape[1]} numbers are in {path / NAME}')
