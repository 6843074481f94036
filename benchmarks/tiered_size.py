"""Builds a synthetic tiered-ImageNet of the true size and trains on it.

    python benchmarks/tiered_size.py [FOLDER]

Writes 779,165 images as class folders (layout d) into FOLDER (default: a
temporary folder): the true classes with their true numbers of images, which
are noise of a tint per class, 84x84 JPEGs, 100 different ones per class. Builds
them by the real command, loads every split once, and trains ten steps of CNN-4
with the training pixels on the device and on the host. Prints the time, the
images per second and the peak memory of each command, and deletes everything.
It takes about 24 GB of disk.

The peak memory is given twice: as the system counts it, where pages of mapped
files count too, and without these (Linux only).
"""

import argparse
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from mtl_jax.data.sources import tiered_imagenet

DIFFERENT = 100  # JPEGs of a class
_SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_TASKS, _IMAGES = 2, 32  # of a step by configs/mini_5shot_cpu.py


def write(folder, per_class=None):
  """Writes class folders; returns the number of images.

  Args:
    folder: pathlib.Path.
    per_class: images of each class; None: the true numbers.
  """
  rng, count = np.random.default_rng(0), 0
  sizes = tiered_imagenet.sizes()
  for split, wnids in tiered_imagenet.SOURCE.classes('').items():
    for wnid in wnids:
      place = folder / _SPLITS[split] / wnid
      place.mkdir(parents=True)
      size = per_class or sizes[wnid]
      tint = rng.integers(0, 100, 3) + [60, 40, 10]
      jpegs = [_jpeg(rng, tint) for _ in range(min(size, DIFFERENT))]
      for i in range(size):
        (place / f'{wnid}_{i}.JPEG').write_bytes(jpegs[i % DIFFERENT])
      count += size
  return count


def _jpeg(rng, tint):
  coarse = np.uint8(rng.integers(0, 90, (12, 12, 3)) + tint)
  encoded = io.BytesIO()
  Image.fromarray(coarse).resize((84, 84), Image.Resampling.NEAREST).save(
      encoded, 'JPEG', quality=75)
  return encoded.getvalue()


def measured(command, env):
  """Runs a command; returns (seconds, peak MB, peak MB without mapped files).

  Raises:
    SystemExit: the command failed.
  """
  start = time.monotonic()
  process = subprocess.Popen(command, env=env, stdout=sys.stderr)
  watch = _Watch(process.pid)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  own = watch.end()
  if process.returncode:
    sys.exit(f'exit code {process.returncode}: {" ".join(command)}')
  kilobytes = usage.ru_maxrss / (1024 if sys.platform == 'darwin' else 1)
  return time.monotonic() - start, kilobytes * 1024 / 1e6, own


class _Watch:
  """Looks at a process ten times a second."""

  def __init__(self, pid):
    self._file = pathlib.Path(f'/proc/{pid}/status')
    self._most, self._ended = 0, threading.Event()
    self._thread = threading.Thread(target=self._look)
    self._thread.start()

  def _look(self):
    while not self._ended.wait(0.1):
      try:
        for line in self._file.read_text().splitlines():
          if line.startswith('RssAnon'):
            self._most = max(self._most, int(line.split()[1]))
      except OSError:  # it has ended, or this is no Linux
        pass

  def end(self):
    """Returns the peak in MB."""
    self._ended.set()
    self._thread.join()
    return self._most * 1024 / 1e6


def _row(what, images, seconds, peak, own):
  print(f'| {what} | {images:,} | {seconds:,.0f} | {images / seconds:,.0f} | '
        f'{peak:,.0f} | {own:,.0f} |', flush=True)


def training(place, folder, steps):
  """Returns the command that trains with the pixels on `place`."""
  values = {'data.name': 'tiered_imagenet', 'data.store': place,
            'train.epoch_tasks': steps * _TASKS, 'train.max_epochs': 1,
            'optimizer.decay_epochs': 1, 'validation.tasks': 2,
            'validation.shots': 1, 'validation.queries': 1, 'eval.shots': 1,
            'eval.queries': 1, 'eval.tasks': 2, 'eval.baselines': False,
            'log.every_steps': 1}
  return [sys.executable, '-m', 'mtl_jax.main', '--config=mini_5shot_cpu',
          f'--workdir={folder / place}',
          *(f'--config.{name}={value}' for name, value in values.items())]


def losses(folder):
  """Returns the loss of every step of a run."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [record['loss'] for record in map(json.loads, lines)
          if 'loss' in record]


def run(folder, per_class, steps, places):
  """Prints the table; returns the exit code."""
  print('| command | images | time (s) | images per second | peak memory (MB) '
        '| without mapped files (MB) |\n|---|---|---|---|---|---|', flush=True)
  start = time.monotonic()
  count = write(folder / 'files', per_class)
  print(f'{count:,} images written in {time.monotonic() - start:.0f} s',
        file=sys.stderr, flush=True)
  env = {**os.environ, 'MTL_JAX_DATA': str(folder / 'data')}
  data = [sys.executable, '-m', 'mtl_jax.data']
  _row('data build', count, *measured(
      [*data, 'build', 'tiered_imagenet', f'--manual_dir={folder / "files"}',
       *(['--counts=any'] if per_class else [])], env))
  _row('data check, which decodes and keeps the pixels', count, *measured(
      [*data, 'check', 'tiered_imagenet'], env))
  kept = sum(path.stat().st_size for path in (folder / 'data').rglob('*.npy'))
  for place in places:
    _row(f'{steps} steps, pixels on the {place}', steps * _TASKS * _IMAGES,
         *measured(training(place, folder, steps), env))
  print(f'\nThe kept pixels take {kept / 1e6:,.0f} MB.')
  different = {tuple(losses(folder / place)) for place in places}
  if len(places) > 1:
    print('Losses: ' + ('DIFFERENT' if len(different) > 1 else 'the same'))
  return 0 if len(different) < 2 else 1


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER', nargs='?',
                      help='an empty or new folder, which is deleted')
  parser.add_argument('--per_class', type=int, default=None, metavar='N',
                      help='images of each class; default: the true numbers')
  parser.add_argument('--steps', type=int, default=10)
  parser.add_argument('--places', nargs='*', choices=('device', 'host'),
                      default=['device', 'host'],
                      help='where the training pixels are, of each training')
  return parser.parse_args(argv)


def main(argv=None):
  """Measures and deletes; returns the exit code."""
  args = parse(argv)
  if args.folder and args.folder.exists() and any(args.folder.iterdir()):
    sys.exit(f'{args.folder} is not empty: name another folder')
  folder = args.folder or pathlib.Path(tempfile.mkdtemp())
  try:
    return run(folder, args.per_class, args.steps, args.places)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
  sys.exit(main())
