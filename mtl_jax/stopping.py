"""Signals that end a training: SIGTERM, as before a preemption, and Ctrl-C."""

import contextlib
import itertools
import os
import signal

from jax.experimental import multihost_utils

from mtl_jax import early, processes


@contextlib.contextmanager
def noticed():
  """Yields asked() -> signal that asks to stop; None: none has.

  Within the context SIGTERM and Ctrl-C end nothing: the caller calls `asked`
  after every step, saves, and raises `ended`. A second one ends the process at
  once. All processes are told of the same step, however few of them get the
  signal: they must call `asked` equally often. JAX agrees on the step in the
  background, so that no step waits for it.
  """
  got, calls, before = [], itertools.count(), {}
  several = processes.count() > 1

  def notice(number, frame):
    if got:
      signal.signal(number, before[number] or signal.SIG_DFL)
      signal.raise_signal(number)
    got.append(number)
    if several:  # JAX takes SIGTERM as the notice of a preemption
      os.kill(os.getpid(), signal.SIGTERM)

  def asked():
    if not several:
      return got[0] if got else None
    stops = multihost_utils.reached_preemption_sync_point(next(calls))
    return (*got, signal.SIGTERM)[0] if stops else None

  try:
    # In several processes the handler of SIGTERM is JAX's.
    for number in (signal.SIGINT, *(() if several else (signal.SIGTERM,))):
      before[number] = signal.signal(number, notice)
  except ValueError:  # not the main thread, which alone gets signals
    pass
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler or signal.SIG_DFL)
    if several and before:
      signal.signal(signal.SIGTERM, lambda *_: os._exit(early.PREEMPTED))
  if got and not several:
    raise ended(got[0])


def ended(number):
  """Returns the exception that ends a run because of a signal."""
  return (KeyboardInterrupt() if number == signal.SIGINT
          else SystemExit(early.PREEMPTED))
