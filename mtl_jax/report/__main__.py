"""Compares finished tests.

    python -m mtl_jax.report FIRST SECOND     paired difference of two tests
    python -m mtl_jax.report RUN ..           a table of any number of tests
      --format=markdown                       text, markdown, csv, latex, json
      --against=RUN                           with differences from this one
    python -m mtl_jax.report PATH .. --page=FOLDER
                                              one page of everything

A RUN is the workdir of a run, a folder of --mode=evaluate, or the workdir of
config.seeds, which stands for all of its seeds. Two tests give a table where
one of the flags is given. See docs/evaluate.md.

A PATH is the workdir of a run, a record of a cell, or a folder of them, such as
runs or results/cpu, which is searched to any depth. FOLDER then has report.html
and report.md. See docs/report.md.
"""

import argparse
import sys

from mtl_jax import files, program
from mtl_jax.errors import UserError, check_choice
from mtl_jax.report import formats, overview, table
from mtl_jax.report.compare import compare


def main(argv=None):
  """Runs the command line; returns the exit code."""
  tag = program.tag('mtl_jax.report')
  try:
    flags = parse(argv)
    with files.errors():
      if flags.page is not None:
        print(overview.write(flags.runs, flags.page))
        return 0
      pair = not (flags.format or flags.against) and len(
          table.runs_of(flags.runs)) == len(flags.runs) == 2
      if pair:
        print(compare(*flags.runs))
      else:
        print(formats.FORMATS[flags.format or 'text'](
            table.rows(flags.runs, flags.against)))
  except UserError as error:
    print(f'{tag}: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'{tag}: stopped', file=sys.stderr)
    return 130
  return 0


def parse(argv=None):
  """Returns the flags; UserError for what is wrong with them."""
  parser = argparse.ArgumentParser(
      program.name('mtl_jax.report'), allow_abbrev=False,
      description=program.usage(__doc__, 'mtl_jax.report'),
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.error = _raise
  parser.add_argument('runs', nargs='+', metavar='RUN')
  parser.add_argument('--format', help=', '.join(formats.FORMATS))
  parser.add_argument('--against', metavar='RUN')
  parser.add_argument('--page', metavar='FOLDER')
  flags = parser.parse_args(argv)
  if flags.page is not None and (flags.format or flags.against):
    raise UserError('--page is given with --format or --against, which are of '
                    'tables alone: leave one of them out')
  if flags.page == '':
    raise UserError("--page is '': name the folder that the page goes to")
  if flags.format is not None:
    check_choice('--format', flags.format, formats.FORMATS)
  return flags


def _raise(message):
  raise UserError(f'{message}: usage: {program.name("mtl_jax.report")} RUN .. '
                  '[--format=FORMAT] [--against=RUN] [--page=FOLDER]')


if __name__ == '__main__':
  sys.exit(main())
