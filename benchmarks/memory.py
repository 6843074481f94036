"""Measures the peak memory of commands, each in a process of its own.

    python benchmarks/memory.py mini_imagenet FILES    what a data set needs
    python benchmarks/memory.py pictures RUN           what your pictures need
    python benchmarks/memory.py run COMMAND ...        any command

FILES holds the published files of mini-ImageNet; RUN is the workdir of any run.
Data sets, pictures and runs are written to a temporary folder (2 GB), which is
removed at the end. Peak memory is the largest resident size of the process as
the system counts it: a file that is mapped into memory counts where it has been
read.
"""

import argparse
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

# Two steps, as memory does not grow with their number.
_FEW = ('--config.train.epoch_tasks=4', '--config.train.max_epochs=1',
        '--config.optimizer.decay_epochs=1', '--config.validation.tasks=2',
        '--config.eval.tasks=2')


def mini_imagenet(files, folder):
  """Returns (what it is, command) of each row of the table, in order."""
  data = (sys.executable, '-m', 'mtl_jax.data')
  main = (sys.executable, '-m', 'mtl_jax.main')
  test = (*main, '--mode=evaluate', f'--checkpoint={folder}/run')
  return [
      ('data build', (*data, 'build', 'mini_imagenet',
                      f'--manual_dir={files}')),
      ('data check, which decodes and keeps the pixels',
       (*data, 'check', 'mini_imagenet')),
      ('data check, with kept pixels', (*data, 'check', 'mini_imagenet')),
      ('training by configs/mini_5shot_cpu.py',
       (*main, '--config=configs/mini_5shot_cpu.py', *_FEW,
        '--config.eval.baselines=False', f'--workdir={folder}/run')),
      ('test of 2,000 tasks',
       (*test, '--config.eval.baselines=False', '--config.eval.tasks=2000',
        f'--workdir={folder}/test')),
      ('the same with baselines: the untrained network and raw pixels',
       (*test, '--config.eval.baselines=True', '--config.eval.tasks=2000',
        f'--workdir={folder}/baselines')),
      ('features of the training split',
       (*main, '--mode=features', f'--checkpoint={folder}/run',
        '--config.eval.split=train', f'--workdir={folder}/features'))]


def pictures(run, folder):
  """Returns the same for pictures of a user's own, which it writes."""
  # A process starts with the peak memory of its parent: another one writes.
  writer = multiprocessing.get_context('spawn').Process(
      target=_write_pictures, args=(pathlib.Path(folder),))
  writer.start()
  writer.join()
  if writer.exitcode:
    sys.exit('the pictures could not be written')

  def adapt(support, query, *flags):
    return (sys.executable, '-m', 'mtl_jax.adapt', f'--checkpoint={run}',
            f'--support={folder}/{support}', f'--query={folder}/{query}',
            f'--out={folder}/out_{support}', *flags)

  return [
      ('data check, a folder with pictures of 13,000 x 13,000 pixels',
       (sys.executable, '-m', 'mtl_jax.data', 'check', f'{folder}/large')),
      ('adapt, such pictures', adapt('large/train', 'large/test')),
      ('adapt, 1,250 classes of 2 pictures', adapt('classes', 'classes')),
      ('adapt, 20,000 pictures in the support, logistic head',
       adapt('support', 'large/test', '--head=logistic'))]


def _write_pictures(folder):
  """Writes the folders that `pictures` names."""
  import numpy as np
  from PIL import Image
  rng = np.random.default_rng(0)

  def draw(place, classes, images, size):
    for m in range(classes):
      of_class = place / f'{place.name}_{m}'
      of_class.mkdir(parents=True)
      for i in range(images):
        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels // (1 + m % 3)).save(of_class / f'{i}.png')

  draw(folder / 'classes', 1250, 2, 32)
  draw(folder / 'support', 20, 1000, 32)
  large = Image.new('RGB', (13_000, 13_000), (200, 100, 50))
  for split in ('train', 'validation', 'test'):
    draw(folder / 'large' / split, 5, 3, 84)
    for kind in ('jpg', 'png'):
      large.save(folder / f'large/{split}/{split}_0/large.{kind}')


TABLES = {'mini_imagenet': mini_imagenet, 'pictures': pictures}


def peak(command, **options):
  """Runs a command; returns (peak memory in MB, seconds, exit code)."""
  start = time.monotonic()
  process = subprocess.Popen(command, **options)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  kilobytes = usage.ru_maxrss / (1024 if sys.platform == 'darwin' else 1)
  return kilobytes * 1024 / 1e6, time.monotonic() - start, process.returncode


def _row(label, command, **options):
  """Prints the row of a command; returns its exit code."""
  megabytes, seconds, code = peak(command, **options)
  failed = f' (exit code {code})' if code else ''
  print(f'| {label}{failed} | {megabytes:,.0f} | {seconds:.0f} |', flush=True)
  return code


def parse(argv=None):
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('kind', choices=(*TABLES, 'run'))
  parser.add_argument('rest', nargs=argparse.REMAINDER, metavar='..',
                      help='FILES, RUN or a command')
  args = parser.parse_args(argv)
  if not args.rest or (args.kind in TABLES and len(args.rest) > 1):
    parser.error(f'after {args.kind} must follow '
                 + ('a command' if args.kind == 'run' else 'one folder'))
  return args


def main(argv=None):
  """Prints a table; returns the exit code of the first command that fails."""
  args = parse(argv)
  print('| command | peak memory (MB) | time (s) |\n|---|---|---|', flush=True)
  if args.kind == 'run':
    return _row(f'`{" ".join(args.rest)}`', args.rest, stdout=sys.stderr)
  with tempfile.TemporaryDirectory() as folder:
    env = {**os.environ, 'MTL_JAX_DATA': f'{folder}/data'}
    for label, command in TABLES[args.kind](args.rest[0], folder):
      code = _row(label, command, env=env, stdout=sys.stderr)
      if code:
        return code
  return 0


if __name__ == '__main__':
  sys.exit(main())
