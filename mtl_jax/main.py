"""Trains and tests methods: `python -m mtl_jax.main --config=...`.

    --config=configs/glyphs_5shot.py[:method]   a config file and its method
    --config.train.max_epochs=3                 any field of it
    --workdir=/some/where                       made, or gone on with

    --mode=evaluate --checkpoint=/some/where    tests a run, with its config
    --mode=features --checkpoint=/some/where    writes features of a split
"""

import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mtl_jax.errors import UserError, first_line
from mtl_jax.run import evaluate_mode, loop, saved_config

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    'config', None, 'Config file, with :method behind it to choose one.')
flags.DEFINE_string(
    'workdir', None, 'Folder of the run; default runs/NAME_METHOD of the '
    'config file. A run that stands there goes on.')
flags.DEFINE_enum(
    'mode', 'train', ['train', 'evaluate', 'features'],
    'train (and test), or evaluate or write the features of a run.')
flags.DEFINE_string(
    'checkpoint', None, 'Workdir of the run to evaluate; its config is taken '
    'where --config is not given, and --workdir is CHECKPOINT/evaluate.')
_SAVED = pathlib.Path(saved_config.__file__)


def main(argv=None):
  """Runs the command line; returns the exit code."""
  # Libraries log what they also raise; a run speaks for itself.
  logging.set_verbosity(logging.FATAL)
  if 'help' not in FLAGS:
    app.define_help_flags()
  argv = sys.argv if argv is None else argv
  try:
    config, workdir = parse(argv)
    if FLAGS.mode == 'train':
      loop.train_and_evaluate(config, workdir)
    else:
      run = {'evaluate': evaluate_mode.evaluate_run,
             'features': evaluate_mode.write_features}[FLAGS.mode]
      run(config, FLAGS.checkpoint, workdir)
  except UserError as error:
    print(f'mtl_jax: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('mtl_jax: stopped; the same command ' + (
        'goes on from the last checkpoint' if FLAGS.mode == 'train'
        else 'starts over'), file=sys.stderr)
    return 130
  return 0


def parse(argv):
  """Returns (config, workdir) of a command line.

  Raises:
    UserError: whatever is wrong with it.
  """
  try:
    rest = FLAGS(_with_saved_config(argv))
    if (FLAGS.mode == 'train') != (FLAGS.checkpoint is None):
      raise UserError('--checkpoint is ' + (
          'for --mode=evaluate and --mode=features: a run goes on with '
          '--workdir' if FLAGS.mode == 'train' else
          f'missing: --mode={FLAGS.mode} needs the workdir of a run'))
    if FLAGS.config is None:
      raise UserError('--config is missing: name a file, such as '
                      '--config=configs/quickstart.py')
    method = FLAGS.config.method.name  # raises what loading the file raised
  except UserError:
    raise
  except Exception as error:  # a config file is code: it may raise anything
    raise UserError(_what_is_wrong(error, argv)) from error
  if len(rest) > 1:
    raise UserError(f'{rest[1]!r} is not a flag: fields are set by '
                    '--config.field=value')
  name = pathlib.Path(FLAGS['config'].config_filename).stem
  workdir = FLAGS.workdir or (
      os.path.join('runs', f'{name}_{method}') if FLAGS.mode == 'train'
      else os.path.join(FLAGS.checkpoint, 'evaluate'))
  return FLAGS.config, workdir


def _with_saved_config(argv):
  """Adds the config of --checkpoint where no --config is given."""
  given = [flag.split('=')[0].lstrip('-') for flag in argv]
  where = [flag.partition('=')[2] or following for flag, following in zip(
      argv, [*argv[1:], ''], strict=True)
           if flag.lstrip('-').split('=')[0] == 'checkpoint']
  if where and 'config' not in given:
    return [argv[0], f'--config={_SAVED}:{where[-1]}', *argv[1:]]
  return argv


def _what_is_wrong(error, argv):
  """Returns one line about an error of the flags or of the config file."""
  # A KeyError within the message comes as repr, with \\n and \\' in it.
  text = ' '.join(str(error).replace(r'\n', ' ').replace('\\', '').split())
  unknown = re.match(r'\W*(\w+)\W*(Did you mean "(\w+)")?', text)
  if isinstance(error, (AttributeError, KeyError)) and unknown:
    flag = next((flag.split('=')[0].lstrip('-') for flag in argv
                 if flag.split('=')[0].endswith(f'.{unknown[1]}')), None)
    if flag:
      return f'{flag} is unknown: ' + (
          f'did you mean {unknown[3]}?' if unknown[3]
          else 'the fields are in mtl_jax/config.py')
  value = re.match(r'flag --(config[.\w]+)=(.*?): ', text)
  if value:
    return (f'{value[1]} is {value[2]!r}, of another type than the field: '
            'see its default in mtl_jax/config.py')
  if isinstance(error, flags.Error):
    return text
  path = re.search(r'Attempted \[[\w ]+\]: (\S+)', text)
  if path:
    return f'--config: {path[1]} is not there, or is no Python file'
  return f'--config: {type(error).__name__}: {first_line(error)}'


if __name__ == '__main__':
  sys.exit(main())
