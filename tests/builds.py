"""Builds a data set in processes that meet a full disk, a kill, or each other.

    python tests/builds.py NAME FOLDER

NAME is of SOURCES. The files are written into FOLDER, and the data sets are
built in FOLDER/full, FOLDER/killed and FOLDER/two. The libraries are imported
once, and each process is a fork. Prints as JSON, for each case, the exit code
and the output of each process.
"""

import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time

import cifar100_fake
import own_source
import pytest
import tiered_imagenet_fake

from mtl_jax.data import __main__ as data_main
from mtl_jax.data import tfds_builder

# Name -> (writes the files into a folder, shrinks the data set).
SOURCES = {
    'cifar_fs': (lambda folder: cifar100_fake.write_tar(
        folder, cifar100_fake.python_files(), 'cifar-100-python'),
                 cifar100_fake.use),
    'tiered_imagenet': (tiered_imagenet_fake.write_npz,
                        tiered_imagenet_fake.use),
    'folder': (own_source.write_folder, lambda monkeypatch, data: (
        monkeypatch.setenv('MTL_JAX_DATA', str(data)))),
}
ROOM = 20_000  # bytes that a file may have on the full disk


def arguments(name, folder):
  """Returns the command that builds."""
  return ['build', str(folder / 'files')] if name == 'folder' else [
      'build', name, f'--manual_dir={folder / "files"}']


def start(name, folder, data, prepare=lambda: None):
  """Starts a build; returns its process and the files of its output."""
  outputs = [tempfile.NamedTemporaryFile('w+') for _ in range(2)]
  child = os.fork()
  if not child:
    for number, output in enumerate(outputs, 1):
      os.dup2(output.fileno(), number)
    SOURCES[name][1](pytest.MonkeyPatch(), folder / data)
    prepare()
    code = data_main.main(arguments(name, folder))
    sys.stdout.flush()
    os._exit(code)
  return child, outputs


def end(child, outputs):
  """Returns exit code, stdout and stderr."""
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  return [status, *(pathlib.Path(output.name).read_text()
                    for output in outputs)]


def at_image(number, does):
  """Does something when a build writes image `number` of a split."""
  check, count = tfds_builder._check_image, []

  def checked(*args):
    count.append(0)
    if len(count) == number:
      does()
    check(*args)
  tfds_builder._check_image = checked


def disk_is_full():
  resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def two_at_once(name, folder):
  """Starts a second build while the first one writes."""
  begun, met = folder / 'begun', folder / 'met'

  def meet():
    begun.touch()
    wait(met.exists)
  first = start(name, folder, 'two', lambda: at_image(3, meet))
  wait(begun.exists)
  # It writes no image.
  second = start(name, folder, 'two', lambda: at_image(1, die))
  wait(lambda: 'Building' in pathlib.Path(second[1][0].name).read_text())
  met.touch()
  return [end(*first), end(*second)]


def wait(condition):
  while not condition():
    time.sleep(.01)


def main(name, folder):
  SOURCES[name][0](folder / 'files')
  print(json.dumps({
      'full': [end(*start(name, folder, 'full', disk_is_full))],
      'killed': [end(*start(name, folder, 'killed', prepare)) for prepare in (
          lambda: at_image(5, die), lambda: None)],
      'two': two_at_once(name, folder)}))


if __name__ == '__main__':
  main(sys.argv[1], pathlib.Path(sys.argv[2]))
