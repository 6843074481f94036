"""Signals that end a process at once; this module imports nothing slow."""

import contextlib
import os
import signal

PREEMPTED = 75  # exit code of SIGTERM: the same command resumes
STOPPED = 130  # and of Ctrl-C
CODES = {signal.SIGINT: STOPPED, signal.SIGTERM: PREEMPTED}


@contextlib.contextmanager
def ends(last_line, numbers=tuple(CODES), stderr=lambda: 2):
  """Lets signals end the process at once, with one line and their code.

  Python would raise an exception wherever it is. In a callback of JAX that
  exception is lost, and the run goes on. Elsewhere the interpreter would end
  while threads of JAX still compute, and may crash. Files are written whole or
  not at all, so the process may end at any moment.

  Args:
    last_line: () -> text for stderr.
    numbers: of the signals, keys of CODES.
    stderr: () -> number of the file of stderr.
  """
  def end(number, _):
    os.write(stderr(), f'\n{last_line()}\n'.encode())
    os._exit(CODES[number])

  before = {}
  try:
    for number in numbers:
      before[number] = signal.signal(number, end)
  except ValueError:  # not the main thread, which alone may be interrupted
    pass
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def stops(tag):
  """Returns `ends` for a program that has not begun.

  Importing JAX takes seconds, in which Python would show a traceback, or leave
  a scheduler without the code that means: start the same again. A handler that
  is there already stays, and a signal that is ignored stays so.

  Args:
    tag: what the line begins with.
  """
  return ends(lambda: f'{tag}: stopped before it began', [
      number for number in CODES if signal.getsignal(number) in (
          signal.SIG_DFL, signal.default_int_handler)])
