"""Classifies your own pictures with what a run has learned.

    python -m mtl_jax.adapt --checkpoint=runs/mine --support=birds/known \
      --query=birds/new

The support has a folder of pictures for each class, the query is a folder or
files. See docs/adapt.md.
"""

import argparse
import functools
import os
import sys
import warnings

from absl import logging

from mtl_jax import devices, files, heads, program, registry
from mtl_jax.data import pictures
from mtl_jax.errors import UserError
from mtl_jax.evaluate import adapters

# What a head file has settled.
_FITS = ('head', 'batch_norm', 'invert', 'unweighted', 'uncalibrated',
         'save_head')


def main(argv=None):
  """Runs the command line; returns the exit code."""
  # Libraries also log the errors that they raise.
  logging.set_verbosity(logging.FATAL)
  tag = program.tag('mtl_jax.adapt')
  say = lambda line: _say(f'{tag}: {line}', sys.stderr)
  try:
    with files.errors(), devices.memory_errors(
        'give fewer pictures, or choose another --head'):
      run(parse(argv), say)
  except UserError as error:
    say(error)
    return 2
  except KeyboardInterrupt:
    say('stopped')
    return 130
  return 0


def run(flags, say):
  """Does what the flags ask for.

  Args:
    flags: of `parse`.
    say: takes a line for stderr.

  Raises:
    UserError: what a user can mend.
  """
  # Imported late, so that --help and wrong flags are answered at once.
  from mtl_jax.adapt import classify, kept, serve, sheet

  options = {'head': flags.head, 'batch_norm': flags.batch_norm,
             'invert': flags.invert, 'balanced': not flags.unweighted,
             'calibrated': not flags.uncalibrated}
  if flags.query and flags.query != [serve.STDIN]:
    out = flags.out or os.path.join(flags.checkpoint, 'adapt')
    result = classify.adapt(
        flags.checkpoint, flags.support, flags.query, load_head=flags.load_head,
        save_head=flags.save_head, out=out, show=True, **options)
    for notice in result['notices']:
      say(f'note: {notice}')
    _show([*sheet.lines(result), *_kept(flags), f'Everything is in {out}'])
    return
  if flags.watch:  # before all that takes long or is written
    flags.watch = serve.check_folder(flags.watch)
  if flags.support is None:
    ready = classify.recall(flags.checkpoint, flags.load_head, flags.head)
  else:
    save_head = flags.save_head and kept.check_name(flags.save_head)
    ready = classify.learn(
        flags.checkpoint, pictures.list_support(flags.support), show=True,
        **options)
  serves = flags.query or flags.watch
  if serves:
    serve.check(ready.classifier.learner)
  if flags.save_head:
    classify.keep(ready, save_head)
  for notice in ready.notices:
    say(f'note: {notice}')
  about = [*sheet.about(ready.classifier.about), *_kept(flags)]
  if not serves:
    _show(about)
  else:
    for line in about:
      say(line)
    warnings.simplefilter('ignore')  # Pillow's, about files it reads anyway
    answer = serve.answers(ready)
    say('ready')
    serve.run(functools.partial(serve.from_stdin, answer) if flags.query else
              functools.partial(serve.from_folder, flags.watch, answer))


def _kept(flags):
  return [f'the head is kept in {flags.save_head}'] * bool(flags.save_head)


def _show(lines):
  program.show('\n'.join(_shown(line, sys.stdout) for line in lines))


def _say(line, stream):
  print(_shown(line, stream), file=stream)


def _shown(line, stream):
  """Returns a line that a stream can print, whatever signs are in a name."""
  encoding = stream.encoding or 'utf-8'
  return pictures.text(line).encode(encoding, 'backslashreplace').decode(
      encoding)


def parse(argv=None):
  """Returns the flags; UserError for what is wrong with them."""
  parser = argparse.ArgumentParser(
      program.name('mtl_jax.adapt'), description=__doc__.splitlines()[0],
      allow_abbrev=False)
  parser.error = _raise
  add = parser.add_argument
  add('--checkpoint', help='workdir of a run')
  add('--weights', metavar='FILE', help='in place of --checkpoint: weights as '
      'npz, safetensors or of PyTorch; with --config and --out')
  add('--config', metavar='NAME[:METHOD]', help='with --weights: their network '
      'and data set; --config.FIELD=VALUE changes a field')
  add('--support', help='folder with a folder of images for each class')
  add('--query', nargs='+',
      help='folder of images, labelled where they lie in folders named as the '
      'classes; or files; or -, for paths on stdin, each answered by a line of '
      'JSON')
  add('--watch', metavar='FOLDER', help='in place of --query: a folder, in '
      'which each new image is answered by a line of JSON')
  add('--head', help=f'one of {", ".join(heads.HEADS)}; or '
      f"{adapters.OWN}, the method's own adaptation; default: the first head "
      "of the run's config.eval.heads, or own if there is none")
  add('--batch_norm', metavar='WHICH', help='for --head=own: statistics of '
      "BatchNorm in place of the run's config.method.batch_norm, such as "
      'support')
  add('--save_head', metavar='FILE.safetensors', help='keeps what was fitted')
  add('--load_head', metavar='FILE.safetensors', help='in place of --support; '
      'what your own .py file has fitted also needs it as --head')
  add('--out', help='folder for the results; default CHECKPOINT/adapt')
  add('--invert', action='store_true',
      help='exchange black and white in all images')
  add('--unweighted', action='store_true',
      help='let every support image count alike; default: every class, '
      'however many images it has')
  add('--uncalibrated', action='store_true',
      help='do not calibrate the probabilities by cross-validation')
  flags, changes = parser.parse_known_args(argv)
  unknown = [word for word in changes if not (
      flags.weights and word.startswith('--config.'))]
  if unknown:
    parser.error(f'unrecognized arguments: {" ".join(unknown)}')
  _check(flags)
  if flags.weights:
    flags.checkpoint = _config(flags, changes)
  return flags


def _config(flags, changes):
  """Returns the config of --weights and --config, with changed fields."""
  from mtl_jax.config import flags as config_flags  # late, as in `run`
  return config_flags.parse(
      [f'--config={flags.config}', '--mode=evaluate', '--workdir=none',
       f'--weights={flags.weights}', *changes], None).config


def _check(flags):
  """Raises UserError for flags that do not belong together."""
  if bool(flags.checkpoint) == bool(flags.weights) or bool(
      flags.config) != bool(flags.weights):
    raise UserError('--checkpoint, a run, is required; or --weights, a file, '
                    'and --config, its network and data set')
  if (flags.support is None) == (flags.load_head is None):
    raise UserError('--support or --load_head is required, and not both')
  settled = [name for name in _FITS if getattr(flags, name) and not (
      name == 'head' and registry.is_own(flags.head))]
  if flags.load_head and settled:
    raise UserError(f'--{settled[0]} does not go with --load_head: the file '
                    'holds what was fitted; leave it out, or give --support')
  if flags.query and flags.watch:
    raise UserError('--query and --watch: give one of them')
  if not (flags.query or flags.watch or flags.save_head):
    raise UserError('--query is required; or --watch, or --save_head')
  alone = not flags.query or flags.query == ['-']
  if flags.weights and not (alone or flags.out):
    raise UserError('--out is required with --weights: a folder for results')
  if '-' in (flags.query or ()) and not alone:
    raise UserError('--query - is stdin: give no other paths')
  if flags.out and alone:
    raise UserError('--out is for a --query of folders or files: nothing else '
                    'writes results')


def _raise(message):
  raise UserError(f'{message} (--help says more)')


if __name__ == '__main__':
  sys.exit(main())
