"""How the user has called a program: for its messages and its help."""

import os
import pathlib
import sys

_INSTALLED = 'mtl-jax'  # how the names of the installed commands begin


def name(module):
  """Returns 'mtl-jax-data', or 'python -m mtl_jax.data' of that module."""
  return _installed() or f'python -m {module}'


def tag(module):
  """Returns what a message begins with: 'mtl-jax-data', or the module."""
  return _installed() or module


def usage(text, module):
  """Returns a docstring with the name by which the user called the module."""
  return text.replace(f'python -m {module}', name(module))


def show(text):
  """Prints a long text, of which a pipe may take only the beginning."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    silence(sys.stdout)


def silence(stream):
  """Lets what is written to a stream arrive nowhere, and never fail.

  What is left in it would be written, and fail, when Python ends.
  """
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)


def _installed():
  called = pathlib.Path(sys.argv[0]).stem
  return called if called.startswith(_INSTALLED) else ''
