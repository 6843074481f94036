"""Compares two tests.

    python -m mtl_jax.report FIRST SECOND     paired difference of two tests
"""

import sys

from mtl_jax import files, program
from mtl_jax.errors import UserError
from mtl_jax.report.compare import compare


def main(argv=None):
  """Runs the command line; returns the exit code."""
  paths = sys.argv[1:] if argv is None else argv
  if paths in (['-h'], ['--help']):
    program.show(program.usage(__doc__, 'mtl_jax.report'))
    return 0
  try:
    if len(paths) != 2:
      raise UserError(f'usage: {program.name("mtl_jax.report")} FIRST SECOND')
    with files.errors():
      print(compare(*paths))
  except UserError as error:
    print(f'{program.tag("mtl_jax.report")}: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
