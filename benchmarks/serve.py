"""Measures how soon `mtl_jax.adapt` answers with a kept head, and how fast.

    python benchmarks/serve.py

Starts `--load_head=FILE --query -` several times, with an empty cache of
compiled programs. Each start is asked for one picture, and then for many. The
seconds are those from the start of the process to its first answer; images per
second are those of the pictures after it, which are read from files.

Without --checkpoint the network is CNN-4 with 64 filters on pictures of 84x84
in colour, with random weights: they change no time.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from mtl_jax import files
from mtl_jax.adapt import __main__ as adapt
from mtl_jax.config import base_config, set_method
from mtl_jax.run import build, checkpoint, trained, workdir

CLASSES, SHOTS = 5, 5


def make_run(path):
  """Writes the workdir of a network with random weights."""
  config = base_config()
  set_method(config, 'mtl', benchmark='mini_imagenet', shots=5, scale='cpu')
  config.update_from_flattened_dict({
      'model.name': 'conv4', 'data.name': 'mini_imagenet',
      'parallel.cpu_devices': 0})
  data = {'name': 'mini_imagenet', 'classes': ['x'] * 64,
          'image_shape': [84, 84, 3], 'mean': [0.5] * 3, 'std': [0.25] * 3}
  path = files.at(path)
  workdir.claim(path, config, data)
  manager = checkpoint.manager(path, 'best')
  checkpoint.save(manager, 0, build.initial_state(
      config, build.algorithm_of(config, 64), data['image_shape']))
  manager.close()


def make_pictures(folder, shape, count):
  """Writes JPEGs of the network's size; returns their paths."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True)
  paths = [folder / f'{i}.jpg' for i in range(count)]
  for path in paths:
    pixels = rng.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels[..., 0] if shape[-1] == 1 else pixels).save(path)
  return paths


def measure(flags, paths):
  """Starts the command once.

  Args:
    flags: that name checkpoint and head.
    paths: of the pictures, the first of which is asked for alone.

  Returns:
    (seconds to the first answer, images per second of the rest).
  """
  env = {k: v for k, v in os.environ.items()
         if k != 'JAX_COMPILATION_CACHE_DIR'}
  began = time.perf_counter()
  with subprocess.Popen(
      [sys.executable, '-m', 'mtl_jax.adapt', *flags, '--query=-'], env=env,
      text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL) as process:
    process.stdin.write(f'{paths[0]}\n')
    process.stdin.flush()
    lines = [process.stdout.readline()]
    first = time.perf_counter()
    writer = threading.Thread(target=_ask, args=(process.stdin, paths[1:]))
    writer.start()
    lines += list(process.stdout)
    end = time.perf_counter()
    writer.join()
  if len(lines) != len(paths) or any('"predicted"' not in x for x in lines):
    raise RuntimeError(f'{len(lines)} answers to {len(paths)} pictures, such '
                       f'as {lines[-1]}')
  return first - began, (len(paths) - 1) / (end - first)


def _ask(stdin, paths):
  for path in paths:
    stdin.write(f'{path}\n')
  stdin.close()


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', help='workdir of a run')
  parser.add_argument('--starts', type=int, default=5)
  parser.add_argument('--images', type=int, default=500)
  return parser.parse_args(argv)


def main(argv=None):
  """Prints each start and the medians."""
  given = parse(argv)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    run = given.checkpoint
    if run is None:
      run = folder / 'run'
      make_run(run)
    shape = trained.read_data(files.at(run))['image_shape']
    for i in range(CLASSES):
      make_pictures(folder / f'known/{i}', shape, SHOTS)
    paths = make_pictures(folder / 'new', shape, given.images + 1)
    head = folder / 'head.safetensors'
    flags = [f'--checkpoint={run}', f'--load_head={head}']
    with contextlib.redirect_stdout(io.StringIO()):
      assert not adapt.main([flags[0], f'--support={folder / "known"}',
                             f'--save_head={head}', '--head=logistic'])
    print(f'pictures of {"x".join(map(str, shape))}, {os.cpu_count()} cores')
    print('| start | seconds to the first answer | images a second after it '
          '|\n|---|---|---|')
    found = [measure(flags, paths) for _ in range(given.starts)]
  for i, (seconds, rate) in enumerate(found):
    print(f'| {i + 1} | {seconds:.2f} | {rate:.0f} |')
  seconds, rate = (statistics.median(x) for x in zip(*found, strict=True))
  print(f'| median | {seconds:.2f} | {rate:.0f} |')


if __name__ == '__main__':
  main()
