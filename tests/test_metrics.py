"""metrics.jsonl: it grows by lines, and survives kills and old formats."""

import json
import math

import ml_collections
import pytest
from etils import epath

from mtl_jax import files
from mtl_jax.config import base_config
from mtl_jax.report import cell
from mtl_jax.run import metrics

QUIET = ml_collections.ConfigDict(
    {'every_steps': 1, 'progress': False})


def record(step):
  return {'step': step, 'epoch': step / 10, 'loss': 1 / (step + 3)}


def log(path, upto=0):
  return metrics.Log(path, QUIET, upto, 10**6)


def steps(path, upto=None):
  return [r['step'] for r in metrics.read(path, upto)]


@pytest.fixture(params=['append', 'parts'])
def path(request, tmp_path, monkeypatch):
  """A workdir on a disk, and one of an object store."""
  if request.param == 'parts':
    monkeypatch.setattr(files, 'can_append', lambda path: False)
    monkeypatch.setattr(metrics, '_OF_PART', 4)
  return epath.Path(tmp_path)


def test_records_are_read_as_they_were_written(path):
  written = log(path)
  for step in range(11):
    written.record(record(step))
  assert metrics.read(path) == [record(step) for step in range(11)]


def test_a_record_is_written_about_once(path):
  """Fails if a long run writes all its records again with every new one."""
  written = log(path)
  for step in range(22):
    written.record(record(step))
  names = sorted(p.name for p in path.glob('metrics*'))
  if files.can_append(path):
    assert names == ['metrics.jsonl']
  else:
    assert names == [f'metrics.{n:05}.jsonl' for n in range(6)]


def test_an_appended_file_is_not_replaced(tmp_path):
  path = epath.Path(tmp_path)
  written = log(path)
  written.record(record(1))
  before = (tmp_path / metrics.FILE).stat().st_ino
  written.record(record(2))
  assert (tmp_path / metrics.FILE).stat().st_ino == before


def test_a_resumed_run_drops_what_came_after_its_state(path):
  first = log(path)
  for step in range(11):
    first.record(record(step))
  second = log(path, upto=6)
  assert steps(path) == list(range(7))
  second.record(record(7))
  assert steps(path) == list(range(8))


def test_a_validation_that_was_made_again_counts_once(path):
  """Fails if its seconds count twice, and a curve has two points there."""
  first = log(path)
  first.record(record(4))
  first.record({**record(4), 'validation_accuracy': .5})
  first.record({**record(4), 'validation_accuracy': .75})
  first.close()
  found = metrics.read(path)
  assert [r.get('validation_accuracy') for r in found] == [None, .75]


@pytest.mark.parametrize('kept', [1, 10, -1])
def test_half_a_line_costs_no_other_record(kept, path):
  """Fails if a kill within a write loses or joins records."""
  first = log(path)
  for step in range(7):
    first.record(record(step))
  file = sorted(path.glob('metrics*'))[-1]
  whole = file.read_bytes()
  end = whole.rindex(b'\n', 0, -1) + 1
  last = whole[end:]
  file.write_bytes(whole[:end] + last[:kept])
  assert steps(path)[:6] == list(range(6))
  upto = 5 if kept > 0 else 6
  second = log(path, upto)
  second.record(record(upto + 1))
  assert metrics.read(path) == [record(step) for step in range(upto + 2)]


def test_a_kill_while_parts_are_joined_doubles_no_record(path):
  first = log(path)
  for step in range(11):
    first.record(record(step))
  (path / metrics.FILE).write_text(''.join(
      json.dumps(record(step)) + '\n' for step in range(11)))
  assert steps(path) == list(range(11))
  log(path, 11)
  assert steps(path) == list(range(11))


@pytest.mark.parametrize('line', [
    b'caf\xe9', b'[]', b'3', b'{}', b'{"step": "1"}', b'nonsense', b'',
    b'[' * 10**5], ids=range(8))
def test_a_line_that_is_no_record_is_left_out(line, path):
  (path / metrics.FILE).write_bytes(
      json.dumps(record(1)).encode() + b'\n' + line + b'\n'
      + json.dumps(record(2)).encode() + b'\n')
  assert steps(path) == [1, 2]


def test_a_run_that_starts_over_begins_an_empty_file(path):
  log(path).record(record(3))
  log(path)
  assert steps(path) == []


def test_numbers_that_are_not_finite_are_strict_json(path):
  """Fails if other programs cannot read the file."""
  log(path).record({'step': 1, 'validation_ci95': math.nan})
  file, = path.glob('metrics*')
  def refuse(name):
    raise AssertionError(name)
  json.loads(file.read_text(), parse_constant=refuse)
  assert math.isnan(metrics.read(path)[0]['validation_ci95'])


def test_the_seconds_of_seeds_side_by_side_are_shared():
  """Fails if four seeds at once cost four times what one of them costs."""
  config = base_config()
  config.update_from_flattened_dict({
      'train.ways': 5, 'train.shots': 1, 'train.queries': 1,
      'train.epoch_tasks': 100, 'train.meta_batch': 2})
  records = [{**record(step), 'tasks_per_second': 4.} for step in (1, 2, 3)]
  together = [{**r, 'seeds': 4} for r in records]
  seconds = [cell._training(config, found, {'meta_batch': 2}, {})['seconds']
             for found in (records, together)]
  assert seconds == [3 * 2 / 4, 3 * 2 / 4 / 4]


@pytest.mark.parametrize('accuracy, ci95, before, said', [
    (.223, .013, -math.inf, None), (.208, .009, .361, 'it was 36.10%'),
    (.208, .009, .205, 'classes. If'),
    (.15, .009, -math.inf, '15.00% +- 0.90%'),
    (.2, None, -math.inf, 'no interval'), (.4, None, .3, None)])
def test_a_validation_that_is_no_better_than_guessing_is_told(
    accuracy, ci95, before, said):
  line = metrics.guessing({'step': 7, 'validation_accuracy': accuracy,
                           'validation_ci95': ci95}, 5, before)
  assert (said is None) == (line == '')
  assert said is None or said in line
