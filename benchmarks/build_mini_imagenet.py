"""Builds mini_imagenet from every layout: same pixels, time, peak memory.

    python benchmarks/build_mini_imagenet.py FILES [FOLDER]

FILES holds the published lists and zips. Loose images, class folders, zips of
class folders, lists with other headers and the pickles of layouts a and b are
written to FOLDER (about 6 GB; default: a temporary folder, which is removed at
the end) and built there, each in a process of its own.
"""

import argparse
import csv
import hashlib
import multiprocessing
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

import numpy as np

from mtl_jax.data import pictures

CSVS = {'train': 'train.csv', 'validation': 'val.csv', 'test': 'test.csv'}
CACHE = 'mini-imagenet-cache-{}.pkl'
CATEGORY = 'miniImageNet_category_split_{}.pickle'


def write_loose(files, folder):
  """Layout c, loose."""
  folder.mkdir()
  for name in CSVS.values():
    shutil.copyfile(files / name, folder / name)
  for path in sorted(files.glob('*.zip')):
    with zipfile.ZipFile(path) as archive:
      archive.extractall(folder)


def listed(loose, split):
  """Returns the (wnid, file name) of a split, by class and name."""
  with open(loose / CSVS[split], newline='') as file:
    rows = list(csv.reader(file))[1:]
  return sorted((wnid, name) for name, wnid in rows)


def write_folders(loose, folder):
  """Layout d, links to the loose images."""
  for split, name in zip(CSVS, ('train', 'val', 'test'), strict=True):
    for wnid, image in listed(loose, split):
      (folder / name / wnid).mkdir(parents=True, exist_ok=True)
      os.link(loose / 'images' / image, folder / name / wnid / image)


def write_wrapped(loose, folder):
  """Layout d, two folders deeper."""
  write_folders(loose, folder / 'downloads' / 'miniImageNet')


def write_hundred(loose, folder):
  """Layout e: the 100 class folders in one, links to the loose images."""
  for split in CSVS:
    for wnid, image in listed(loose, split):
      (folder / wnid).mkdir(parents=True, exist_ok=True)
      os.link(loose / 'images' / image, folder / wnid / image)


def write_zips_of_folders(loose, folder):
  """Layout d, a zip for each split with the class folders in it."""
  folder.mkdir()
  for split, name in zip(CSVS, ('train', 'val', 'test'), strict=True):
    with zipfile.ZipFile(folder / f'{name}.zip', 'w') as archive:
      for wnid, image in listed(loose, split):
        archive.write(loose / 'images' / image, f'{name}/{wnid}/{image}')


def write_other_headers(loose, folder):
  """Layout c, loose, with lists that begin with a column of numbers."""
  (folder / 'images').mkdir(parents=True)
  for split, name in CSVS.items():
    rows = listed(loose, split)
    with open(folder / name, 'w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(['', 'class_name', 'path'])
      writer.writerows((i, wnid, f'images/{image}')
                       for i, (wnid, image) in enumerate(rows))
    for _, image in rows:
      os.link(loose / 'images' / image, folder / 'images' / image)


# Name of a layout -> what writes it from the loose images.
LAID_OUT = {
    'd': write_folders, 'd, two folders deeper': write_wrapped,
    'd, zips of class folders': write_zips_of_folders,
    'e, 100 folders in one': write_hundred,
    'c, other headers': write_other_headers}


def write_pickles(loose, cache, category):
  """Layouts a and b, of the decoded images."""
  cache.mkdir()
  category.mkdir()
  first = 0
  for split, names in zip(CSVS, (('train', 'train_phase_train'),
                                 ('val', 'val'), ('test', 'test')),
                          strict=True):
    rows = listed(loose, split)
    images = np.stack([
        np.asarray(pictures.decode((loose / 'images' / name).read_bytes()))
        for _, name in rows])
    ids = {}
    for i, (wnid, _) in enumerate(rows):
      ids.setdefault(wnid, []).append(i)
    numbers = {wnid: first + i for i, wnid in enumerate(ids)}
    first += len(ids)
    with open(cache / CACHE.format(names[0]), 'wb') as file:
      pickle.dump({'image_data': images, 'class_dict': ids}, file, 4)
    with open(category / CATEGORY.format(names[1]), 'wb') as file:
      pickle.dump({'data': images, 'catname2label': numbers,
                   'labels': [numbers[wnid] for wnid, _ in rows]}, file, 4)


def build(files, folder):
  """Builds in this process and prints what it took."""
  from mtl_jax.data import store

  start = time.perf_counter()
  built = store.prepare('mini_imagenet', folder, files)
  seconds = time.perf_counter() - start
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  size = sum(path.stat().length for path in built.data_path.iterdir()) / 2**20
  print(f'built in {seconds:.1f} s, peak memory {memory:.0f} MiB, '
        f'{size:.0f} MiB on disk', flush=True)
  digest = hashlib.sha256()
  for split in CSVS:
    loaded = store.load('mini_imagenet', split, folder)
    digest.update(loaded.images)
    digest.update(loaded.offsets)
    digest.update(' '.join(loaded.class_names).encode())
  print(digest.hexdigest())


def build_apart(files, folder):
  """Builds in a process of its own; returns what it printed."""
  return subprocess.run(
      [sys.executable, __file__, '--one', str(files), str(folder)],
      stdout=subprocess.PIPE, text=True, check=True).stdout


def compare(files, folder):
  """Builds from every layout; returns the exit code."""
  loose, cache, category = (
      folder / name for name in ('loose', 'cache', 'category'))
  folder.mkdir(parents=True, exist_ok=True)
  write_loose(files, loose)
  laid_out = {name: folder / f'layout_{i}' for i, name in enumerate(LAID_OUT)}
  for name, write in LAID_OUT.items():
    write(loose, laid_out[name])
  # A process starts with the peak memory of its parent. So the pickles, which
  # need much, are written by another process than this one.
  writer = multiprocessing.get_context('spawn').Process(
      target=write_pickles, args=(loose, cache, category))
  writer.start()
  writer.join()
  digests = set()
  for name, source in (('c, zips', files), ('c, loose', loose), ('a', cache),
                       ('b', category), *laid_out.items()):
    data = folder / 'data'
    *lines, digest = build_apart(source, data).splitlines()
    print(f'layout {name}: {lines[-1]}; store {digest[:16]}', flush=True)
    digests.add(digest)
    shutil.rmtree(data)
  same = len(digests) == 1
  print('the same store from all' if same else 'STORES DIFFER')
  return 0 if same else 1


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('files', type=pathlib.Path, metavar='FILES')
  parser.add_argument('folder', type=pathlib.Path, metavar='FOLDER', nargs='?')
  parser.add_argument('--one', action='store_true',
                      help='build FILES into FOLDER, in this process')
  return parser.parse_args(argv)


def main(argv=None):
  """Builds one layout, or compares all; returns the exit code."""
  args = parse(argv)
  if args.one:
    return build(args.files, args.folder)
  if args.folder:
    return compare(args.files, args.folder)
  with tempfile.TemporaryDirectory() as folder:
    return compare(args.files, pathlib.Path(folder))


if __name__ == '__main__':
  sys.exit(main())
