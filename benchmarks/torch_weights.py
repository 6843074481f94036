"""Compares networks of PyTorch with ours, from its files and into its modules.

    python benchmarks/torch_weights.py --peer_python=ENV/bin/python

ENV is an environment with torch and safetensors. For each network, the program
beside this one, `benchmarks/peers/torch_weights.py`, saves random weights and
statistics by torch.save, and computes features of images of the test split.

- `in`: the largest |ours - theirs| over the largest |theirs|, with that file;
- a meta-test of `--mode=evaluate --weights=..`, whose accuracy is shown;
- `out`: a run of one step that starts from the file is written by
  `--mode=export`, loaded into the module of PyTorch by a strict
  load_state_dict, and compared with our features of that run likewise.

Exits with 1 if a difference is above BOUND.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from mtl_jax import models
from mtl_jax.config import ConfigDict, base_config, set_method
from mtl_jax.data import augment
from mtl_jax.data import store as stores
from mtl_jax.run import evaluate_mode, loop, trained, weights

PEER = pathlib.Path(__file__).parent / 'peers' / 'torch_weights.py'
BOUND = 1e-4
NETWORKS = {
  'resnet12': {'name': 'resnet12', 'widths': (64, 160, 320, 640)},
  'resnet12_narrow': {'name': 'resnet12', 'widths': (64, 128, 256, 512)},
  'conv4': {'name': 'conv4', 'width': 64},
  'conv4_32': {'name': 'conv4', 'width': 32}}


def config_of(network, args, file):
  """Returns the config of a run of one step on a network."""
  c = base_config()
  c.data.name = args.data
  set_method(c, 'protonet', benchmark='glyphs', shots=5, scale='cpu')
  name = NETWORKS[network]['name']
  c.model = ConfigDict(
    {'name': name} | models.defaults(name) | NETWORKS[network])
  c.weights = str(file)
  c.train.update({'shots': 1, 'queries': 1, 'meta_batch': 1, 'epoch_tasks': 1,
                  'max_epochs': 1})
  c.augment.operations = ()
  c.validation.update({'tasks': 2, 'shots': 1, 'queries': 1,
                       'head': 'centroid'})
  c.eval.update({'tasks': args.tasks, 'heads': ('logistic',), 'queries': 5,
                 'baselines': False, 'normalise_features': False})
  c.log.progress = False
  return c


def run_peer(args, task, network, folder, images, *file):
  """Returns the peer's features of images [B, h, w, c], normalised."""
  np.save(folder / 'images.npy', images.transpose(0, 3, 1, 2))
  subprocess.run([args.peer_python, '-W', 'ignore', PEER, task, network, folder,
                  *file], check=True)
  return np.load(folder / 'features.npy')


def difference(model, images, theirs):
  """Returns the relative difference of our features from the peer's."""
  ours = np.asarray(model.features(images))
  if model.config.model.name == 'conv4':  # PyTorch flattens channels first
    side = [length // 16 for length in images.shape[1:3]]
    ours = ours.reshape(len(ours), *side, -1).transpose(0, 3, 1, 2).reshape(
      len(ours), -1)
  return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def compare(network, args, folder):
  """Returns (difference in, test.json's contents, difference out)."""
  config = config_of(network, args, folder / 'weights.pth')
  store = stores.load(args.data, 'test')
  images = np.array(store.images[:args.images])
  pixels = np.asarray(augment.normalise(images, store.mean, store.std))
  theirs = run_peer(args, 'write', network, folder, pixels)
  inward = difference(weights.load(config), images, theirs)
  test = evaluate_mode.evaluate_run(config, None, folder / 'test')
  loop.train_and_evaluate(config, folder / 'run')
  file = evaluate_mode.export(config, folder / 'run', folder / 'export')
  theirs = run_peer(args, 'read', network, folder, pixels, file)
  model = trained.load(folder / 'run', config)
  return inward, test, difference(model, images, theirs)


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peer_python', default='python3')
  parser.add_argument('--data', default='mini_imagenet')
  parser.add_argument('--networks', nargs='+', default=list(NETWORKS),
                      choices=list(NETWORKS))
  parser.add_argument('--images', type=int, default=32)
  parser.add_argument('--tasks', type=int, default=50)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints the table; returns 1 if a difference is above its bound."""
  args = parse(argv)
  print('| network | in | 5-way 5-shot | out |\n|---|---|---|---|')
  failed = False
  for network in args.networks:
    with tempfile.TemporaryDirectory() as folder:
      inward, test, outward = compare(network, args, pathlib.Path(folder))
    failed |= not max(inward, outward) <= BOUND
    print(f'| {network} | {inward:.0e} | {test["accuracy"]:.1%} +- '
          f'{test["ci95"]:.1%} | {outward:.0e} |', flush=True)
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
