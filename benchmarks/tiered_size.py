"""Builds a synthetic tiered-ImageNet of the true size and trains on it.

    python benchmarks/tiered_size.py [FOLDER] [--layout=d]

Writes 779,165 images into FOLDER (default: a temporary folder): the true
classes with their true numbers of images, which are noise of a tint per class,
84x84, 100 different ones per class. They are PNGs in pickles (layout a), arrays
in npz files (b), or JPEGs in class folders (d). Builds them by the real
command, loads every split once, and trains ten steps of CNN-4 with the training
pixels on the device and on the host. Prints the time, the images per second and
the peak memory of each command, and deletes everything. It takes about 24 GB of
disk in layout d, and 30 GB in layouts a and b.

The peak memory is given twice: as the system counts it, where pages of mapped
files count too, and without these (Linux only).
"""

import argparse
import io
import itertools
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

import numpy as np
from PIL import Image

from mtl_jax.data.sources import tiered_imagenet

DIFFERENT = 100  # JPEGs of a class
_SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}
_TASKS, _IMAGES = 2, 32  # of a step by configs/mini_5shot_cpu.py


def sizes(per_class=None):
  """Returns split -> wnid -> number of images, in label order."""
  true = tiered_imagenet.sizes()
  return {split: {wnid: per_class or true[wnid] for wnid in wnids}
          for split, wnids in tiered_imagenet.SOURCE.classes('').items()}


def classes(per_class=None, grain=1):
  """Yields (split, wnid, number of images, the different ones) in label order.

  Args:
    per_class: images of each class; None: the true numbers.
    grain: noise of each pixel below this; with 32, a PNG is as long as one of
      a photograph.

  Yields:
    The different images are uint8 [I, 84, 84, 3].
  """
  rng = np.random.default_rng(0)
  for split, of_split in sizes(per_class).items():
    for wnid, size in of_split.items():
      tint = rng.integers(0, 100, 3) + [60, 40, 10]
      coarse = np.uint8(rng.integers(
          0, 90, (min(size, DIFFERENT), 12, 12, 3)) + tint)
      fine = coarse.repeat(7, 1).repeat(7, 2)
      if grain > 1:
        fine = fine + rng.integers(0, grain, fine.shape, np.uint8)
      yield split, wnid, size, fine


def encoded(image, kind):
  """Returns an image as bytes."""
  content = io.BytesIO()
  Image.fromarray(image).save(content, kind, quality=75, compress_level=1)
  return content.getvalue()


def write_folders(folder, per_class):
  """Writes JPEGs in class folders, layout d."""
  for split, wnid, size, images in classes(per_class):
    place = folder / _SPLITS[split] / wnid
    place.mkdir(parents=True)
    jpegs = [encoded(image, 'JPEG') for image in images]
    for i in range(size):
      (place / f'{wnid}_{i}.JPEG').write_bytes(jpegs[i % len(jpegs)])


def write_labels(folder, per_class):
  """Writes what layouts a and b say of their images."""
  folder.mkdir(parents=True)
  for split, of_split in sizes(per_class).items():
    labels = np.repeat(np.arange(len(of_split)), list(of_split.values()))
    with open(folder / f'{_SPLITS[split]}_labels.pkl', 'wb') as file:
      pickle.dump({'label_specific': labels,
                   'label_specific_str': list(of_split)}, file, 2)


def write_pickles(folder, per_class):
  """Writes a list of PNGs for each split, layout a."""
  write_labels(folder, per_class)
  for split, of_split in itertools.groupby(
      classes(per_class, grain=32), key=lambda of_class: of_class[0]):
    pngs = []
    for _, _, size, images in of_split:
      different = [np.frombuffer(encoded(image, 'PNG'), np.uint8)[:, None]
                   for image in images]
      pngs += [different[i % len(different)] for i in range(size)]
    with open(folder / f'{_SPLITS[split]}_images_png.pkl', 'wb') as file:
      pickler = pickle.Pickler(file, 4)
      pickler.fast = True  # write an image as often as it is in the list
      pickler.dump(pngs)


def write_arrays(folder, per_class):
  """Writes an array for each split, BGR as OpenCV decodes, layout b."""
  write_labels(folder, per_class)
  for split, of_split in itertools.groupby(
      classes(per_class, grain=32), key=lambda of_class: of_class[0]):
    total = sum(sizes(per_class)[split].values())
    header = {'descr': '|u1', 'fortran_order': False,
              'shape': (total, 84, 84, 3)}
    with zipfile.ZipFile(folder / f'{_SPLITS[split]}_images.npz',
                         'w') as archive, archive.open(
                             'images.npy', 'w', force_zip64=True) as file:
      np.lib.format.write_array_header_1_0(file, header)
      for _, _, size, images in of_split:
        for i in range(size):
          file.write(images[i % len(images), ..., ::-1].tobytes())


WRITE = {'a': write_pickles, 'b': write_arrays, 'd': write_folders}


def measured(command, env, codes=(0,)):
  """Runs a command; returns (seconds, peak MB, peak MB without mapped files).

  Args:
    command: arguments.
    env: variables.
    codes: exit codes of a command that did what it should.

  Raises:
    SystemExit: it ended with another one.
  """
  start = time.monotonic()
  process = subprocess.Popen(command, env=env, stdout=sys.stderr)
  watch = _Watch(process.pid)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  own = watch.end()
  if process.returncode not in codes:
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


def run(folder, layout, per_class, steps, places):
  """Prints the table; returns the exit code."""
  print('| command | images | time (s) | images per second | peak memory (MB) '
        '| without mapped files (MB) |\n|---|---|---|---|---|---|', flush=True)
  start = time.monotonic()
  WRITE[layout](folder / 'files', per_class)
  count = sum(sum(of.values()) for of in sizes(per_class).values())
  print(f'{count:,} images written in {time.monotonic() - start:.0f} s',
        file=sys.stderr, flush=True)
  env = {**os.environ, 'MTL_JAX_DATA': str(folder / 'data')}
  data = [sys.executable, '-m', 'mtl_jax.data']
  _row(f'data build, layout {layout}', count, *measured(
      [*data, 'build', 'tiered_imagenet', f'--manual_dir={folder / "files"}',
       *(['--counts=any'] if per_class else [])], env))
  shutil.rmtree(folder / 'files')  # it is not read again, and takes room
  _row('data check, which decodes and keeps the pixels', count, *measured(
      [*data, 'check', 'tiered_imagenet'], env,
      codes=(0, 2)))  # noise has other colours than the published images
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
  parser.add_argument('--layout', choices=WRITE, default='d',
                      help='of docs/tiered_imagenet.md')
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
    return run(folder, args.layout, args.per_class, args.steps, args.places)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
  sys.exit(main())
