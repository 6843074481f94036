"""The table of any number of tests: groups of seeds, intervals, formats.

The tests are files written here, with numbers whose answers scipy gives.
"""

import csv
import io
import json
import re

import numpy as np
import pytest
from scipy import stats

from mtl_jax.config import base_config, set_method, to_json
from mtl_jax.errors import UserError
from mtl_jax.evaluate import interval
from mtl_jax.report import __main__ as report
from mtl_jax.report import formats, table
from mtl_jax.run import workdir

TASKS = 40


def accuracies(seed, better=0.):
  """Of the same tasks: easy and hard ones are so for every seed."""
  easy = np.random.default_rng(0).normal(0.7, 0.1, TASKS)
  own = np.random.default_rng(1 + seed)
  return easy + own.normal(0, 0.02, TASKS) + own.normal(0, 0.01) + better


def write(path, seed=0, better=0., sha256='a', head='logistic', config=True,
          **fields):
  """Writes a finished test; returns its folder."""
  path.mkdir(parents=True)
  c = base_config()
  c.data.name, c.seed = 'glyphs', seed
  set_method(c, 'mtl', benchmark='glyphs', shots=5, scale='fast')
  c.update_from_flattened_dict(fields)
  result = {
      'data': 'glyphs', 'split': 'test', 'ways': 5, 'shots': 5, 'queries': 15,
      'num_tasks': TASKS, 'seed': 0, 'episodes': '', 'method': c.method.name,
      'batch_norm': 'running', 'normalise_features': True, 'support_copies': 0,
      'head': head, 'heads': {head: {'C': 3.}},
      'tasks_sha256': {'5': sha256, '1': 'one'},
      'training': workdir.of_training(c)}
  (path / 'test.json').write_text(json.dumps(result))
  if config:
    (path / 'config.json').write_text(to_json(c))
  np.savez(path / 'tasks.npz', **{head: accuracies(seed, better)})
  return path


@pytest.fixture
def seeds(tmp_path):
  """The workdir of three seeds."""
  for seed in (0, 1, 10):
    write(tmp_path / f'many/seed_{seed}', seed)
  return tmp_path / 'many'


def shown(paths, *flags, capsys):
  assert report.main([*map(str, paths), *flags]) == 0
  return capsys.readouterr().out


def test_seeds_are_one_row_with_both_intervals(seeds):
  row, = table.rows([seeds])
  values = np.stack([accuracies(seed) for seed in (0, 1, 10)])
  assert row.seeds == (0, 1, 10) and row.run == str(seeds)
  assert row.accuracy == pytest.approx(values.mean())
  low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(
      values.mean(1)))
  assert row.over_seeds == pytest.approx((high - low) / 2, rel=1e-4)
  assert row.over_tasks == pytest.approx(1.96 * stats.sem(values.mean(0)))


def test_a_terminal_shows_how_many_tests_have_been_read(seeds, bars):
  table.rows([seeds])
  assert bars == [['reading', 3, 3]]


@pytest.mark.parametrize('freedom', [1, 2, 7, 30, 31, 40, 100, 1e6])
def test_the_quantiles_are_those_of_students_t(freedom):
  assert interval.t_quantile(freedom) == pytest.approx(
      stats.t.ppf(0.975, freedom), abs=1e-3)


def test_what_differs_in_more_than_the_seed_is_another_row(seeds, tmp_path):
  write(tmp_path / 'rate', 5, **{'optimizer.learning_rate': 0.5})
  write(tmp_path / 'longer', 6, **{'train.max_epochs': 2})
  write(tmp_path / 'turned', 7, **{'augment.operations': ('flip',)})
  rows = table.rows([seeds, *(tmp_path / name for name in (
      'rate', 'longer', 'turned'))])
  assert [row.seeds for row in rows] == [(0, 1, 10), (5,), (6,), (7,)]
  assert rows[1].over_seeds is None


def test_what_chose_other_epochs_is_another_row(seeds, tmp_path):
  """Fails if seeds that were validated in two ways are one group."""
  write(tmp_path / 'chosen', 5, **{'validation.head': 'centroid'})
  # C of a head that validates nothing changes nothing.
  write(tmp_path / 'same', 6, **{'heads.svm.C': 5.})
  rows = table.rows([seeds, tmp_path / 'chosen', tmp_path / 'same'])
  assert [row.seeds for row in rows] == [(0, 1, 10, 6), (5,)]


def test_the_test_of_a_run_that_goes_on_is_refused(tmp_path):
  """Fails if the accuracy of 3 epochs is shown as that of 4,000."""
  path = write(tmp_path / 'run')
  config = json.loads((path / 'config.json').read_text())
  before, config['train']['max_epochs'] = config['train']['max_epochs'], 4000
  (path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UserError, match='run is a run of 4000 epochs that has '
                     f'not ended, and its test is that of {before}'):
    table.rows([path])


@pytest.mark.parametrize('fields', [
    {'parallel.devices': 2}, {'log.every_steps': 3}, {'eval.tasks': 7}])
def test_what_does_not_change_a_training_makes_no_other_row(
    fields, seeds, tmp_path):
  write(tmp_path / 'more', 5, **fields)
  row, = table.rows([seeds, tmp_path / 'more'])
  assert row.seeds == (0, 1, 10, 5)
  assert row.run == f'{seeds}/seed_0 and 3 more'


def test_a_test_elsewhere_knows_its_run(seeds, tmp_path):
  """Fails if a test without the run's config.json is no seed of the run."""
  write(tmp_path / 'test_of_2', 2, config=False)
  row, = table.rows([seeds, tmp_path / 'test_of_2'])
  assert row.seeds == (0, 1, 10, 2)


def test_a_test_of_an_older_version_is_that_of_the_run_around_it(seeds):
  write(seeds / 'seed_0/evaluate', 0, config=False, sha256='b')
  file = seeds / 'seed_0/evaluate/test.json'
  result = json.loads(file.read_text())
  del result['training'], result['tasks_sha256']
  file.write_text(json.dumps(result))
  first, older = table.rows([seeds, file.parent])
  assert older.seeds == (0,) and older.tasks.seed == 0
  assert 'An older version tested' in formats.text([first, older])


def test_a_C_that_was_chosen_splits_no_group(tmp_path):
  for seed, C in ((0, 1.), (1, 3.)):
    file = write(tmp_path / f'seed_{seed}', seed) / 'test.json'
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {
        'C': C, 'validation_by_C': {'1.0': 0.5, '3.0': 0.5},
        'heads': {'logistic': {'C': C}}}))
  row, = table.rows([tmp_path])
  assert row.seeds == (0, 1)


def test_other_tasks_and_heads_are_marked(seeds, tmp_path, capsys):
  write(tmp_path / 'tasks', 4, sha256='b')
  write(tmp_path / 'head', 4, head='svm 1-shot')
  text = shown([seeds, tmp_path / 'tasks', tmp_path / 'head'], capsys=capsys)
  rows = [re.split('  +', line) for line in text.splitlines()[1:4]]
  assert [row[2:6] for row in rows] == [
      ['logistic', 'A', '5', '3'], ['logistic', 'B', '5', '1'],
      ['svm', 'C', '1', '1']]
  assert 'Rows of different tasks cannot be compared' in text


def test_a_seed_counts_once(seeds, tmp_path):
  """Fails if copies of a run narrow the interval over seeds."""
  write(tmp_path / 'copy', 1)
  with pytest.raises(UserError, match='copy are two tests of seed 1'):
    table.rows([seeds, tmp_path / 'copy'])


def test_differences_from_one_of_the_runs(seeds, tmp_path):
  for seed in (0, 1):
    write(tmp_path / f'better/seed_{seed}', seed, 0.05,
          **{'optimizer.learning_rate': 0.5})
  row, = table.rows([tmp_path / 'better'], against=seeds)
  ours = np.stack([accuracies(seed, 0.05) for seed in (0, 1)])
  theirs = np.stack([accuracies(seed) for seed in (0, 1, 10)])
  gap = row.difference
  assert gap.accuracy == pytest.approx(ours.mean() - theirs.mean())
  assert gap.over_tasks == pytest.approx(
      1.96 * stats.sem(ours.mean(0) - theirs.mean(0)))
  welch = stats.ttest_ind(ours.mean(1), theirs.mean(1), equal_var=False)
  size = (welch.statistic and gap.accuracy / welch.statistic)
  assert gap.over_seeds == pytest.approx(
      interval.t_quantile(welch.df) * size)
  # Fewer degrees of freedom than Welch's make the interval wider.
  assert gap.over_seeds >= stats.t.ppf(0.975, welch.df) * size * (1 - 1e-4)


def test_no_difference_from_other_tasks(seeds, tmp_path):
  write(tmp_path / 'tasks', 4, sha256='b')
  with pytest.raises(UserError, match='test all with the same config.eval'):
    table.rows([seeds], against=tmp_path / 'tasks')
  rows = table.rows([seeds, tmp_path / 'tasks'], against=seeds)
  assert [row.difference is None for row in rows] == [False, True]


STRANGE = r'a_b & 5% $#{x}~^\|<"*` c'


@pytest.fixture
def strange(tmp_path):
  """Two runs in folders whose names have every special sign."""
  return [write(tmp_path / f'{STRANGE}{i}', i, 0.1 * i,
                **{'optimizer.learning_rate': 0.1 + i}) for i in range(2)]


def test_csv_is_read_back(strange, capsys):
  read = list(csv.DictReader(io.StringIO(shown(
      strange, '--format=csv', f'--against={strange[0]}', capsys=capsys))))
  assert [r['run'] for r in read] == [str(path) for path in strange]
  assert float(read[1]['accuracy']) == accuracies(1, 0.1).mean()
  assert read[0]['ci95_seeds'] == '' and float(read[1]['difference']) == (
      pytest.approx((accuracies(1, 0.1) - accuracies(0)).mean()))


def test_latex_has_no_sign_of_its_own_left(strange, capsys):
  """Fails if a name breaks a document: each special sign is a command."""
  text = shown(strange, '--format=latex', capsys=capsys)
  rows = [line for line in text.splitlines() if line.endswith(r'\\')]
  columns = re.search(r'\\begin{tabular}{(\w+)}', text)[1]
  for row in rows:
    assert len(re.findall(r'(?<!\\)&', row)) == len(columns) - 1
    plain = re.sub(r'\\text\w+{}|\\[&%$#_{}]|\$\\pm\$', '', row)
    assert not re.search(r'[%$#_{}~^<>|"]', plain), plain
    assert plain.count('\\') == 2  # the end of the row
  assert r'a\_b \& 5\% \$\#\{x\}\textasciitilde{}\textasciicircum{}' in rows[1]


def test_markdown_has_as_many_cells_in_each_line(strange, capsys):
  text = shown(strange, '--format=markdown', capsys=capsys)
  lines = text.split('\n\n')[0].splitlines()
  assert len(lines) == 4
  assert len({len(re.findall(r'(?<!\\)\|', line)) for line in lines}) == 1


def test_json_is_strict(strange, capsys):
  read = json.loads(shown(strange, '--format=json', capsys=capsys))
  assert read[0]['ci95_seeds'] is None and read[1]['seeds'] == [1]


def test_two_methods_are_compared_by_their_own_heads(tmp_path, capsys):
  """Fails if only what both call by one name is compared, or is left out."""
  for name, head, seed in (('a', 'logistic', 0), ('b', 'own', 1)):
    path = write(tmp_path / name, seed, head=head)
    np.savez(path / 'tasks.npz', **{
        head: accuracies(seed), 'untrained': accuracies(5),
        f'{head} 1-shot': accuracies(seed)})
  lines = shown([tmp_path / 'a', tmp_path / 'b'], capsys=capsys).splitlines()
  gap = accuracies(0) - accuracies(1)
  assert lines[1].split() == [
      'logistic', 'minus', 'own', f'{100 * gap.mean():+.2f}', 'points', '+-',
      f'{196 * stats.sem(gap):.2f}']
  assert lines[2].split()[:2] == ['untrained', '+0.00']
  assert lines[3:] == [f'  of {tmp_path}/a alone: logistic 1-shot',
                       f'  of {tmp_path}/b alone: own 1-shot']


@pytest.mark.parametrize('flags, line', [
    (['a', '--format=html'], "--format is 'html': allowed are text, markdown"),
    (['nothing'], 'nothing holds no finished test (it has no test.json)'),
    (['--against=a'], 'usage')])
def test_a_bad_command_gets_one_line(flags, line, capsys):
  assert report.main(flags) == 2
  error = capsys.readouterr().err
  assert line in error and error.count('\n') == 1


@pytest.mark.parametrize('damage, line', [
    (lambda r: r.pop('ways'), "lacks 'ways'"),
    (lambda r: r.update(num_tasks=3), 'tasks.npz 40')])
def test_a_damaged_test_gets_one_line(damage, line, tmp_path):
  file = write(tmp_path / 'run') / 'test.json'
  result = json.loads(file.read_text())
  damage(result)
  file.write_text(json.dumps(result))
  with pytest.raises(UserError, match=line):
    table.rows([tmp_path / 'run'])
