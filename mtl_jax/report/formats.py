"""Write a table of tests as text, Markdown, CSV, LaTeX or JSON."""

import csv
import io
import re

from mtl_jax import files

_LATEX = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}',
          '^': r'\textasciicircum{}', '<': r'\textless{}',
          '>': r'\textgreater{}', '|': r'\textbar{}', '"': r'\textquotedbl{}',
          '+-': r'$\pm$', **{sign: f'\\{sign}' for sign in '&%$#_{}'}}
# What decides how a line of Markdown is shown.
_MARKDOWN = re.compile(r'([\\`*_|<>\[\]])')
NOTE = ('Accuracies in %, with half-widths of 95% intervals. Over seeds: '
        "Student's t of the seeds' accuracies. Over tasks: of the accuracies "
        'of the tasks, means over these seeds.')
DIFFERENCE = ('Points above --against, on the same tasks: over seeds by '
              "Welch's t, over tasks paired.")


def text(rows):
  """Returns aligned columns, with notes."""
  table = [_header(rows), *_cells(rows)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  first = _numbers_from(table[0])
  lines = ['  '.join(
      cell.rjust(width) if i >= first else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
  ).rstrip() for line in table]
  return '\n'.join([*lines, '', *notes(rows)])


def markdown(rows):
  """Returns a table of GitHub's Markdown, with notes."""
  header = _header(rows)
  escape = lambda line: [markdown_text(cell) for cell in line]
  return '\n'.join([
      *markdown_table(escape(header), map(escape, _cells(rows)),
                      _numbers_from(header)), '',
      *(f'{markdown_text(note)}\n' for note in notes(rows))]).rstrip()


def markdown_table(header, rows, numbers_from):
  """Returns the lines of a table whose cells are Markdown already."""
  line = lambda cells: f'| {" | ".join(cells)} |'
  rule = '|'.join('---:' if i >= numbers_from else '---'
                  for i in range(len(header)))
  return [line(header), f'|{rule}|', *map(line, rows)]


def markdown_text(text):
  """Returns a text that Markdown shows as it is."""
  return _MARKDOWN.sub(r'\\\1', text)


def latex(rows):
  """Returns a tabular that needs no package, with notes as comments."""
  pattern = '|'.join(map(re.escape, sorted(_LATEX, key=len, reverse=True)))
  escape = lambda cell: re.sub(pattern, lambda sign: _LATEX[sign[0]], cell)
  line = lambda cells: f'{" & ".join(map(escape, cells))} \\\\'
  header = _header(rows)
  first = _numbers_from(header)
  return '\n'.join([
      *(f'% {note}' for note in notes(rows)),
      rf'\begin{{tabular}}{{{"l" * first}{"r" * (len(header) - first)}}}',
      r'\hline', line(header), r'\hline', *map(line, _cells(rows)), r'\hline',
      r'\end{tabular}'])


def csv_text(rows):
  """Returns one line per row with all that is known; shares, not percent."""
  records = [_record(row) for row in rows]
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, list(records[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows({**record, 'seeds': ' '.join(map(str, record['seeds']))}
                   for record in records)
  return buffer.getvalue().rstrip('\n')


def json_text(rows):
  """Returns a list of objects with all that is known."""
  return files.json_text([_record(row) for row in rows], indent=2)


def notes(rows):
  """Returns the lines below a table: which tasks, and what the numbers are."""
  compared = any(row.difference for row in rows)
  lines = [f'Tasks {letter}: {tasks}.' + ('' if tasks.sha256 else (
      ' An older version tested: that these tasks are the same follows from '
      'their settings alone.')) for tasks, letter in _letters(rows).items()]
  if len(lines) > 1:
    lines.append('Rows of different tasks cannot be compared.')
  return [*lines, NOTE, *([DIFFERENCE] if compared else [])]


FORMATS = {'text': text, 'markdown': markdown, 'csv': csv_text,
           'latex': latex, 'json': json_text}


def _header(rows):
  compared = any(row.difference for row in rows)
  return ['run', 'method', 'head', 'tasks', 'shots', 'seeds', 'accuracy',
          '+- seeds', '+- tasks',
          *(['difference', '+- seeds', '+- tasks'] if compared else [])]


def _numbers_from(header):
  return header.index('shots')


def _cells(rows):
  """Returns the texts of all rows; '-': there is no such number."""
  letters = _letters(rows)
  compared = any(row.difference for row in rows)
  result = []
  for row in rows:
    cells = [row.run, row.method, row.head, letters[row.tasks],
             str(row.tasks.shots), str(len(row.seeds)), _percent(row.accuracy),
             _percent(row.over_seeds), _percent(row.over_tasks)]
    if compared:
      gap = row.difference
      cells += [_percent(gap and gap.accuracy, '+'),
                _percent(gap and gap.over_seeds),
                _percent(gap and gap.over_tasks)]
    result.append([one_line(cell) for cell in cells])
  return result


def _percent(share, sign=''):
  return '-' if share is None else f'{100 * share:{sign}.2f}'


def one_line(cell):
  """Returns a name without what would break a line."""
  return ''.join(c if c.isprintable() else '?' for c in cell)


def _letters(rows):
  """Returns Tasks -> a letter, then a letter and a number."""
  found = dict.fromkeys(row.tasks for row in rows)
  return {tasks: chr(65 + i % 26) + (str(i // 26) if i >= 26 else '')
          for i, tasks in enumerate(found)}


def _record(row):
  """Returns a Row as a flat mapping of names to plain values."""
  gap, tasks = row.difference, row.tasks
  return {
      'run': row.run, 'method': row.method, 'head': row.head,
      'data': tasks.data, 'split': tasks.split, 'ways': tasks.ways,
      'shots': tasks.shots, 'queries': tasks.queries,
      'num_tasks': tasks.num_tasks, 'tasks_sha256': tasks.sha256,
      'seeds': list(row.seeds), 'num_seeds': len(row.seeds),
      'accuracy': row.accuracy, 'ci95_seeds': row.over_seeds,
      'ci95_tasks': row.over_tasks,
      'difference': gap and gap.accuracy,
      'difference_ci95_seeds': gap and gap.over_seeds,
      'difference_ci95_tasks': gap and gap.over_tasks}
