"""Runs mtl_jax.main, and kills itself with SIGKILL at a moment of its life.

The arguments are a moment, if it is to be killed, and the flags.
"""

import os
import pathlib
import signal
import sys

from mtl_jax import main as command
from mtl_jax.run import checkpoint, metrics


def die(*_, **__):
  os.kill(os.getpid(), signal.SIGKILL)


def between_steps(limit):
  fetch = metrics.fetch

  def wrapped(pending, first_step):
    if first_step >= limit:
      die()
    return fetch(pending, first_step)
  metrics.fetch = wrapped


def at_save(which, limit, inside):
  save = checkpoint.save

  def wrapped(manager, step, state, *pending, **how):
    if (manager.directory.name, step) == (checkpoint.FOLDERS[which], limit):
      if not inside:
        die()
      # Orbax writes everything, and dies as it gives the folder its name.
      pathlib.Path.rename = pathlib.Path.replace = die
      os.rename = os.replace = die
    save(manager, step, state, *pending, **how)
  checkpoint.save = wrapped


# Moment -> (how, step at which it comes, step of the saved state before it),
# in a run with four steps an epoch and a record of every two.
MOMENTS = {
    'between two steps': (lambda: between_steps(6), 6, 4),
    'inside the first save, of the best': (
        lambda: at_save('best', 4, inside=True), 4, 0),
    'inside the save of the latest': (
        lambda: at_save('latest', 8, inside=True), 8, 4),
    'between the best of the first epoch and its save': (
        lambda: at_save('latest', 4, inside=False), 4, 0),
    'between the record of an epoch and its save': (
        lambda: at_save('latest', 8, inside=False), 8, 4),
}
# The same in a run that saves its state after every step.
WITHIN_AN_EPOCH = {
    'inside a save within an epoch': (
        lambda: at_save('latest', 7, inside=True), 7, 6),
    'while the metrics of a step have no record yet': (
        lambda: between_steps(7), 8, 7),
}


def main():
  """Returns the exit code of the command, if it lives."""
  moments = MOMENTS | WITHIN_AN_EPOCH
  if sys.argv[1] in moments:
    moments[sys.argv.pop(1)][0]()
  return command.main()
