"""Classifies your own pictures with what a run has learned.

    python -m mtl_jax.adapt --checkpoint=runs/mine --support=birds/known \
      --query=birds/new

The support has a folder of pictures for each class, the query is a folder or
files. See docs/adapt.md.
"""

import argparse
import os
import sys

from absl import logging

from mtl_jax import heads, program
from mtl_jax.adapt import classify, sheet
from mtl_jax.data import pictures
from mtl_jax.errors import UserError


def main(argv=None):
  """Runs the command line; returns the exit code."""
  # Libraries also log the errors that they raise.
  logging.set_verbosity(logging.FATAL)
  tag = program.tag('mtl_jax.adapt')
  try:
    flags = parse(argv)
    out = flags.out or os.path.join(flags.checkpoint, 'adapt')
    result = classify.adapt(
        flags.checkpoint, flags.support, flags.query, head=flags.head, out=out,
        invert=flags.invert, balanced=not flags.unweighted)
  except UserError as error:
    _say(f'{tag}: {error}', sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'{tag}: stopped', file=sys.stderr)
    return 130
  for notice in result['notices']:
    _say(f'{tag}: note: {notice}', sys.stderr)
  for line in (*sheet.lines(result), f'Everything is in {out}'):
    _say(line, sys.stdout)
  return 0


def _say(line, stream):
  """Prints one line, whatever signs are in a name."""
  encoding = stream.encoding or 'utf-8'
  print(pictures.text(line).encode(encoding, 'backslashreplace')
        .decode(encoding), file=stream)


def parse(argv=None):
  """Returns the flags; UserError for what is wrong with them."""
  parser = argparse.ArgumentParser(
      program.name('mtl_jax.adapt'), description=__doc__.splitlines()[0],
      allow_abbrev=False)
  parser.error = _raise
  parser.add_argument('--checkpoint', required=True, help='workdir of a run')
  parser.add_argument('--support', required=True,
                      help='folder with a folder of images for each class')
  parser.add_argument('--query', required=True, nargs='+',
                      help='folder of images, labelled where they lie in '
                      'folders named as the classes; or files')
  parser.add_argument('--head', help=f'one of {", ".join(heads.HEADS)}; '
                      "default: the first of the run's config.eval.heads")
  parser.add_argument('--out', help='folder for the results; default '
                      'CHECKPOINT/adapt')
  parser.add_argument('--invert', action='store_true',
                      help='exchange black and white in all images')
  parser.add_argument('--unweighted', action='store_true',
                      help='let every support image count alike; default: '
                      'every class, however many images it has')
  return parser.parse_args(argv)


def _raise(message):
  raise UserError(f'{message} (--help says more)')


if __name__ == '__main__':
  sys.exit(main())
