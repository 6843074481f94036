"""Trains and tests methods: `python -m mtl_jax.main --config=...`.

    --config=NAME[:METHOD]                      a config and a method
    --config=FILE.py[:METHOD]                   a config file of your own
    --config.train.max_epochs=3                 any field of the config
    --config.seeds=0,1,2                        several runs of one config
    --workdir=/some/where                       made, or resumed; the default
                                                is runs/NAME_METHOD

    --init_from=/some/where                     starts from the weights of
                                                another run
    --weights=/some/file                        starts from the weights of a
                                                file: npz, safetensors, PyTorch

    --mode=evaluate --checkpoint=/some/where    tests a run, with its config
    --mode=features --checkpoint=/some/where    writes features of a split
    --images=/some/folder                       .. of your own pictures instead;
                                                --invert exchanges black and
                                                white
    --mode=export --checkpoint=/some/where      writes weights.safetensors

    --help                                      this text, all names and fields
    --help --config=NAME[:METHOD]               all fields of one config

With --checkpoint the default config is that of the run, and the default workdir
is CHECKPOINT/evaluate (CHECKPOINT/export; with --images CHECKPOINT/images).
--mode=evaluate and --mode=features take --weights, --config and --workdir in
place of --checkpoint; see docs/weights.md.
"""

import sys

from absl import logging

from mtl_jax import devices, files, program
from mtl_jax.config import flags, help
from mtl_jax.errors import UserError
from mtl_jax.report import formats, table
from mtl_jax.run import (
  checkpoint,
  evaluate_mode,
  features_file,
  loop,
  seeds,
  workdir,
)


def main(argv=None):
  """Runs the command line; returns the exit code.

  Args:
    argv: the flags, without the program's name; None: those of the process.
  """
  # Libraries also log the errors that they raise.
  logging.set_verbosity(logging.FATAL)
  try:
    command = flags.parse(sys.argv[1:] if argv is None else argv,
                          workdir.saved_config)
    if command.help:
      program.show(help.text(
          program.usage(__doc__, 'mtl_jax.main'), command.config))
    else:
      with devices.interrupt_ends(lambda: _stopped(command)):
        run(command)
  except UserError as error:
    print(f'{program.tag("mtl_jax")}: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'{program.tag("mtl_jax")}: stopped', file=sys.stderr)
    return 130
  return 0


def run(command):
  """Does what a Command asks for.

  Raises:
    UserError: what a user can mend; also where memory or the rights to a file
      do not suffice.
  """
  with devices.memory_errors(), files.errors():
    if command.mode == 'train' and command.config.seeds:
      seeds.train_and_evaluate(command.config, command.workdir)
      report_seeds(command.config, command.workdir)
    elif command.mode == 'train':
      loop.train_and_evaluate(command.config, command.workdir)
    elif command.images is not None:
      features_file.write_of_folder(
          command.config, command.checkpoint, command.images, command.workdir,
          command.invert)
    else:
      do = {'evaluate': evaluate_mode.evaluate_run,
            'features': features_file.write,
            'export': evaluate_mode.export}[command.mode]
      do(command.config, command.checkpoint, command.workdir)


def report_seeds(config, path):
  """Writes the table of config.seeds into their workdir, and prints it."""
  rows = table.rows(seeds.folders(config, path))
  page, numbers = (files.at(path) / name for name in seeds.TABLE)
  files.write(page, formats.markdown(rows) + '\n')
  files.write(numbers, formats.json_text(rows) + '\n')
  loop.say(config, f'\n{formats.text(rows)}\n\nThe table is in {page}')


def _stopped(command):
  """Returns the last line of a command that Ctrl-C ends."""
  if command.mode == 'train' and command.config.seeds:
    again = 'resumes ' + ', '.join(
        f'seed {seed} at step {checkpoint.last_step(files.at(folder)) or 0}'
        for seed, folder in zip(
            command.config.seeds,
            seeds.folders(command.config, command.workdir), strict=True))
  else:
    step = (checkpoint.last_step(files.at(command.workdir))
            if command.mode == 'train' else None)
    again = 'starts over' if step is None else f'resumes at step {step}'
  return f'{program.tag("mtl_jax")}: stopped; the same command {again}'


if __name__ == '__main__':
  sys.exit(main())
