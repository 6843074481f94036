"""Compares two tests.

    python -m mtl_jax.report FIRST SECOND     paired difference of two tests
"""

import sys

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.report.compare import compare


def main(argv=None):
  """Runs the command line; returns the exit code."""
  paths = sys.argv[1:] if argv is None else argv
  try:
    if len(paths) != 2:
      raise UserError('usage: python -m mtl_jax.report FIRST SECOND')
    with files.errors():
      print(compare(*paths))
  except UserError as error:
    print(f'mtl_jax.report: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
