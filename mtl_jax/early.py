"""Signals before a program has begun: this module imports nothing slow."""

import contextlib
import os
import signal
import sys

PREEMPTED = 75  # exit code of SIGTERM: the same command resumes
STOPPED = 130  # and of Ctrl-C
CODES = {signal.SIGINT: STOPPED, signal.SIGTERM: PREEMPTED}


@contextlib.contextmanager
def stops(tag):
  """Lets Ctrl-C and SIGTERM end the process, with one line.

  Importing JAX takes seconds, in which Python would show a traceback, or leave
  a scheduler without the code that means: start the same again. A handler that
  is there already stays, and a signal that is ignored stays so.

  Args:
    tag: what the line begins with.
  """
  def end(number, _):
    os.write(2, f'\n{tag}: stopped before it began\n'.encode())
    os._exit(CODES[number])

  before = {}
  try:
    for number in CODES:
      if signal.getsignal(number) in (signal.SIG_DFL,
                                      signal.default_int_handler):
        before[number] = signal.signal(number, end)
  except ValueError:  # not the main thread, which alone gets signals
    pass
  try:
    yield
  finally:
    sys.stderr.flush()
    for number, handler in before.items():
      signal.signal(number, handler)
