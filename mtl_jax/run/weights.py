"""Weights from files: of PyTorch, or written by `--mode=export`.

A file gives the backbone. What else a method has, such as a head, begins as
before training.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import files, weight_files
from mtl_jax.config.check import validate
from mtl_jax.data import sources
from mtl_jax.data import store as stores
from mtl_jax.data.source import names_of
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters
from mtl_jax.models import plain_weights, torch_weights
from mtl_jax.run import build, trained

FILE = 'weights.safetensors'
_KEY = 'mtl_jax'  # of the metadata
_MOST_NAMES = 3  # in a line
# Options of a network that change nothing when it is tested, but for rounding.
_OF_TRAINING = ('dtype', 'drop_rate', 'drop_block', 'ramp_tasks')


def load(config):
  """Returns the Trained of the file config.weights.

  Its data are those that the file says it was trained on, if it was written by
  `export`. Otherwise they are the training classes of config.data.name, whose
  mean and standard deviation config.data may replace.

  Args:
    config: names the file, the network, the method and the data.

  Raises:
    UserError: the file cannot be used, or is of another network.
  """
  validate(config, trains=False)
  weights = weight_files.read(config.weights)
  data = _data(config, weights)
  algorithm = build.algorithm_of(config, len(data['classes']))
  initial = lambda: build.initial_state(config, algorithm, data['image_shape']
                                        ).variables
  # Before anything is compiled.
  backbone, taken = read(config.model, weights, jax.eval_shape(initial),
                         data['image_shape'])
  _check_options(config.model, weights)
  build.check_network(config, tuple(data['image_shape']))
  variables = put(backbone, initial())
  return trained.Trained(
      config, algorithm, variables, None, None, data,
      trained.make_features(config, algorithm, variables, data),
      {'file': weights.path, 'sha256': weights.sha256, 'taken': taken})


def of(config, checkpoint):
  """Returns the Trained of a run, or of the file config.weights.

  Args:
    config: as in `load` and trained.load.
    checkpoint: workdir of the run; None: there is a file.
  """
  if checkpoint is not None:
    return trained.load(checkpoint, config)
  model = load(config)
  if config.log.progress:
    print('\n'.join(lines(model, config.eval.heads)), flush=True)
  return model


def lines(model, used):
  """Returns what is to say of a Trained that `load` returned, line by line.

  Args:
    model: the Trained.
    used: names of the heads that are fitted, among them perhaps 'own'.
  """
  data, numbers = model.data, lambda values: ', '.join(
      f'{x:.4g}' for x in values)
  return [f'weights: {model.weights["taken"]}',
          f'images {data["image_shape"]} of {data["name"]}, normalised by mean '
          f'{numbers(data["mean"])}, std {numbers(data["std"])}',
          *[f'what {model.config.method.name} has beside the backbone is as '
            'before training'] * (adapters.OWN in used)]


def read(model, weights, like, image_shape):
  """Returns (the backbone in a file, words on what was taken).

  Args:
    model: section of a config.
    weights: weight_files.Weights.
    like: variables of a method, or their shapes.
    image_shape: (h, w, c).

  Raises:
    UserError: the file is of another network.
  """
  like = backbone_of(like)
  if like is None:
    raise UserError('--weights: this method has no parameters named '
                    "'backbone', which a file could give")
  backbone, detail = _backbone(model, weights, like, image_shape)
  return backbone, (f'the backbone of {weights.path} (sha256 '
                    f'{weights.sha256[:12]}..; {detail})')


def put(backbone, variables):
  """Returns the variables of a method with another backbone, of `read`."""
  # A copy on the device, of the type that is there.
  taken = jax.tree.map(lambda x, array: jnp.asarray(array, x.dtype),
                       backbone_of(variables), backbone)
  return {**variables,
          'params': {**variables['params'], 'backbone': taken['params']},
          'batch_stats': taken['batch_stats']}


def backbone_of(variables):
  """Returns {'params', 'batch_stats'} of a method's backbone, or None."""
  if 'backbone' not in variables['params']:
    return None
  return {'params': variables['params']['backbone'],
          'batch_stats': variables.get('batch_stats', {})}


def export(config, checkpoint, path):
  """Writes the backbone of a run's best epoch to weights.safetensors.

  ResNet-12 and CNN-4 get the names that PyTorch's have, other networks those of
  models/plain_weights.py.

  Args:
    config: the run's.
    checkpoint: its workdir.
    path: folder for the file.

  Returns:
    The path of the file.

  Raises:
    UserError: what a user can mend, in one line.
  """
  model = trained.load(checkpoint, config)
  variables = backbone_of(model.variables)
  if variables is None:
    raise UserError('--mode=export: the method of this run has no parameters '
                    "named 'backbone'")
  name = config.model.name
  arrays = (torch_weights.to_torch(variables, name)
            if name in torch_weights.LAYOUTS
            else plain_weights.to_arrays(variables))
  metadata = {'format': 'pt', _KEY: json.dumps({
      'method': config.method.name, 'model': config.model.to_dict(),
      'step': model.step, 'data': model.data, 'sha256': _digest(arrays)})}
  path = files.at(path)
  files.make(path)
  files.write(path / FILE, weight_files.pack(arrays, metadata))
  if config.log.progress:
    count = sum(array.size for array in arrays.values())
    print(f'{len(arrays)} arrays, {count:,} numbers of step {model.step}, are '
          f'in {path / FILE}')
  return path / FILE


def _digest(arrays):
  """Returns the SHA-256 of arrays, whatever file they are in."""
  digest = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    digest.update(repr((name, array.dtype.str, array.shape)).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def _backbone(model, weights, like, image_shape):
  """Returns (variables of the backbone, what else is to say)."""
  name, where = model['name'], weights.path
  # Some code saves {'params': ..} with a layout of PyTorch in it.
  if plain_weights.are_plain(weights.arrays) and not (
      name in torch_weights.LAYOUTS and _is_whole(weights, name)):
    return plain_weights.from_arrays(weights.arrays, like, where), 'all arrays'
  if name not in torch_weights.LAYOUTS:
    raise UserError(
        f'{where}: config.model.name is {name}: layouts of PyTorch are known '
        f'of {", ".join(torch_weights.LAYOUTS)}; other networks take a file of '
        '--mode=export')
  found = _found(name, weights)
  _check_size(model, found, where, image_shape)
  rest = list(found.left_out)
  others = (', left out ' + ', '.join(rest[:_MOST_NAMES])
            + f' and {len(rest) - _MOST_NAMES} more' * (
                len(rest) > _MOST_NAMES)) if rest else ''
  return found.variables, f'first kernel {found.first}{others}'


def _found(name, weights):
  """Returns the torch_weights.Found of a network.

  Raises:
    UserError: as `torch_weights.find`; of another network, says which.
  """
  try:
    return torch_weights.find(weights.arrays, name, weights.path)
  except UserError:
    for other in torch_weights.LAYOUTS:
      if other != name and _is_whole(weights, other):
        raise UserError(
            f'{weights.path} is of a {torch_weights.TITLES[other]}: take a '
            f'config whose config.model.name is {other}, not {name}') from None
    raise


def _is_whole(weights, name):
  try:
    torch_weights.find(weights.arrays, name, weights.path)
  except UserError:
    return False
  return True


def _check_size(model, found, where, image_shape):
  """Raises UserError unless a config's network has a file's sizes."""
  if found.channels != image_shape[-1]:
    raise UserError(
        f'{where}: {found.first} takes images of {found.channels} channels, '
        f'those of the data set have {image_shape[-1]}: name another '
        'config.data.name')
  if model['name'] != 'conv4':
    field, here, there = 'widths', tuple(model['widths']), found.widths
  elif len({*found.widths}) == 1:
    field, here, there = 'width', model['width'], found.widths[0]
  else:
    raise UserError(f'{where}: the blocks have {found.widths} channels, those '
                    'of conv4 are equally wide: write a network of your own '
                    '(docs/own.md)')
  if here != there:
    text = ','.join(map(str, np.ravel(there)))
    raise UserError(f'{where}: the blocks have {there} channels, config.model.'
                    f'{field} is {here}: set --config.model.{field}={text}')


def _check_options(model, weights):
  """Raises UserError where a file of `export` is of another network.

  Networks of equal shapes may differ, as by the pool of their features.
  """
  theirs = (weight_files.json_of(weights, _KEY) or {}).get('model')
  theirs = theirs if isinstance(theirs, dict) else {}
  ours = json.loads(json.dumps(model.to_dict()))
  for name in sorted({*ours} & {*theirs} - {'name', *_OF_TRAINING}):
    if ours[name] != theirs[name]:
      text = (','.join(map(str, theirs[name]))
              if isinstance(theirs[name], list) else theirs[name])
      raise UserError(
          f'{weights.path}: config.model.{name} is {model[name]}, and the run '
          f'that the file is of had another: set --config.model.{name}={text}')


def said_of(weights):
  """Returns what a file says that it was trained on, as data.json; or None.

  Args:
    weights: weight_files.Weights.
  """
  data = (weight_files.json_of(weights, _KEY) or {}).get('data')
  return data if trained.describes_data(data) else None


def _data(config, weights):
  """Returns what the weights were trained on, as build.describe_data."""
  c = config.data
  chosen = stores.constants(c.normalise, c.mean, c.std)
  data = said_of(weights)
  if data is None:
    source, variant = sources.find(c.name)
    known = source.image_shape and (chosen or source.mean and source.std)
    if not known:  # measured from the images
      return build.describe_data(stores.load(
          c.name, config.train.classes, c.dir, c.manual_dir, chosen))
    chosen = chosen or (source.mean, source.std)
    data = {'name': c.name, 'image_shape': list(source.image_shape),
            'classes': names_of(source.classes(variant), config.train.classes)}
  if c.mean or 'mean' not in data:
    mean, std = stores.per_channel(chosen, data['image_shape'][-1])
    data = {**data, 'mean': mean.tolist(), 'std': std.tolist()}
  return data
