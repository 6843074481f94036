"""Wide networks and the theory, checked: `python -m mtl_jax.ntk COMMAND`.

    bound          |ANIL - MTL| <= C (lambda tau + 1/L) on unseen tasks
    finite_width   networks of finite width against the closed forms
    equivalence    the bi-level gradient against joint training's
    report         all of it on one page

`COMMAND --help` has the options. A command that was stopped goes on from what
is in its folder. Figures, tables and JSON are written there.
"""

import argparse
import importlib
import os
import re
import sys
import typing

from absl import logging

from mtl_jax import files
from mtl_jax.errors import UserError, check_choice

# Small eigenproblems: OpenBLAS's threads wait for each other, and where the
# machine is busy that costs a hundred times more than they save.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

COMMANDS = ('bound', 'finite_width', 'equivalence', 'report')


def main(argv=None):
  """Runs the command line; returns the exit code."""
  # Libraries log what they also raise; a command speaks for itself.
  logging.set_verbosity(logging.FATAL)
  command, *rest = (sys.argv[1:] if argv is None else argv) or ['']
  if command in ('-h', '--help'):
    print(__doc__)
    return 0
  try:
    check_choice('the command', command, COMMANDS)
    module = importlib.import_module(f'mtl_jax.ntk.checks.{command}')
    options, folder = parse(command, module.Options, rest)
    result = module.run(options, folder)
  except UserError as error:
    print(f'mtl_jax.ntk: error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('mtl_jax.ntk: stopped; the same command goes on from here',
          file=sys.stderr)
    return 130
  print(module.summary(result))
  print(f'Everything is in {folder}')
  return 0


def parse(command, options, argv):
  """Returns (options, folder) of a command line.

  Args:
    command: of COMMANDS.
    options: NamedTuple or dataclass with a default for every field; lines
      'field: text' of its docstring are the help.
    argv: the flags.

  Raises:
    UserError: whatever is wrong with them.
  """
  parser = argparse.ArgumentParser(
      f'python -m mtl_jax.ntk {command}', allow_abbrev=False)
  parser.error = _raise
  parser.add_argument(
      '--out', '--workdir', default=f'runs/ntk/{command}',
      help='folder for what is found, made or gone on with; default '
      '%(default)s')
  texts = dict(re.findall(r'^\s*(\w+): (.+)$', options.__doc__ or '', re.M))
  types, defaults = typing.get_type_hints(options), options()
  for name, kind in types.items():
    default = getattr(defaults, name)
    parser.add_argument(
        f'--{name}', type=_reader(kind), default=default,
        metavar=_reader(kind).__name__.upper(),
        help=texts.get(name, '').replace('%', '%%') + _shown(default))
  given = vars(parser.parse_args(argv))
  folder = given.pop('out')
  return options(**given), files.at(folder)


def _shown(default):
  if default is None:
    return ''
  if isinstance(default, tuple):
    default = ','.join(map(str, default))
  return f'; default {default}'


def _reader(kind):
  """Returns what makes a value of a type of a text; its name is for help."""
  inside = [one for one in typing.get_args(kind) if one is not type(None)]
  if typing.get_origin(kind) is tuple:
    of_one = _reader(inside[0])

    def read(text):
      return tuple(of_one(part) for part in text.split(',') if part)
    read.__name__ = f'{of_one.__name__},..'
    return read
  if kind is bool:
    def true_or_false(text):
      return {'true': True, 'false': False}[text.lower()]
    true_or_false.__name__ = 'true|false'
    return _mendable(true_or_false)
  if inside:  # X | None
    return _reader(inside[0])
  return kind


def _mendable(read):
  """Makes an unknown word a ValueError, which argparse reports."""
  def reader(text):
    try:
      return read(text)
    except KeyError as error:
      raise ValueError(text) from error
  reader.__name__ = read.__name__
  return reader


def _raise(message):
  raise UserError(re.sub(r'^argument (--\w+)(/--\w+)?', r'\1', message)
                  + ' (--help says more)')


if __name__ == '__main__':
  sys.exit(main())
