"""Runs the cells of a notebook in one process, without Jupyter.

    python tests/notebook.py docs/notebook.ipynb

runs them in an empty folder and writes what they print and draw into the file.
"""

import ast
import base64
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile

import matplotlib
from PIL import Image

DPI = 72
COLOURS = 64  # fewer make a smaller file
PARAMETERS = 'parameters'  # tag of the cell whose values a test replaces


def run(cells, **parameters):
  """Runs the cells of a notebook in order.

  Args:
    cells: of the file; those of text are skipped.
    **parameters: set after the cell with the tag 'parameters'.

  Returns:
    a list of outputs, in the form of the file, for every cell of code.
  """
  matplotlib.use('agg')
  from matplotlib import pyplot
  pyplot.close('all')  # what another test of this process left open
  names, outputs = {'__name__': '__main__'}, []
  shown, show = [], pyplot.show
  pyplot.show = lambda: shown.extend(_figures(pyplot))
  try:
    for cell in cells:
      if cell['cell_type'] == 'code':
        with contextlib.redirect_stdout(io.StringIO()) as printed:
          value = _run_cell(''.join(cell['source']), names)
        if PARAMETERS in cell['metadata'].get('tags', ()):
          names |= parameters
        outputs.append([*_stream(printed.getvalue()), *shown, *_value(value)])
        shown.clear()
  finally:
    pyplot.show = show
  return outputs


def _run_cell(source, names):
  """Runs a cell; returns the value of the expression that it ends in."""
  tree, last = ast.parse(source), None
  if tree.body and isinstance(tree.body[-1], ast.Expr):
    last = ast.Expression(tree.body.pop().value)
  exec(compile(tree, 'cell', 'exec'), names)
  return last and eval(compile(last, 'cell', 'eval'), names)


def _stream(text):
  here = f'{os.getcwd()}/'
  lines = text.replace(here, '').splitlines(keepends=True)
  return [{'output_type': 'stream', 'name': 'stdout', 'text': lines}] * bool(
      lines)


def _value(value):
  return [] if value is None else [{
      'output_type': 'execute_result', 'metadata': {},
      'data': {'text/plain': repr(value).splitlines(keepends=True)}}]


def _figures(pyplot):
  """Returns the open figures as outputs, and closes them."""
  outputs = []
  for number in pyplot.get_fignums():
    png, small = io.BytesIO(), io.BytesIO()
    pyplot.figure(number).savefig(png, dpi=DPI, bbox_inches='tight')
    Image.open(png).convert('RGB').quantize(COLOURS).save(
        small, 'PNG', optimize=True)
    pyplot.close(number)
    outputs.append({
        'output_type': 'display_data', 'metadata': {},
        'data': {'image/png': base64.b64encode(small.getvalue()).decode()}})
  return outputs


def main(path):
  """Runs a notebook and writes its outputs into it."""
  path = pathlib.Path(path).resolve()
  content = json.loads(path.read_text(encoding='utf-8'))
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    outputs = run(content['cells'])
  code = [c for c in content['cells'] if c['cell_type'] == 'code']
  for number, (cell, of_cell) in enumerate(
      zip(code, outputs, strict=True), 1):
    cell['execution_count'] = number
    cell['outputs'] = of_cell
    for output in of_cell:
      if output['output_type'] == 'execute_result':
        output['execution_count'] = number
  path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + '\n',
                  encoding='utf-8')


if __name__ == '__main__':
  main(*sys.argv[1:])
