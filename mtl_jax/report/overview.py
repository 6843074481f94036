"""The page of many runs: report.html, report.md and its pictures.

    python -m mtl_jax.report PATH.. --page=FOLDER

Each part of the page is made of records alone (records.py); see
docs/report.md.
"""

import json

from mtl_jax import files
from mtl_jax.errors import UserError
from mtl_jax.report import accuracy, cost, curves, details, page, records

TITLE = 'Methods compared'
_HOW = (
    'Every number is of the records of finished tests. A method is trained on '
    'the training classes of a benchmark and tested on tasks of its unseen '
    'test classes. The tasks of a column are the same for all methods, unless '
    'its table says "other tasks".')
_CURVES = (
    'Accuracy on validation classes during training. A thick line is the mean '
    'over the seeds, thin lines are the seeds. Axes of time and of FLOPs are '
    'logarithmic. Time is that of training alone, without validation.')
_CAPTIONS = {'steps': 'Learning curves', 'seconds': 'Accuracy against time',
             'flops': 'Accuracy against FLOPs'}


def write(paths, folder):
  """Writes the page of records and workdirs; returns what to print.

  Args:
    paths: see records.read.
    folder: made if need be; files of the same names are replaced.

  Raises:
    UserError: a record is wrong, there is none, or the folder cannot be
      written.
  """
  out = files.at(folder)
  if out.exists() and not out.is_dir():
    raise UserError(f'--page={folder} is a file: name a folder')
  found = records.read(paths)
  parts = sections(found)
  introduction = f'{_counts(found)}. {_HOW}'
  pictures = {name: data for section in parts for block in section.blocks
              if isinstance(block, page.Pictures)
              for name, _, data in block.files}
  files.make(out)
  pages = {'report.md': page.markdown(TITLE, introduction, parts),
           'report.html': page.page(TITLE, introduction, parts)}
  for name, contents in {**pictures, **pages}.items():
    files.write(out / name, contents if isinstance(contents, bytes)
                # A name may have halves of signs, which no file can hold.
                else contents.encode('utf-8', 'replace'))
  lines = [f'{folder}: report.html and report.md, {_counts(found)}']
  return '\n'.join([*lines, *(f'left out: {line}' for line in found.left_out)])


def sections(found):
  """Returns the page.Sections of records.Found."""
  every = accuracy.groups(found.cells)
  trainings = _trainings(every)
  scales = sorted({cell.scale for cell in (*found.cells, *found.missing)})
  tables = {_of('Accuracy', scale): accuracy.layout(found, scale)
            for scale in scales}
  parts = [page.Section(title, 'methods by benchmarks and shots',
                        blocks=[table]) for title, table in tables.items()]
  for scale in scales:
    table = accuracy.published(found, scale)
    if table:
      parts.append(page.Section(
          _of('Beside published values', scale),
          f'{len(table.rows)} differences with their intervals',
          blocks=[table]))
  efficiency = [block for title, columns, methods in trainings
                for block in _efficiency(title, columns, methods)]
  differences = [block for column, methods in every.items()
                 for block in _with_heading(
                     _title(column), accuracy.pairs(methods))]
  pictures = [block for i, training in enumerate(trainings, 1)
              for block in _with_heading(training[0], _pictures(i, *training))]
  parts += [section for section in (
      page.Section('Training cost', 'time, images and FLOPs', blocks=_once([
          block for title, _, methods in trainings for block in _with_heading(
              title, [cost.training(methods)])])),
      page.Section('Efficiency', 'the price of second order, and the other '
                   'factors of the time', blocks=_once(efficiency)),
      page.Section('Accuracy against cost', 'learning curves over steps, time '
                   'and FLOPs', blocks=[_CURVES, *pictures] * bool(pictures)),
      page.Section('Paired differences', 'between methods on the same tasks',
                   blocks=_once(differences)),
      page.Section('Cells', 'test, config, commit, machine and command of each',
                   blocks=[page.Folded(_title(column), details.of_column(
                       methods)) for column, methods in every.items()]),
  ) if section.blocks]
  if found.left_out:
    parts.append(page.Section('Left out', 'workdirs without a finished test',
                              blocks=found.left_out))
  return parts


def _counts(found):
  methods = {records.base(cell.method) for cell in found.cells}
  text = f'{len(found.cells)} cells of {len(methods)} methods'
  if found.missing:
    text += f', {len(found.missing)} expected cells missing'
  return text


def _trainings(every):
  """Returns [(title, [Column], methods)]: columns of the same trainings."""
  same = {}
  for column, methods in every.items():
    key = json.dumps([column[:2], [
        (name, cell.seed, cell.record.get('training'))
        for name, cells in methods.items() for cell in cells]])
    same.setdefault(key, []).append((column, methods))
  return [(_of(' and '.join([str(group[0][0]), *(
      f'{column.shots}-shot' for column, _ in group[1:])]), group[0][0].scale),
           [column for column, _ in group], group[0][1])
          for group in same.values()]


def _efficiency(title, columns, methods):
  blocks = [page.Heading(title), 'As run here:', cost.measured(methods)]
  for column in columns:
    table = cost.at_published(column, methods)
    if table:
      blocks += [f'At the published schedule, {column}:', table]
  return blocks


def _pictures(place, title, columns, methods):
  """Returns the page.Pictures of a column, and a line on what they leave out.

  They are [] where no curve is known.
  """
  shots = {column.shots for column in columns}
  drawn = [(curves.file_name(place, title, axis), f'{caption}: {title}',
            curves.draw(methods, axis, title, shots))
           for axis, caption in _CAPTIONS.items()]
  known = [picture for picture in drawn if picture[2]]
  left_out = records.order_of_methods(
      curves.validated_otherwise(methods, shots))
  line = (f'Without {", ".join(left_out)}, which were validated with another '
          'number of shots than they are tested with here.')
  return [*[page.Pictures(known)] * bool(known), *[line] * bool(left_out)]


def _with_heading(title, blocks):
  return [page.Heading(title), *blocks] if blocks else []


def _once(blocks):
  """Returns blocks with each note above all tables, and below none."""
  notes = dict.fromkeys(block.note for block in blocks
                        if isinstance(block, page.Table) and block.note)
  return [*notes, *(block._replace(note='') if isinstance(block, page.Table)
                    else block for block in blocks)]


def _title(column):
  return _of(str(column), column.scale)


def _of(title, scale):
  return f'{title}, scale {scale}' if scale else title
