"""Start a run from the weights of another one, or of a file.

config.init_from names the other run, config.weights the file.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax import files, weight_files
from mtl_jax.errors import UserError
from mtl_jax.run import checkpoint, trained, weights, workdir


class Start(NamedTuple):
  """What a run starts from.

  state: TrainState before the first step.
  line: says whose weights it has; '' for random ones.
  """

  state: Any
  line: str = ''


def trained_before(config):
  """Returns what the first weights of a run were trained on: [{name, classes}].

  It is empty for random weights, and where nothing says it: a file without
  such words, or a run that is gone, without which a run may resume.
  """
  try:
    if config.weights:
      data = weights.said_of(weight_files.read(config.weights))
    elif config.init_from:
      data = trained.read_data(files.at(config.init_from))
    else:
      data = None
  except UserError:
    return []
  return [{'name': data['name'], 'classes': data['classes']},
          *data.get('before', [])] if data else []


def load(config, path, initial, data):
  """Returns the Start of a run.

  The run in config.init_from gives all of its best variables if it has the
  same method and training classes. Otherwise it gives its backbone, and what
  else the method has is random. The file in config.weights gives a backbone.
  Optimizer and schedule begin anew.

  Args:
    config: of the new run.
    path: its workdir. Where a state is saved there, the run resumes from it,
      and nothing else is read.
    initial: its state with random weights.
    data: what it trains on, of build.describe_data.

  Raises:
    UserError: there is no such run or file, or its network is another one.
  """
  if checkpoint.last_step(path) is not None:
    return Start(initial)
  if config.weights:
    backbone, line = weights.read(
        config.model, weight_files.read(config.weights), initial.variables,
        data['image_shape'])
    variables = weights.put(backbone, initial.variables)
    return Start(initial.replace(variables=variables), f'first weights: {line}')
  if not config.init_from:
    return Start(initial)
  source = files.at(config.init_from)
  if source == path:
    raise UserError(f'--init_from is {source}, the workdir itself: name the '
                    'workdir of another run')
  theirs = workdir.saved_config(source)
  theirs.parallel.cpu_devices = config.parallel.cpu_devices
  model = trained.load(source, theirs)
  ours, others = initial.variables, model.variables
  whole = (config.method.name == theirs.method.name
           and data['classes'] == model.data['classes']
           and shapes(ours) == shapes(others))
  if not whole:
    check_network(config, theirs, source, ours, others)
    params = {**ours['params'], 'backbone': others['params']['backbone']}
    others = {**ours, 'params': params, 'batch_stats': others['batch_stats']}
  # Through the host: not bound to the device that they were loaded on.
  variables = jax.tree.map(
      lambda mine, x: jnp.asarray(np.asarray(x), mine.dtype), ours, others)
  return Start(
      initial.replace(variables=variables),
      f'first weights: {"all" if whole else "the backbone"} of step '
      f'{model.step} of {source}')


def check_network(config, theirs, source, ours, others):
  """Raises UserError unless the backbones of two runs are the same.

  Args:
    config, theirs: of the new run and of the other.
    source: workdir of the other.
    ours, others: their variables.
  """
  mine, there = (
      shapes({'params': v['params'].get('backbone'), 'batch_stats':
              v['batch_stats']}) for v in (ours, others))
  if mine == there and config.model.name == theirs.model.name:
    return
  names = sorted({*config.model} & {*theirs.model})
  differs = [(f'config.model.{n}', theirs.model[n], config.model[n])
             for n in names if theirs.model[n] != config.model[n]]
  differs = differs or [
      (n, there.get(n), mine.get(n)) for n in sorted({*mine, *there})
      if there.get(n) != mine.get(n)][:1]
  text = '; '.join(f'{n} is {before}, not {now}' for n, before, now in differs)
  raise UserError(f'--init_from: {source} has another network, whose {text}: '
                  'set it so, or name another run')


def shapes(tree):
  """Returns path -> shape of the arrays of a tree."""
  return {jax.tree_util.keystr(path): x.shape
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}
