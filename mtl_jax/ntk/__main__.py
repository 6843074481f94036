"""Wide networks and the theory, checked: `python -m mtl_jax.ntk COMMAND`.

    bound          |ANIL - MTL| <= C (lambda tau + 1/L) on unseen tasks
    finite_width   networks of finite width against the closed forms
    equivalence    the bi-level gradient against joint training's
    closeness      ANIL and MTL on trained CNN-4s, against two seeds of each
    report         all of it on one page

`COMMAND --help` lists the options. A command that was stopped resumes from
its folder. Figures, tables and JSON are written there.
"""

import argparse
import os
import re
import sys

from absl import logging

from mtl_jax import compile_cache, devices, files, program
from mtl_jax.errors import UserError, check_choice
from mtl_jax.ntk.checks import CHECKS, report

# name -> (options, run, summary); check.py says what they are.
COMMANDS = {
    **{name: (check.options, check.run, check.summary)
       for name, check in CHECKS.items()},
    'report': (report.OPTIONS, report.run, report.summary)}


def main(argv=None):
  """Runs the command line; returns the exit code."""
  # Small eigenproblems: OpenBLAS's threads wait for each other, and on a busy
  # machine that costs a hundred times more than they save. SciPy's copy is
  # loaded with the first solve, later than this.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
  # Libraries also log the errors that they raise.
  logging.set_verbosity(logging.FATAL)
  command, *rest = (sys.argv[1:] if argv is None else argv) or ['']
  if command in ('-h', '--help'):
    program.show(program.usage(__doc__, 'mtl_jax.ntk'))
    return 0
  try:
    check_choice('the command', command, COMMANDS)
    declared, run, summary = COMMANDS[command]
    options, folder = parse(command, declared, rest)
    compile_cache.keep()
    devices.check_platform()
    with files.errors():
      result = run(options, folder)
  except UserError as error:
    print(f'{program.tag("mtl_jax.ntk")}: error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'{program.tag("mtl_jax.ntk")}: stopped; the same command resumes '
          'from here', file=sys.stderr)
    return 130
  print(summary(result))
  print(f'Everything is in {folder}')
  return 0


def parse(command, declared, argv):
  """Returns (options, folder) of a command line.

  Args:
    command: a key of COMMANDS.
    declared: name -> Field.
    argv: the flags.

  Returns:
    name -> value of all options, and the epath.Path of the folder.

  Raises:
    UserError: a flag is unknown, or its value cannot be read.
  """
  parser = argparse.ArgumentParser(
      f'{program.name("mtl_jax.ntk")} {command}', allow_abbrev=False)
  parser.error = _raise
  parser.add_argument(
      '--out', '--workdir', default=f'runs/ntk/{command}',
      help='folder for the results; made, or resumed from; default '
      '%(default)s')
  for name, field in declared.items():
    reader = _reader(field)
    parser.add_argument(
        f'--{name}', type=reader, default=field.default,
        metavar=reader.__name__.upper(), help=_help(field).replace('%', '%%'))
  options = vars(parser.parse_args(argv))
  folder = options.pop('out')
  return options, files.at(folder)


def _help(field):
  if field.default is None:
    return field.meaning
  default = field.default
  if isinstance(default, tuple):
    default = ','.join(map(str, default))
  return f'{field.meaning}; default {default}'


def _reader(field):
  """Returns text -> value of a field; help and errors show its name."""
  if field.type is bool:
    return _true_or_false
  if field.type is not tuple:
    return field.type
  item = type(field.default[0])
  read = lambda text: tuple(item(part) for part in text.split(',') if part)
  read.__name__ = f'{item.__name__},..'
  return read


def _true_or_false(text):
  if text.lower() not in ('true', 'false'):
    raise ValueError(text)  # argparse reports it
  return text.lower() == 'true'


_true_or_false.__name__ = 'true|false'


def _raise(message):
  raise UserError(re.sub(r'^argument (--\w+)(/--\w+)?', r'\1', message)
                  + ' (--help says more)')


if __name__ == '__main__':
  sys.exit(main())
