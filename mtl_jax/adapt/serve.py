"""Classify pictures as they come: named on stdin, or new in a folder.

A picture gets one line of JSON on stdout: {"file", "predicted",
"probabilities"}, with a "note" where the answer is doubtful; or {"file",
"error"}. The loop ends with its input, by Ctrl-C or by SIGTERM.
"""

import contextlib
import json
import os
import queue
import signal
import stat
import sys
import threading
import time

import numpy as np

from mtl_jax import program
from mtl_jax.adapt import classifier as classifiers
from mtl_jax.adapt import classify
from mtl_jax.data import pictures
from mtl_jax.errors import UserError

STDIN = '-'
_WAIT = 0.2  # seconds from one look at a folder, or at a signal, to the next
# A file that has not changed for _SETTLED seconds is read. Where it cannot be
# read its writer may only have paused, and has _GIVEN_UP seconds to go on.
_SETTLED, _GIVEN_UP = 0.5, 5.


def check(learner):
  """Raises UserError for a learner that needs many pictures at a time."""
  if learner.together:
    raise UserError(
        'pictures cannot be classified one by one where they influence each '
        f'other (BatchNorm: {learner.options["batch_norm"]}): add '
        '--batch_norm=support, or choose another --head')


def answers(ready):
  """Returns path -> what is said of a picture.

  One picture is classified at a time, by programs that are compiled here.
  """
  model, classifier, invert, *_ = ready
  shape = model.data['image_shape']
  classifier = classifier._replace(learner=classifier.learner._replace(batch=1))

  def answer(path):
    name = pictures.text(path)
    try:
      image, bits = pictures.prepare_and_guess(path, shape, invert=invert)
      image = image[None]
      probabilities, = classifiers.probabilities(classifier, image)
    except UserError as error:
      return {'file': name, 'error': str(error)}
    said = classify.row(name, ready.support.classes, probabilities)
    del said['true']
    notes = [classify.white_background(invert)] * bool(
        pictures.look_inverted(image, model.data['mean']).any())
    notes += [f'it was read as {bits} bits per pixel, as it uses no more'
              ] * bool(bits)
    return {**said, 'note': '; '.join(notes)} if notes else said

  classifiers.probabilities(classifier, np.zeros((1, *shape), np.uint8))
  return answer


def from_stdin(answer, write, stopped):
  """Answers each line of stdin, the path of a picture, until it ends.

  Args:
    answer: path -> what is said.
    write: takes what is said.
    stopped: threading.Event that ends the loop between two pictures.
  """
  if sys.stdin is None:
    raise UserError('--query - is stdin, which is closed: write paths to it')
  lines = queue.Queue(maxsize=100)
  threading.Thread(target=_read_lines, args=(lines.put,), daemon=True).start()
  while not stopped.is_set():
    try:
      line = lines.get(timeout=_WAIT)
    except queue.Empty:
      continue
    if line is None:
      return
    if line:
      write(answer(os.fsdecode(line)))


def _read_lines(put):
  """Puts each line of stdin as bytes, and None at its end.

  It reads the descriptor itself: a thread that waits within sys.stdin would
  hold a lock that Python needs to end.
  """
  rest = b''
  with contextlib.suppress(OSError):  # a terminal that is gone is its end, too
    while chunk := os.read(sys.stdin.fileno(), 65536):
      *whole, rest = (rest + chunk).split(b'\n')
      for line in whole:
        put(line.rstrip(b'\r'))
  put(rest)
  put(None)


def from_folder(folder, answer, write, stopped):
  """Answers each picture in a folder, at any depth, and each new one.

  Those that are there at the start are answered too. A picture that is written
  anew is a new one.

  Args:
    folder: path.
    answer, write, stopped: as in `from_stdin`.

  Raises:
    UserError: the folder is not there, or no longer.
  """
  known = {}  # path -> (what identifies its contents, since when, answered)
  while not stopped.is_set():
    found = _pictures_in(folder)
    known = {path: seen for path, seen in known.items() if path in found}
    for path, contents in found.items():
      now = time.monotonic()
      before, since, answered = known.get(path, (None, now, False))
      if contents != before:
        known[path] = contents, now, False
      elif not answered and now - since >= _SETTLED:
        said = answer(path)
        if 'error' not in said or now - since >= _GIVEN_UP:
          known[path] = contents, since, True
          write(said)
      if stopped.is_set():
        return
    stopped.wait(_WAIT)


def check_folder(folder):
  """Returns the path of --watch; UserError unless it is a folder."""
  path = os.path.expanduser(folder)
  if not os.path.isdir(path):
    raise UserError(f'--watch {folder} is not there, or no folder: name a '
                    'folder')
  return path


def _pictures_in(folder):
  """Returns path -> what identifies the contents of a picture, oldest first."""
  found = {}
  for path in pictures.below(check_folder(folder)):
    with contextlib.suppress(OSError):  # it was removed meanwhile
      state = os.stat(path)
      if not stat.S_ISREG(state.st_mode):
        continue
      found[path] = state.st_mtime_ns, state.st_size, state.st_ino
  return dict(sorted(found.items(), key=lambda item: item[1][0]))


def run(loop):
  """Runs loop(write, stopped) until it ends or is stopped.

  Ctrl-C and SIGTERM stop it after the picture that it is at. It also ends where
  nobody reads its lines any more.
  """
  stopped = threading.Event()
  before = {}
  with contextlib.suppress(ValueError):  # not the main thread
    for number in (signal.SIGINT, signal.SIGTERM):
      before[number] = signal.signal(number, lambda *_: stopped.set())
  try:
    loop(_write, stopped)
  except BrokenPipeError:
    program.silence(sys.stdout)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _write(said):
  print(json.dumps(said, allow_nan=False), flush=True)
