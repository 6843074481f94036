"""A user's own method, network, head and data source, each in one file.

The files are those that docs/own.md shows.
"""

import json
import re

import command
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mtl_jax import main
from mtl_jax.adapt import classify

NAMES = ('data', 'method', 'network', 'config', 'head')
FLAGS = [
    '--config=my/config.py:my/method.py', '--config.data.name=my/data.py',
    "--config.eval.heads=('own','my/head.py')", '--config.model.width=8',
    '--config.train.shots=2', '--config.train.queries=2',
    '--config.train.epoch_tasks=8', '--config.validation.tasks=4',
    '--config.eval.tasks=6', '--config.eval.baselines=False', '--workdir=run']


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """Returns a folder with the files, pictures and a run of one epoch."""
  path = tmp_path_factory.mktemp('home')
  (path / 'my').mkdir()
  blocks = re.findall(r'```python\n(.*?)```',
                      (ROOT / 'docs/own.md').read_text(), re.S)
  for name, text in zip(NAMES, blocks, strict=True):
    (path / f'my/{name}.py').write_text(text)
  rng = np.random.default_rng(0)
  for name in ('stripes', 'noise'):
    for part, count in (('known', 2), ('new', 1)):
      (path / part / name).mkdir(parents=True)
      for i in range(count):
        image = rng.integers(0, 256, (28, 28), np.uint8)
        if name == 'stripes':
          image[:, ::2] = 0
        Image.fromarray(image).save(path / part / name / f'{i}.png')
  run(path, [*FLAGS, '--config.train.max_epochs=1'])
  return path


def run(home, flags, program='mtl_jax.main'):
  result = command.run(flags, program=('-m', program), cwd=home)
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_they_are_trained_together(home):
  test = json.loads((home / 'run/test.json').read_text())
  assert set(test['scores']) == {'own', 'my/head.py'}
  assert (test['method'], test['data']) == ('my/method.py', 'my/data.py')
  # Chance is 0.2.
  assert test['scores']['my/head.py']['accuracy'] > 0.25


def test_their_run_resumes(home):
  text = run(home, [*FLAGS, '--config.train.max_epochs=2'])
  assert 'Resuming at step 2.' in text
  assert json.loads((home / 'run/config.json').read_text())['model'] == {
      'name': 'my/network.py', 'width': 8}


def test_their_run_is_tested_again(home):
  run(home, ['--mode=evaluate', '--checkpoint=run', '--workdir=again'])
  again, first = (json.loads((home / folder / 'test.json').read_text())
                  for folder in ('again', 'run'))
  assert again['scores'] == first['scores']


def test_their_run_adapts_to_pictures_without_its_data(home):
  away = (home / 'my/data.py').rename(home / 'my/away.py')
  run(home, ['--checkpoint=run', '--support=known', '--query=new',
             '--head=my/head.py', '--out=out'], 'mtl_jax.adapt')
  result = json.loads((home / 'out/predictions.json').read_text())
  assert result['head'] == 'my/head.py'
  assert len(result['predictions']) == 2
  away.rename(home / 'my/data.py')


def test_their_network_is_used_where_their_data_and_head_are_gone(
    home, monkeypatch):
  """Fails if adapt or features need what they do not use."""
  monkeypatch.chdir(home)
  for name in ('data', 'head'):
    (home / f'my/{name}.py').rename(home / f'my/{name}.away')
  try:
    result = classify.adapt('run', 'known', 'new', head='own')
    assert main.main(['--mode=features', '--checkpoint=run',
                      '--images=known']) == 0
  finally:
    for name in ('data', 'head'):
      (home / f'my/{name}.away').rename(home / f'my/{name}.py')
  assert result['method'] == 'my/method.py'
  # The method of the page takes no weights, and solves nothing.
  assert (result['count_alike'], result['converged']) == ('unknown', None)
  assert np.load('run/images/features.npz')['features'].shape == (4, 8)


UNFIT = {  # flag -> what its line must say
    '--config=my/config.py:my/none.py': 'none.py is not there',
    '--config=my/config.py:my/head.py': 'has no RECIPES',
    '--config.data.name=my/head.py': 'has no SOURCE',
    '--config.model.name=my/head.py': 'has no BACKBONE',
    "--config.eval.heads=('my/data.py',)": 'has no OPTIONS'}


def test_a_file_that_is_not_what_is_needed_gets_one_line(home):
  results = command.run_each([
      [*(f for f in FLAGS if f.split('=')[0] != flag.split('=')[0]), flag,
       '--workdir=wrong'] for flag in UNFIT], cwd=home)
  for result, line in zip(results, UNFIT.values(), strict=True):
    assert result.returncode == 2 and line in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
  assert not (home / 'wrong').exists()
