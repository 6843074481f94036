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

    --coordinator_address=HOST:PORT             several processes train one run:
    --num_processes=N --process_id=I            the same command in each, see
                                                docs/processes.md
    --peer_timeout=60                           seconds until a process ends
                                                whose peer is gone
    --initialization_timeout=300                seconds to wait for all at the
                                                start

    --help                                      this text, all names and fields
    --help --config=NAME[:METHOD]               all fields of one config

With --checkpoint the default config is that of the run, and the default workdir
is CHECKPOINT/evaluate (CHECKPOINT/export; with --images CHECKPOINT/images).
--mode=evaluate and --mode=features take --weights, --config and --workdir in
place of --checkpoint; see docs/weights.md.
"""

import signal
import sys
import traceback

from mtl_jax import early, program

with early.stops(program.tag('mtl_jax')):
  from absl import logging

  from mtl_jax import devices, files, processes
  from mtl_jax.config import flags, help
  from mtl_jax.errors import AgreedError, UserError, first_line
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
  command = None
  try:
    tag = program.tag('mtl_jax')
    with early.stops(tag), files.errors():
      command = flags.parse(sys.argv[1:] if argv is None else argv,
                            workdir.saved_config)
    if command.help:
      program.show(help.text(
          program.usage(__doc__, 'mtl_jax.main'), command.config))
    else:
      processes.start(command.place, tag)
      # In several processes the handler of SIGTERM is JAX's.
      numbers = tuple(early.CODES) if command.place is None else (
          signal.SIGINT,)
      with early.ends(lambda: f'{tag}: {_stopped(command)}', numbers,
                      processes.stderr):
        run(command)
  except AgreedError as error:
    return _end(2, str(error) if processes.leads() else '')
  except UserError as error:
    return _end(2, str(error), alone=True)
  except (SystemExit, KeyboardInterrupt) as error:
    line = _stopped(command) if command else 'stopped'
    return _end(getattr(error, 'code', early.STOPPED),
                line if processes.leads() else '')
  except Exception as error:
    if processes.count() == 1:
      raise
    if processes.is_loss(error):
      return _end(processes.LOST, processes.loss(first_line(error)), alone=True)
    traceback.print_exc()
    return _end(1, alone=True)
  return _end(0)


def _end(code, line='', alone=False):
  """Prints a line, leaves the other processes, and returns the exit code.

  Args:
    code: the exit code.
    line: on stderr, if any.
    alone: whether the other processes go on. The process then ends at once, as
      it would wait for them.
  """
  if line:
    print(f'{program.tag("mtl_jax")}: {line}', file=sys.stderr)
  processes.leave(code if alone else None)
  return code


def run(command):
  """Does what a Command asks for.

  Raises:
    UserError: what a user can mend; also where memory or the rights to a file
      do not suffice.
  """
  with devices.memory_errors(), files.errors():
    if command.mode == 'train' and command.config.seeds:
      seeds.train_and_evaluate(command.config, command.workdir)
      if processes.leads():
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
  """Returns the last line of a command that Ctrl-C ends.

  Only process 0 must see the workdir, which may be gone.
  """
  try:
    return _resumes(command) if processes.leads() else 'stopped'
  except Exception:  # those of object stores have no base
    return 'stopped'


def _resumes(command):
  """Returns how the same command goes on."""
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
  return f'stopped; the same command {again}'


if __name__ == '__main__':
  sys.exit(main())
