"""Find a method, head, backbone or data set: a registered one or a user's.

A name that ends in .py names a file of the user's own, which has what the
package's own files of that kind have. The name is kept in the config of a
run, so that the run is resumed, tested and adapted without more.
"""

import functools
import importlib.util
import os
import pathlib
import sys

from mtl_jax.errors import UserError, check_choice, first_line

SUFFIX = '.py'


def is_own(name):
  """Returns whether a name is that of a file of the user's own."""
  return isinstance(name, str) and name.endswith(SUFFIX)


def find(field, name, registered, needed):
  """Returns the entry of a name.

  Args:
    field: config field that holds the name, for messages.
    name: a key of `registered`, or a path that ends in .py.
    registered: name -> entry.
    needed: attributes that a user's file must have.

  Raises:
    UserError: an unknown name, or a file that does not exist, cannot be run or
      lacks an attribute.
  """
  if not is_own(name):
    check_choice(field, name, tuple(registered))
    return registered[name]
  module = load(field, os.path.abspath(os.path.expanduser(name)))
  for attribute in needed:
    if not hasattr(module, attribute):
      raise UserError(f'{field}: {name} has no {attribute}: it must define '
                      + ', '.join(needed) + ' (see CONTRIBUTING.md)')
  return module


def load(field, path):
  """Returns the module of a Python file, which is run once.

  Raises:
    UserError: it does not exist, or raises an error.
  """
  if not os.path.isfile(path):
    raise UserError(f'{field}: {path} is not there: name a Python file or a '
                    'registered name')
  if not is_own(path):
    raise UserError(f'{field}: {path} is no Python file: its name must end in '
                    f'{SUFFIX}')
  try:
    return run(path)
  except UserError:
    raise
  except Exception as error:  # a user's file may raise anything
    raise UserError(f'{field}: {path} cannot be run '
                    f'({type(error).__name__}: {first_line(error)})'
                    ) from error


@functools.cache
def run(path):
  """Runs a Python file, once in a process; returns its module."""
  name = f'mtl_jax_own_{pathlib.Path(path).stem}_{abs(hash(path))}'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  return module
