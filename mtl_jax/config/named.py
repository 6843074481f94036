"""Find a config by name or by path, with a method: `mini_5shot:maml`.

The files of configs/ have names, their own without `.py`. An installed wheel
has them within the package, a clone beside it.
"""

import ast
import difflib
import os
import pathlib

from mtl_jax import registry
from mtl_jax.errors import UserError, first_line

_PACKAGE = pathlib.Path(__file__).parents[1]
FOLDERS = (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')


def paths():
  """Returns name -> path of every config that has a name, sorted."""
  folder = next((f for f in FOLDERS if f.is_dir()), FOLDERS[0])
  return {path.stem: path for path in sorted(folder.glob('*.py'))}


def summaries():
  """Returns name -> what its docstring begins with; no file is run."""
  texts = {name: path.read_text(encoding='utf-8')
           for name, path in paths().items()}
  return {name: ast.get_docstring(ast.parse(text)).partition('\n')[0]
          for name, text in texts.items()}


def split(text):
  """Splits NAME[:METHOD] or FILE.py[:METHOD]; a method may be a file too."""
  name, _, method = text.partition(':')
  if name in paths():
    return name, method or None
  path, colon, method = text.partition(f'{registry.SUFFIX}:')
  return (path + registry.SUFFIX, method) if colon else (text, None)


def load(text):
  """Returns the config of NAME[:METHOD] or FILE.py[:METHOD].

  Raises:
    UserError: there is no such config, or its file raises an error.
  """
  name, method = split(text)
  path = paths().get(name) or os.path.abspath(os.path.expanduser(name))
  if not os.path.exists(path):
    raise UserError(_unknown(name))
  module = registry.load('--config', str(path))
  if not hasattr(module, 'get_config'):
    raise UserError(f'--config: {name} has no get_config: it must define '
                    'get_config(method), which returns a config')
  try:
    config = module.get_config(*([method] if method else []))
  except UserError:
    raise
  except Exception as error:  # a config file is code: it may raise anything
    raise UserError(f'--config: {name}: {type(error).__name__}: '
                    f'{first_line(error)}') from error
  if not hasattr(config, 'to_dict') or 'method' not in config:
    raise UserError(f'--config: {name}: get_config returned '
                    f'{type(config).__name__}: it must return what '
                    'mtl_jax.config.base_config() makes')
  return config


def _unknown(name):
  """Returns the line about a config that is not there."""
  known = list(paths())
  if not registry.is_own(name):
    name = name.partition(':')[0]
    if os.path.isfile(name + registry.SUFFIX):
      return f'--config: {name} has no {registry.SUFFIX}: write ' + (
          f'--config={name}{registry.SUFFIX}')
  near = difflib.get_close_matches(pathlib.Path(name).stem, known, 3)
  return (f'--config: {name} is not there: '
          + (f'the nearest names are {", ".join(near)}' if near else
             f'name a Python file or one of {", ".join(known)}'))
