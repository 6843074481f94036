"""Processes of a test: `of_processes.py ADDRESS N I FOLDER METHODS WAYS`.

Each does a step of every method, three in every way, and a run of the command
line. Process 0 writes what the test compares with one process.
"""

import json
import os
import pathlib
import pickle
import subprocess
import sys

import command
import jax
import numpy as np
from conftest import FAST_COMPILES, ROOT

from launch import local
from mtl_jax import main, processes
from mtl_jax.data import store
from mtl_jax.errors import UserError
from mtl_jax.run import agreement


def start(folder, count, methods=(), ways=()):
  """Starts processes on loopback; returns (stdout, stderr, code) of each."""
  address = f'127.0.0.1:{local.free_port()}'
  env = {**os.environ, 'XLA_FLAGS': FAST_COMPILES,
         'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}
  started = [subprocess.Popen(
      [sys.executable, __file__, address, str(count), str(i), folder,
       ' '.join(methods), ' '.join(ways)], env=env, cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(count)]
  ended = [(*p.communicate(timeout=3600), p.returncode) for p in started]
  assert [code for *_, code in ended] == [0] * count, ended
  return ended


def read(folder):
  """Returns what process 0 has written: 'steps', 'ways' and so on."""
  return pickle.loads((folder / 'result.pickle').read_bytes())


def steps(step, methods):
  """Returns method -> variables after a step in float64, of CNN-4."""
  found = {}
  with jax.enable_x64(True):
    for method in methods:
      config = step.small_config(method, **step.RATES.get(method, {}))
      found[method] = step.in_float64(config, 1).variables
  return found


def other_ways(step, ways):
  """Returns 'PLACE-HOW' -> variables of MTL after three steps in that way."""
  def of(place, how):
    if place == 'host':
      return step.from_host(1, how)
    return step.run(*step.make(step.small_config('mtl'), 1, how), [None] * 3)

  return {way: of(*way.split('-'))[0].variables for way in ways}


def messages():
  """Returns what each process is told where something differs."""
  number = jax.process_index()

  def fail():
    if number:
      raise UserError('no such file')

  def images():  # those of process 1 differ in a pixel
    pixels = np.zeros((2, 1, 1, 1), np.uint8)
    pixels[-1] = number
    agreement.check_data({'test': store.Store(
        pixels, np.array([0, 2]), ('a',), np.zeros(1), np.ones(1), 'x',
        'test')})

  told = []
  for check in (lambda: processes.agree({'seed': number}, 'config'),
                images, lambda: processes.together(fail),
                lambda: processes.by_leader(lambda: fail() or 'read')):
    try:
      told.append(check())
    except UserError as error:
      told.append(str(error))
  return processes.texts(json.dumps(told))


def parts():
  """Returns the squares of 0 to 4, which the processes share."""
  own = processes.mine(list(range(5)))
  return [int(x) for x in processes.joined(
      [jax.numpy.int32(i * i) for i in own], 5)]


if __name__ == '__main__':
  address, count, number, folder, methods, ways = sys.argv[1:]
  folder = pathlib.Path(folder)
  processes.start(processes.Place(address, int(count), int(number), 120, 60),
                  'test')
  import test_step
  result = {'steps': steps(test_step, methods.split()),
            'ways': other_ways(test_step, ways.split()),
            'messages': messages(), 'parts': parts()}
  if processes.leads():
    (folder / 'result.pickle').write_bytes(pickle.dumps(result))
  # It has joined the others already.
  sys.exit(main.main(command.arguments(
      folder / 'run', config__train__max_epochs=2, config__train__meta_batch=4,
      config__parallel__devices=1, config__eval__heads='logistic,own')))
