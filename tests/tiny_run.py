"""Tiny runs within the process of a test, and what two runs have in common."""

import importlib.util

import command
import jax
from etils import epath

from mtl_jax.run import build, checkpoint, parts, workdir

SHORT = {'inner_steps': 1, 'cg_steps': 2, 'unroll': False}


def config_of(method='mtl', **changes):
  """Returns the config of a tiny run; `changes` with __ for dots."""
  spec = importlib.util.spec_from_file_location('quick', command.CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(method)
  config.update_from_flattened_dict({
      k.removeprefix('config.'): v for k, v in command.TINY.items()
      if 'config.method.' not in k})
  config.method.update({
      k: v for k, v in SHORT.items() if k in config.method})
  config.update_from_flattened_dict({
      'train.ways': 5, 'log.progress': False, 'parallel.devices': 1} | {
          k.replace('__', '.'): v for k, v in changes.items()})
  return config


def final_state(path):
  """Returns the last state of a run."""
  config = workdir.read_config(epath.Path(path))
  run = parts.make_run(config)
  like = build.initial_state(config, run.algorithm,
                             run.splits['train'].images.shape[1:])
  manager = checkpoint.manager(epath.Path(path), 'latest')
  return jax.device_get(checkpoint.restore(manager, like))


def lasting(records):
  """Returns records without the times, which differ from run to run."""
  return [{k: v for k, v in r.items() if 'second' not in k} for r in records]
