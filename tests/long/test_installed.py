"""A wheel, alone in an empty folder: all commands and examples of the README.

The environment of each Python in $MTL_JAX_PYTHONS (paths, with the separator of
$PATH; default: the Python of the tests) gets the wheel and what it requires
from the package index. mini-ImageNet is built where $MTL_JAX_TEST_DATA has its
files. Commands that take long are made short by further flags.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import built_wheel  # noqa: E402
import test_smoke  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
PYTHONS = (os.environ.get('MTL_JAX_PYTHONS') or sys.executable).split(
    os.pathsep)
FILES = os.path.join(os.environ.get('MTL_JAX_TEST_DATA', ''), 'mini_imagenet')
# What a command of the README contains -> flags that make it short.
SHORT = {
    '--config=glyphs_5shot': '--config.train.epoch_tasks=80 '
                             '--config.eval.tasks=50',
    '--config=mini_5shot_cpu': '--config.train.epoch_tasks=4 '
                               '--config.eval.tasks=20 '
                               '--config.validation.tasks=10',
    'mtl_jax.ntk report': '--checks=equivalence',
}
NEEDS_A_CLONE = ('make', 'pip')
# Letters for the examples on pictures of one's own.
LETTERS = '''
import pathlib
from PIL import Image
from mtl_jax.data import store
test = store.load('glyphs', 'test')
for name, first in zip('abc', test.offsets):
  for i in range(8):
    folder = 'known' if i < 5 else 'new'
    path = pathlib.Path('letters', folder, name, f'{i}.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(test.images[first + i, ..., 0]).save(path)
'''


def run(command, **options):
  done = subprocess.run(command, text=True, capture_output=True, timeout=3600,
                        **options)
  assert done.returncode == 0, f'{command}\n{done.stdout}\n{done.stderr}'
  assert 'Traceback' not in done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  path = tmp_path_factory.mktemp('wheel')
  built_wheel.build(path)
  found, = path.glob('mtl_jax-*.whl')
  return found


@pytest.fixture(scope='module', params=PYTHONS)
def environment(request, wheel, tmp_path_factory):
  """Returns options of `run`: an empty folder, and the commands of a wheel."""
  path = tmp_path_factory.mktemp('environment')
  run([request.param, '-m', 'venv', path / 'venv'])
  # Pip would count a package of $PYTHONPATH as installed.
  run([path / 'venv/bin/python', '-m', 'pip', 'install', '--quiet', wheel],
      env={name: value for name, value in os.environ.items()
           if name != 'PYTHONPATH'})
  for name in ('home', 'empty'):
    (path / name).mkdir()
  return {'cwd': path / 'empty', 'env': {
      'PATH': f'{path}/venv/bin:/usr/bin:/bin', 'HOME': str(path / 'home'),
      'JAX_PLATFORMS': 'cpu'}}


def test_the_readme_works_with_a_wheel_alone(environment):
  lines = [line for line in dict.fromkeys(test_smoke.commands_of(README))
           if not line.startswith(NEEDS_A_CLONE)]
  assert lines[0] == 'mtl-jax --config=quickstart --workdir=runs/quickstart'
  assert len(lines) > 7
  for number, line in enumerate(lines):
    if 'mini' in line and '--help' not in line and not os.path.isdir(FILES):
      continue
    flags = [short for text, short in SHORT.items()
             if text in line and '--help' not in line]
    line = ' '.join([line.replace('=PATH', f'={FILES}'), *flags])
    printed = run(line, shell=True, **environment)
    if number == 0:
      score = re.search(r'mtl, trained, logistic head +([\d.]+)%', printed)[1]
      assert float(score) > 80
      run(['python', '-c', LETTERS], **environment)
  for text in test_smoke.EXAMPLE.findall(README):
    assert '%' in run(['python', '-c', text], **environment)
