"""docs/notebook.ipynb: every cell runs, and what it shows was made by it."""

import json
import re

import command
import notebook
import pytest
from conftest import ROOT

PATH = ROOT / 'docs/notebook.ipynb'
CELLS = json.loads(PATH.read_text(encoding='utf-8'))['cells']
CODE = [cell for cell in CELLS if cell['cell_type'] == 'code']
# One epoch of a few steps, of a small network on a small data set.
SETTINGS = {name.removeprefix('config.'): value
            for name, value in command.TINY.items()
            if not name.startswith('config.method.')} | {
                'eval.baselines': True, 'train.max_epochs': 1,
                'parallel.devices': 1}


def printed(outputs):
  """Returns what a cell prints and returns."""
  return ''.join(''.join(output.get('text', '')) for output in outputs)


def test_every_cell_runs(tmp_path, monkeypatch):
  """Fails if a reader who runs the notebook meets an error."""
  monkeypatch.chdir(tmp_path)
  outputs = notebook.run(CELLS, SETTINGS=SETTINGS)
  text = ''.join(map(printed, outputs))
  for expected in ('mtl with conv4 on glyphs', '5-way 1-shot', 'centroid',
                   'own method - mtl: '):
    assert expected in text
  assert 'nan' not in text
  # The committed notebook shows the same kinds of outputs.
  kinds = lambda of: [[o['output_type'] for o in cell] for cell in of]
  assert kinds(outputs) == kinds(cell['outputs'] for cell in CODE)
  assert {path.name for path in tmp_path.iterdir()} - {'__pycache__'} == {
      'runs', 'letters', 'my_method.py'}


def test_the_notebook_is_kept_with_its_outputs():
  text = PATH.read_text(encoding='utf-8')
  assert PATH.stat().st_size < 300_000
  assert [cell['execution_count'] for cell in CODE] == [
      *range(1, len(CODE) + 1)], 'not run from top to bottom'
  assert not re.search(r'"[^"]*/(home|root|tmp|Users)/', text), 'a path'
  assert text.count('image/png') == 3
  for key in ('error', 'Traceback', 'Warning'):
    assert f'"{key}' not in text


def test_cells_show_their_last_value_and_figures(tmp_path, monkeypatch):
  """Fails if the program that runs the notebook leaves something out."""
  cell = lambda source, **metadata: {
      'cell_type': 'code', 'source': source, 'metadata': metadata}
  outputs = notebook.run([
      cell(['x = 1\n', "print('a')\n", 'x + 1'], tags=['parameters']),
      {'cell_type': 'markdown', 'source': ['x = 5']},
      cell(['from matplotlib import pyplot\n', 'pyplot.plot([x])\n',
            'pyplot.show()'])], x=7)
  assert [[output['output_type'] for output in of] for of in outputs] == [
      ['stream', 'execute_result'], ['display_data']]
  assert outputs[0][1]['data'] == {'text/plain': ['2']}
  with pytest.raises(ZeroDivisionError):
    notebook.run([cell(['1 / 0'])])
