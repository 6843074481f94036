"""Data sets on this machine: `python -m mtl_jax.data COMMAND`.

    list          the data sets and whether they are built
    build NAME    builds one
    check NAME    loads every split, checks and draws what is in it
    where [NAME]  folder of all data sets; of one also which files to put where

NAME is one of the list, the path of a .py file that defines SOURCE, or the
path of a folder of images. A data set of published files is built from those
in --manual_dir=PATH, or in $MTL_JAX_MANUAL. `build NAME --download` fetches
them, where that is possible. Any other --option=value is an option of the data
set.
"""

import sys

from absl import logging

from mtl_jax import program, progress
from mtl_jax.data import checking, fetching, pictures, sources, store, where
from mtl_jax.errors import UserError, check_choice

USAGE = ('list | build NAME | check NAME | where [NAME], and --manual_dir=PATH '
         'after NAME, or --download after build or check')
_DOWNLOAD = '--download'


def main(argv=None):
  """Runs the command line; returns the exit code."""
  # Libraries also log the errors that they raise.
  logging.set_verbosity(logging.FATAL)
  tag = program.tag('mtl_jax.data')
  command, *names = (sys.argv[1:] if argv is None else argv) or ['']
  if command in ('-h', '--help'):
    program.show(program.usage(__doc__, 'mtl_jax.data'))
    return 0
  options = [name for name in names if name.startswith('--')]
  options = [f'{name}=yes' if name == _DOWNLOAD else name for name in options]
  names = [name for name in names if not name.startswith('--')]
  try:
    usage = UserError(f'usage: {program.name("mtl_jax.data")} {USAGE}')
    if not command:
      raise usage
    check_choice('the command', command, COMMANDS)
    low, high, run = COMMANDS[command]
    if not low <= len(names) <= high or (
        options and not names) or not all('=' in o for o in options):
      raise usage
    run(*names, options=dict(option[2:].split('=', 1) for option in options))
  except UserError as error:
    # One line, whatever the names of files in it are.
    print(f'{tag}: {pictures.text(str(error))}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:  # what was half-written is removed by now
    print(f'{tag}: stopped; the same command starts over', file=sys.stderr)
    return 130
  return 0


def _list(options):
  for name in sources.names():
    built = store.builder(name).data_path.exists()
    print(f'{name:<24}', 'built' if built else 'not built')


def _build(name, options):
  built = _prepare(name, options)
  print(f'{pictures.text(name)} is in {built.data_dir}')


def _check(name, options):
  built = _prepare(name, options)
  wrong = 0
  for line in checking.lines(name, built):
    progress.say(line)
    wrong += 'WRONG' in line
  if wrong:
    raise UserError(f'{pictures.text(name)}: {wrong} of these lines say what '
                    'is WRONG')


def _prepare(name, options):
  options = dict(options)
  download = options.pop('download', 'no')
  check_choice(_DOWNLOAD, download, ('yes', 'no'))
  if download == 'yes':
    if 'manual_dir' in options:
      raise UserError(f'{_DOWNLOAD} and --manual_dir: leave one of them out')
    options['manual_dir'] = fetching.fetch(name)
  return store.prepare(name, manual_dir=options.pop('manual_dir', None),
                       options=options)


def _where(name=None, options=()):
  options = dict(options)
  manual_dir = options.pop('manual_dir', None)
  if options:
    raise UserError(f'--{next(iter(options))}: where takes --manual_dir alone')
  if name is None:
    print(store.builder(sources.names()[0]).data_dir_root)
  else:
    program.show('\n'.join(where.lines(name, manual_dir)))


COMMANDS = {'list': (0, 0, _list), 'build': (1, 1, _build),
            'check': (1, 1, _check), 'where': (0, 1, _where)}


if __name__ == '__main__':
  sys.exit(main())
