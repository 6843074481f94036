"""The page of many runs, made of synthetic records of known answers."""

import json
import re

import cell_records
import numpy as np
import pytest
from scipy import stats

from mtl_jax.errors import UserError
from mtl_jax.report import __main__ as report
from mtl_jax.report import (
  accuracy,
  cell,
  cost,
  curves,
  details,
  overview,
  page,
  records,
)


def read(tmp_path, *values):
  return records.read([cell_records.write(tmp_path / 'records', *values)])


def column(found):
  """The methods of the only column."""
  (place, methods), = accuracy.groups(found.cells).items()
  return place, methods


def row(table, name, *columns):
  """The first lines of a method's row, by the names of columns."""
  names = [head if isinstance(head, str) else head[0] for head in table.header]
  line = next(line for line in table.rows if line[0] == name)
  lines = [cell if isinstance(cell, str) else cell[0] for cell in line]
  return [lines[names.index(column)] for column in columns]


def main(tmp_path, *flags, capsys):
  """Exit code, stdout and stderr of the command on tmp_path / 'records'."""
  code = report.main([str(tmp_path / 'records'), *flags])
  return code, *capsys.readouterr()


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """The folder of a page of three methods, two columns, two seeds."""
  folder = tmp_path_factory.mktemp('page')
  every = [cell_records.record(method, seed, shots=shots)
           for method in ('maml', 'mtl', 'protonet') for seed in (0, 1)
           for shots in (1, 5)]
  every[0]['published'] = {'accuracy': 0.4, 'ci95': 0.01, 'source': 'S 2017',
                           'network': 'CNN-4'}
  cell_records.write(folder / 'records', *every)
  (folder / 'records/cells.json').write_text(json.dumps([
      {**every[0]['cell'], 'benchmark': 'fc100', 'status': 'not at hand'},
      {**every[0]['cell'], 'status': 'is there'},
      {**every[0]['cell'], 'seed': 2, 'status': 'not run yet'}]))
  assert report.main([str(folder / 'records'), f'--page={folder / "out"}']) == 0
  return folder / 'out'


# --- Numbers. ---


def test_the_intervals_of_a_group_are_those_of_scipy(tmp_path):
  found = read(tmp_path, *(cell_records.record(seed=seed) for seed in range(3)))
  score = accuracy.score(found.cells)
  values = np.array([c.get('test.correct') for c in found.cells]) / 75
  low, high = stats.t.interval(0.95, 2, 0, stats.sem(values.mean(1)))
  assert score.accuracy == pytest.approx(values.mean())
  assert score.over_seeds == pytest.approx((high - low) / 2, rel=1e-4)
  assert score.over_tasks == pytest.approx(1.96 * stats.sem(values.mean(0)))


def test_seeds_on_different_tasks_have_no_interval_over_tasks(tmp_path):
  found = read(tmp_path, cell_records.record(seed=0), cell_records.record(
      seed=1, test__tasks_sha256='others'))
  assert accuracy.score(found.cells).over_tasks is None
  assert 'seeds on different tasks' in accuracy.layout(found, 'cpu').rows[0][1]


def test_the_difference_from_a_published_value(tmp_path):
  """3, 4 and 5: the root of the sum of squares of the two intervals."""
  changes = {'test__correct': None, 'test__accuracy': 0.6, 'test__ci95': 0.03}
  publish = lambda ci95: {'accuracy': 0.65, 'ci95': ci95}
  found = read(
      tmp_path, cell_records.record(published=publish(0.04), **changes),
      cell_records.record('maml', published=publish(None), **changes))
  table = accuracy.published(found, 'cpu')
  columns = ('published', 'difference', '± tasks', '± seeds')
  assert row(table, 'mtl', *columns) == ['65.00 ± 4.00', '-5.00', '5.00', '-']
  assert row(table, 'maml', *columns) == ['65.00', '-5.00', '3.00*', '-']


def test_images_stand_beside_those_of_the_published_schedule(tmp_path):
  """Fails if what is not published is called so, or is counted wrongly.

  MAML: 60,000 steps of 4 tasks of 5 x 20 images, which Meta-SGD only borrows;
  iMAML published Omniglot's schedule, R2D2 none of tiered-ImageNet.
  """
  found = read(tmp_path, *(cell_records.record(
      name, benchmark=benchmark, published={'accuracy': 0.5})
      for benchmark, names in (
          ('mini_imagenet', ('maml', 'meta_sgd', 'r2d2', 'imaml', 'mtl')),
          ('tiered_imagenet', ('r2d2',)), ('fc100', ('whole_class',)))
      for name in names))
  images = {(line[1].partition(',')[0], line[0]): line[-2:]
            for line in accuracy.published(found, 'cpu').rows}
  assert {key: ours for key, (ours, _) in images.items()} == dict.fromkeys(
      images, '500,000')
  assert {key: theirs for key, (_, theirs) in images.items()} == {
      ('mini_imagenet', 'maml'): '24,000,000',
      ('mini_imagenet', 'meta_sgd'): '24,000,000 (nearest)',
      ('mini_imagenet', 'r2d2'): 'until 200 epochs without gain',
      ('mini_imagenet', 'imaml'): '32,000,000 (nearest)',
      ('mini_imagenet', 'mtl'): 'until 15 epochs without gain',
      ('tiered_imagenet', 'r2d2'): 'until 200 epochs without gain (nearest)',
      ('fc100', 'whole_class'): '3,596,800'}  # of 36,000, in whole steps
  methods = accuracy.groups(found.cells)[
      accuracy.Column('cpu', 'tiered_imagenet', 5)]
  assert cost.at_published(accuracy.Column('cpu', 'tiered_imagenet', 5),
                           methods).rows[0][2:4] == (
      '24,000 (nearest)', 'until 200 epochs without gain (nearest)')


def test_a_paired_difference(tmp_path):
  """The differences are 20 and 0 points: 10 +- 1.96 x 14.142 / sqrt(2)."""
  _, methods = column(read(
      tmp_path, cell_records.record('mtl', correct=[75, 60]),
      cell_records.record('maml', correct=[60, 60])))
  table, = accuracy.pairs(methods)
  assert table.rows == [('mtl', '', ('+10.00', '± 19.60')),
                        ('maml', ('-10.00', '± 19.60'), '')]


def test_tests_on_different_tasks_are_not_paired(tmp_path):
  found = read(tmp_path, cell_records.record('mtl'), cell_records.record(
      'maml', test__tasks_sha256='others'), cell_records.record('anil'))
  table, = accuracy.pairs(column(found)[1])
  assert [line[0] for line in table.rows] == ['mtl', 'anil']
  layout = accuracy.layout(found, 'cpu')
  assert ['other tasks' in line[1] for line in layout.rows] == [
      False, False, True]


def test_the_price_of_second_order(tmp_path):
  """2 and 12 ms, 1 and 6 GFLOPs per image; 500,000 images are 12.5 epochs."""
  _, methods = column(read(tmp_path, cell_records.record('mtl'),
                           cell_records.record('maml')))
  table = cost.measured(methods)
  assert table.rows[1] == (
      'maml', 'steps of all layers', '12', '6.00', '6.00', '40,000', '12.5',
      '1.67', '6.00')  # 0.012 s x 40,000 x 12.5 / 3600
  assert row(cost.training(methods), 'maml', 'seconds', 'ms per step',
             'FLOPs') == ['6,000', '2,400', '3.00e+15']


@pytest.mark.parametrize('mtl, maml, expected', [
    ({'processor': 'another'}, {}, '-'), ({'devices': 1}, {}, '6.00'),
    ({'device': 'GPU', 'devices': 1}, {'device': 'GPU'}, '-')])
def test_times_of_two_machines_are_not_divided(tmp_path, mtl, maml, expected):
  """The devices of a CPU are shares of the same cores."""
  found = read(tmp_path, *(cell_records.record(name, **{
      f'provenance__{field}': value for field, value in changes.items()})
      for name, changes in (('mtl', mtl), ('maml', maml))))
  assert cost.measured(column(found)[1]).rows[1][3:5] == (expected, '6.00')


def test_the_published_schedule(tmp_path):
  """8000 tasks of 5 x (15 + 6) images, 60 epochs, 7 ms; 85.6 / 3.7 hours."""
  place, methods = column(read(
      tmp_path, *(cell_records.record(name, benchmark='mini_imagenet')
                  for name in ('mtl', 'metaoptnet'))))
  table = cost.at_published(place, methods)
  assert table.rows[1] == (
      'metaoptnet', '7', '840,000 (published)', '60 (published)',
      '50,400,000', '98', '85.6', '23.14')
  assert table.rows[0][2:6] == ('80,000 (published)',
                                'until 15 epochs without gain', '-', '-')


def test_what_one_record_does_not_know_is_a_dash(tmp_path):
  """Fails if the others lose what they know, or if unknown columns are kept."""
  other = cell_records.record('maml', training__parameters=None,
                              training__flops_per_step=None)
  found = read(tmp_path, other, cell_records.record(
      'mtl', training__parameters=None))
  _, methods = column(found)
  assert row(cost.training(methods), 'maml', 'FLOPs', 'seconds') == [
      '-', '6,000']
  assert 'parameters' not in cost.training(methods).header


def test_what_no_record_knows_is_left_out(tmp_path):
  needed = {name: value for name, value in cell_records.record().items()
            if name in ('cell', 'test')}
  needed['test'] = {'accuracy': 0.5}
  found = read(tmp_path, needed)
  _, methods = column(found)
  assert cost.training(methods).header == ('method', 'seeds')
  assert accuracy.layout(found, 'cpu').rows == [('mtl', ('50.00',))]
  assert page.page('', '', overview.sections(found))


# --- Which cells are there. ---


def test_columns_that_nothing_is_in_come_last(tmp_path):
  """mini-ImageNet is the first of the order, and here it is missing."""
  found = read(tmp_path, cell_records.record(benchmark='glyphs'))
  there = found.cells[0]
  missing = records.Missing('cpu', 'mini_imagenet', 'mtl', there.shots, 0, '?')
  table = accuracy.layout(found._replace(missing=[missing]), 'cpu')
  assert [head[0] for head in table.header[1:]] == ['glyphs', 'mini_imagenet']


def test_missing_cells_say_why(tmp_path):
  folder = cell_records.write(tmp_path / 'records', cell_records.record(),
                              cell_records.record('maml', shots=1))
  (folder / 'cells.json').write_text(json.dumps([
      {**cell_records.record()['cell'], 'status': 'is there'},
      {**cell_records.record(seed=1)['cell'], 'status': 'not run yet'},
      {**cell_records.record('maml')['cell'], 'status': 'not run yet'}]))
  table = accuracy.layout(records.read([folder]), 'cpu')
  assert table.header == ('method', ('glyphs', '1-shot'), ('glyphs', '5-shot'))
  assert table.rows[0][1] == accuracy.MISSING
  assert table.rows[0][2][1] == '1 of 2 seeds'
  assert table.rows[1][2] == 'not run yet'


def test_settings_have_rows_of_their_own_and_a_cell_counts_once(
    tmp_path, capsys):
  one, two = cell_records.record(), cell_records.record(
      provenance__settings_sha256='abcdefgh')
  found = read(tmp_path, one, two)
  assert [line[0] for line in accuracy.layout(found, 'cpu').rows] == [
      'mtl [abcdef]', 'mtl [settin]']
  cell_records.write(tmp_path / 'records', one, one)
  code, _, error = main(tmp_path, f'--page={tmp_path / "out"}', capsys=capsys)
  assert code == 2 and 'two records of mtl' in error


def test_workdirs_are_read_and_unfinished_ones_are_named(
    tmp_path, monkeypatch):
  for name in ('a', 'b'):
    (tmp_path / f'runs/{name}').mkdir(parents=True)
    (tmp_path / f'runs/{name}/config.json').write_text('{}')

  def of_run(path):
    if path.name == 'b':
      raise UserError(f'{path} holds no finished test')
    return [cell_records.record()]

  monkeypatch.setattr(cell, 'of_run', of_run)
  found = records.read([tmp_path / 'runs'])
  assert [c.path for c in found.cells] == [f'{tmp_path}/runs/a']
  assert found.left_out == [f'{tmp_path}/runs/b holds no finished test']
  with pytest.raises(UserError, match='no finished test'):
    records.read([tmp_path / 'runs/b'])


# --- The page. ---


def test_the_page_needs_no_other_file(written):
  html = (written / 'report.html').read_text()
  assert re.findall(r'src="(?!data:image/svg)', html) == []
  assert not re.search(r'<script|<link|@import|url\(|href="[^#]', html)
  assert 'prefers-color-scheme:dark' in html and 'width=device-width' in html


def test_the_markdown_shows_the_pictures_beside_it(written):
  text = (written / 'report.md').read_text()
  pictures = re.findall(r'!\[.*?\]\((.*?)\)', text)
  assert len(pictures) == 6  # three of each column
  assert {path.name for path in written.iterdir()} == {
      *pictures, 'report.md', 'report.html'}


@pytest.mark.parametrize('name', ['report.html', 'report.md'])
def test_the_page_has_all_parts(written, name):
  text = (written / name).read_text().replace('\\', '')
  for part in ('not at hand', '2 of 3 seeds', 'published 40.00 ± 1.00',
               'running statistics', '0123456789abcdef', 'jax=0.10.2',
               '--config=glyphs_5shot:maml', 'optimizer.schedule=cosine',
               'steps of all layers', 'Paired differences', '2026-11-28'):
    assert part in text, part
  assert 'is there' not in text


def test_the_trainings_of_two_columns_are_shown_once(tmp_path):
  """Fails if a test at two numbers of shots costs two trainings."""
  same = cell_records.record(training__curve=[])['training']
  found = read(tmp_path, *(cell_records.record(shots=shots, training=same)
                           for shots in (1, 5)))
  blocks = next(section.blocks for section in overview.sections(found)
                if section.title == 'Training cost')
  assert [block.text for block in blocks if isinstance(block, page.Heading)
          ] == ['glyphs, 1-shot and 5-shot, scale cpu']


def test_a_curve_is_of_the_shots_of_its_column(tmp_path):
  """Fails if accuracies of 5-shot tasks stand above those of 1-shot tasks."""
  once = cell_records.record('mtl', shots=1)
  once['config']['validation']['shots'] = 5
  found = read(tmp_path, once, cell_records.record('protonet', shots=1))
  blocks = next(section.blocks for section in overview.sections(found)
                if section.title == 'Accuracy against cost')
  for _, _, picture in next(
      block for block in blocks if isinstance(block, page.Pictures)).files:
    labels = re.findall(r'<!-- (mtl|protonet) -->', picture.decode())
    assert labels == ['protonet']
  assert blocks[-1].startswith('Without mtl, which were validated with another')


def test_seeds_whose_answers_are_not_known_are_not_said_to_differ(tmp_path):
  tasks = [{'test__correct': None},
           {'test__correct': None, 'test__tasks_sha256': 'others'}]
  for second, said in zip(tasks, (False, True), strict=True):
    found = read(tmp_path, cell_records.record(test__correct=None),
                 cell_records.record(seed=1, **second))
    entry = accuracy.layout(found, 'cpu').rows[0][1]
    assert ('seeds on different tasks' in entry) is said


def test_a_method_with_two_settings_is_one_method(tmp_path):
  found = read(tmp_path, cell_records.record(), cell_records.record(
      provenance__settings_sha256='others'))
  assert overview._counts(found) == '2 cells of 1 methods'


def test_a_file_of_another_program_stops_no_page(tmp_path):
  """Fails if a folder of runs cannot hold what json.dump writes of a NaN."""
  (tmp_path / 'records').mkdir()
  (tmp_path / 'records/loss.json').write_text('{"loss": NaN}')
  assert len(read(tmp_path, cell_records.record()).cells) == 1


def test_a_method_looks_the_same_in_all_pictures():
  every = curves.styles(list(cell_records.METHODS))
  assert curves.styles(['maml', 'mtl']) == {
      name: every[name] for name in ('maml', 'mtl')}
  for values in list(zip(*every.values(), strict=True))[:2]:
    assert len(set(values)) == len(every)


def test_two_titles_have_two_files_of_short_names():
  """Fails if a picture is written over another one, or cannot be written."""
  names = [curves.file_name(i, title, 'steps') for i, title in enumerate(
      ('../猫', '../犬', 'a' * 600))]
  assert len(set(names)) == 3
  assert all(re.fullmatch(r'[a-z0-9_]{1,90}\.svg', name) for name in names)


def test_the_differing_fields_are_those_that_were_changed():
  config = cell_records.record()['config']
  config['train']['max_epochs'] = 7
  config['optimizer']['beta1'] = 0.9  # the default
  fields = dict(details.differing(config))
  assert fields['train.max_epochs'] == 7
  assert 'optimizer.beta1' not in fields and 'eval.heads' not in fields


# --- Bad input. ---


@pytest.mark.parametrize('changes, expected', [
    ({'cell__method': None}, 'cell.method is missing'),
    ({'cell__method': 'x' * 201}, 'must be a text of at most 200 signs'),
    ({'cell__shots': True}, 'cell.shots is True'),
    ({'test__accuracy': float('nan')}, 'NaN is no number'),
    ({'test__accuracy': 61.}, 'test.accuracy is 61.0'),
    ({'test__accuracy': 0.9}, 'by test.correct'),
    ({'test__correct': [76] * 40}, 'test.correct must have'),
    ({'training__seconds': 'long'}, "training.seconds is 'long'"),
    ({'training__steps': 10 ** 400}, 'training.steps is 1000'),
    ({'training__curve': [{'step': 1}]}, 'training.curve[0].seconds'),
    ({'provenance': 'x' * 10_000}, 'provenance is'),
])
def test_a_wrong_record_is_named_and_nothing_is_written(
    tmp_path, capsys, changes, expected):
  cell_records.write(tmp_path / 'records', cell_records.record(**changes))
  check_refused(tmp_path, capsys, expected)


@pytest.mark.parametrize('contents, expected', [
    (b'{"cell": ', 'cannot be read'), (b'\xff\xfe', 'cannot be read'),
    (b'[]', 'no record of a cell'), (b'1', 'no record of a cell'),
    (b'{"test": {"accuracy": 1e400}}', 'cell is missing'),
    (b'[' * 100 + b']' * 100, 'nested more than'),
    (b'[' * 10 ** 6, 'cannot be read'),
])
def test_a_damaged_file_is_named(tmp_path, capsys, contents, expected):
  (tmp_path / 'one.json').write_bytes(contents)
  (tmp_path / 'records').symlink_to(tmp_path / 'one.json')
  check_refused(tmp_path, capsys, expected, '')


def test_other_files_of_a_folder_are_passed_over(tmp_path, capsys):
  """Fails if tables of seeds, or of a check, beside the runs end the page."""
  cell_records.write(tmp_path / 'records', cell_records.record())
  for name, contents in (('seeds', '[]'), ('bound', '{"options": {}}')):
    (tmp_path / f'records/{name}.json').write_text(contents)
  assert main(tmp_path, f'--page={tmp_path / "out"}', capsys=capsys)[0] == 0


def check_refused(tmp_path, capsys, expected, suffix='.json'):
  code, _, error = main(tmp_path, f'--page={tmp_path / "out"}', capsys=capsys)
  assert code == 2 and error.count('\n') == 1 and len(error) < 600
  assert expected in error and suffix in error
  assert not (tmp_path / 'out').exists()


def test_wrong_calls_are_refused(tmp_path, capsys):
  (tmp_path / 'records').mkdir()
  for flags, expected in (
      ([f'--page={tmp_path / "out"}'], 'no record of a cell is there'),
      (['--page=out', '--format=csv'], 'leave one of them out'),
      (['--page='], "--page is ''"), ([str(tmp_path / 'no'), '--page=out'],
                                      'no is not there')):
    code, _, error = main(tmp_path, *flags, capsys=capsys)
    assert code == 2 and expected in error and error.count('\n') == 1
  cell_records.write(tmp_path / 'records', cell_records.record())
  (tmp_path / 'file').write_text('mine')
  code, _, error = main(tmp_path, f'--page={tmp_path / "file"}', capsys=capsys)
  assert code == 2 and 'is a file' in error
  assert (tmp_path / 'file').read_text() == 'mine'


def test_hostile_texts_are_shown_and_do_nothing(tmp_path, capsys):
  evil = tmp_path / 'evil.py'
  evil.write_text(f'open({str(tmp_path / "ran")!r}, "w")')
  names = ['<script>alert(1)</script>', '$\\frac{$', '../../../x', 'a|b\nc',
           '](javascript:alert(1))', '\ud800 x', '\u202e', str(evil),
           'y' * 200, '']
  every = [cell_records.record(
      name, benchmark=names[0], test__head=name, provenance__commit=name,
      published={'accuracy': 0.5, 'source': name}) for name in names]
  every += [cell_records.record('mtl', benchmark=name, training__curve=[])
            for name in names[1:]]
  for values in every:
    values['config']['model']['name'] = str(evil)
    values['config']['<img src=x onerror=alert(1)>'] = {'a': [10 ** 1000]}
    values['test']['scores'] = {'<b>': {'accuracy': 10 ** 400}, 'x': 1}
  (tmp_path / 'records').mkdir()
  for i, values in enumerate(every):
    (tmp_path / f'records/{i}.json').write_text(json.dumps(values))
  code, _, error = main(tmp_path, f'--page={tmp_path / "out"}', capsys=capsys)
  assert code == 0, error
  html = (tmp_path / 'out/report.html').read_text()
  text = (tmp_path / 'out/report.md').read_text()
  assert '&lt;script&gt;alert(1)' in html
  for tag in ('<script', '<img src=x', '<b>'):
    assert tag not in html and not re.search(rf'(?<!\\){tag}', text)
  # GitHub takes a line that begins by a tag as HTML, without links.
  assert not re.search(r'(?m)^(?!<details>).*[^\\]\]\(javascript', text)
  for path in (tmp_path / 'out').glob('*.svg'):
    assert b'<script' not in path.read_bytes()
  assert {path.name for path in tmp_path.iterdir()} == {
      'records', 'out', 'evil.py'}
