"""Trains and tests methods: `python -m mtl_jax.main --config=...`.

    --config=configs/glyphs_5shot.py[:method]   a config file and a method
    --config.train.max_epochs=3                 any field of the config
    --workdir=/some/where                       made, or resumed; the default
                                                is runs/FILE_METHOD

    --mode=evaluate --checkpoint=/some/where    tests a run, with its config
    --mode=features --checkpoint=/some/where    writes features of a split

docs/fields.md lists the fields. With --mode=evaluate and --mode=features the
default config is that of the run, and the default workdir is
CHECKPOINT/evaluate.
"""

import sys

from absl import logging

from mtl_jax.config import flags
from mtl_jax.errors import UserError
from mtl_jax.run import evaluate_mode, loop, workdir


def main(argv=None):
  """Runs the command line; returns the exit code."""
  # Libraries also log the errors that they raise.
  logging.set_verbosity(logging.FATAL)
  argv = (sys.argv if argv is None else argv)[1:]
  stopped = 'the same command starts over'
  try:
    command = flags.parse(argv, workdir.saved_config)
    if command.help:
      print(__doc__)
    elif command.mode == 'train':
      stopped = 'the same command resumes from the last saved state'
      loop.train_and_evaluate(command.config, command.workdir)
    else:
      run = {'evaluate': evaluate_mode.evaluate_run,
             'features': evaluate_mode.write_features}[command.mode]
      run(command.config, command.checkpoint, command.workdir)
  except UserError as error:
    print(f'mtl_jax: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'mtl_jax: stopped; {stopped}', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
