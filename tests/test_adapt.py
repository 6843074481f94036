"""`python -m mtl_jax.adapt` on pictures: numbers, files, and bad input."""

import csv
import io
import json
import os
import pathlib
import re
import shutil

import command
import ml_collections
import numpy as np
import pytest
from conftest import ROOT, unpack_old_run
from PIL import Image

from mtl_jax import heads
from mtl_jax.adapt import __main__ as adapt_main
from mtl_jax.adapt import classify, learner
from mtl_jax.adapt.__main__ import main
from mtl_jax.data import store
from mtl_jax.errors import UserError
from mtl_jax.run import trained

SIZES = {'a': 2, 'b': 3, 'c': 5}  # support images: no class like another
QUERIES = 4  # of a class


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a tiny run on letters of 28x28 in grey."""
  return unpack_old_run(tmp_path_factory.mktemp('adapt') / 'run')


@pytest.fixture(scope='module')
def letters():
  """Support and query folders, with the images in them as arrays."""
  split = store.load('glyphs/tiny', 'test')
  arrays = {}
  for (name, size), first in zip(SIZES.items(), split.offsets, strict=False):
    arrays[f'known/{name}'] = split.images[first:first + size]
    arrays[f'new/{name}'] = split.images[first + 6:first + 6 + QUERIES]
  return {k: np.array(v) for k, v in arrays.items()}


def save(letters, folder):
  for name, images in letters.items():
    (folder / name).mkdir(parents=True)
    for i, image in enumerate(images):
      Image.fromarray(image[..., 0]).save(folder / name / f'{i}.png')
  return folder


@pytest.fixture
def folder(letters, tmp_path):
  return save(letters, tmp_path)


def flags(run, folder, **changes):
  values = {'checkpoint': run, 'support': folder / 'known',
            'query': folder / 'new', 'out': folder / 'out'} | changes
  return [f'--{k}={v}' for k, v in values.items() if v is not None]


def read(out):
  with open(out / 'predictions.csv', newline='') as file:
    return (json.loads((out / 'predictions.json').read_text()),
            list(csv.DictReader(file)))


@pytest.fixture(scope='module')
def by_command(run, letters, tmp_path_factory):
  """Returns (folder, the ended process, predictions.json, the csv's rows)."""
  folder = save(letters, tmp_path_factory.mktemp('command'))
  done = command.run(flags(run, folder, out=None),
                     program=('-m', 'mtl_jax.adapt'))
  assert done.returncode == 0, done.stderr
  return folder, done, *read(run / 'adapt')  # the default


def made_by_hand(run, letters, head, **options):
  """Returns probabilities [Q, N] of a head, and true classes [Q]."""
  model = trained.load(run)
  known, new = (np.concatenate([letters[f'{part}/{k}'] for k in SIZES])
                for part in ('known', 'new'))
  labels = np.repeat([0, 1, 2], list(SIZES.values()))
  params = heads.HEADS[head].fit(model.features(known), labels, 3, **options)
  logits = np.asarray(heads.HEADS[head].logits(
      params, model.features(new)), np.float64)
  return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
          np.repeat(list(SIZES), QUERIES))


@pytest.fixture(scope='module')
def by_hand(run, letters):
  # 10 images of 3 classes: 10 / (3 * 2) for each of the 2 of the first, ..
  return made_by_hand(
      run, letters, 'logistic', C=3., example_weights=np.repeat(
          [10 / 6, 10 / 9, 10 / 15], list(SIZES.values())))


def test_four_files_are_written_and_nothing_is_strange(run, by_command):
  _, done, contents, _ = by_command
  assert not done.stderr, 'a note, and nothing is strange'
  assert {p.name for p in (run / 'adapt').iterdir()} == {
      'predictions.csv', 'predictions.json', 'predictions.png',
      'confusion.png'}
  assert contents['classes'] == SIZES
  assert contents['head'] == 'logistic'
  assert contents['options'] == {'C': 3.0}
  assert contents['count_alike'] == 'classes'
  assert 'every class counts alike' in done.stdout


def test_the_probabilities_are_those_made_by_hand(by_command, by_hand):
  folder, _, contents, rows = by_command
  expected, truth = by_hand
  predicted = np.array(list(SIZES))[expected.argmax(1)]
  for i, (row, entry) in enumerate(zip(rows, contents['predictions'],
                                       strict=True)):
    assert row['file'] == entry['file'] == str(
        folder / f'new/{truth[i]}/{i % QUERIES}.png')
    assert row['predicted'] == entry['predicted'] == predicted[i]
    assert row['true'] == entry['true'] == truth[i]
    numbers = [float(row[f'p_{name}']) for name in SIZES]
    assert numbers == list(entry['probabilities'].values())
    np.testing.assert_allclose(numbers, expected[i], atol=2e-5)


def test_the_score_counts_what_was_predicted(by_command, by_hand):
  _, done, contents, _ = by_command
  expected, truth = by_hand
  predicted = np.array(list(SIZES))[expected.argmax(1)]
  score = contents['score']
  correct = int((predicted == truth).sum())
  assert (score['correct'], score['images']) == (correct, 3 * QUERIES)
  assert score['confusion'] == [
      [int(((truth == a) & (predicted == b)).sum()) for b in SIZES]
      for a in SIZES]
  assert f'{correct} of {3 * QUERIES} images' in done.stdout
  for name in SIZES:
    own = int(((truth == name) & (predicted == name)).sum())
    assert score['by_class'][name] == {
        'accuracy': own / QUERIES, 'correct': own, 'images': QUERIES}
    assert re.search(rf'{name} +{own / QUERIES:.1%}, {own} of', done.stdout)


def test_images_can_count_alike(run, letters, folder, capsys):
  expected, _ = made_by_hand(run, letters, 'ridge')
  assert main([*flags(run, folder, head='ridge'), '--unweighted']) == 0
  contents, _ = read(folder / 'out')
  np.testing.assert_allclose(
      [list(row['probabilities'].values()) for row in contents['predictions']],
      expected, atol=2e-5)
  assert contents['count_alike'] == 'images'
  assert 'every image counts alike' in capsys.readouterr().out


def test_a_head_without_weights_is_told_of(run, folder, capsys):
  (folder / 'own.py').write_text(
      'from mtl_jax.heads import ridge\n'
      'from mtl_jax.heads.ridge import OPTIONS, logits, diagnostics\n'
      'def fit(features, labels, num_ways, **options):\n'
      '  return ridge.fit(features, labels, num_ways, **options)\n')
  assert main(flags(run, folder, head=folder / 'own.py')) == 0
  assert read(folder / 'out')[0]['count_alike'] == 'unknown'
  assert 'this head takes no weights' in capsys.readouterr().out


@pytest.fixture(scope='module')
def classified(run, letters, tmp_path_factory):
  """The folder of pictures with the results in `out`."""
  folder = save(letters, tmp_path_factory.mktemp('classified'))
  assert main(flags(run, folder)) == 0
  return folder


def test_the_same_start_gives_the_same_files(run, classified, tmp_path):
  assert main(flags(run, classified, out=tmp_path)) == 0
  assert command.snapshot(tmp_path) == command.snapshot(classified / 'out')


def test_no_image_depends_on_another_and_none_need_be_labelled(
    run, classified, tmp_path, capsys):
  labelled = {row['file']: row['probabilities']
              for row in read(classified / 'out')[0]['predictions']}
  some = [classified / 'new/b/2.png', classified / 'new/a/0.png']
  out = shutil.copytree(classified / 'out', tmp_path / 'out')
  assert main([*flags(run, classified, query=None, out=out), '--query',
               *map(str, some)]) == 0
  contents, rows = read(out)
  assert contents['score'] is None
  assert 'accuracy' not in capsys.readouterr().out
  assert [row['true'] for row in rows] == ['', '']
  assert {row['file']: row['probabilities'] for row in contents['predictions']
          } == {str(path): labelled[str(path)] for path in some}
  assert not (out / 'confusion.png').exists(), 'of the start before'


def foreign(folder, name='confusion.png'):
  """Puts a file of the user's into the folder of results."""
  (folder / 'out').mkdir(exist_ok=True)
  shutil.copy(folder / 'new/a/0.png', folder / 'out' / name)
  return folder / 'out' / name


@pytest.mark.parametrize('earlier', [False, True])
def test_a_picture_of_the_users_is_neither_deleted_nor_replaced(
    earlier, run, folder, capsys):
  """Fails if the user's confusion.png is lost, also beside old results."""
  loose = [*flags(run, folder, query=None), '--query']
  if earlier:
    assert main([*loose, str(folder / 'new/a/0.png')]) == 0
  theirs = foreign(folder)
  contents = theirs.read_bytes()
  assert main([*loose, str(theirs)]) == 0
  assert theirs.read_bytes() == contents
  before = command.snapshot(folder)
  capsys.readouterr()
  assert main(flags(run, folder)) == 2
  assert 'the confusion.png there is not of this command' in (
      capsys.readouterr().err)
  assert command.snapshot(folder) == before


@pytest.mark.parametrize('name, contents', [
    ('predictions.csv', 'a,b'), ('predictions.json', '{}'),
    ('predictions.json', '[]'), ('predictions.json', 'x')])
def test_a_table_of_the_users_is_not_replaced(
    name, contents, run, folder, capsys):
  foreign(folder, name).write_text(contents)
  before = command.snapshot(folder)
  assert main(flags(run, folder)) == 2
  assert f'the {name} there is not of this command' in capsys.readouterr().err
  assert command.snapshot(folder) == before


def test_results_that_are_to_be_classified_are_not_replaced(
    run, classified, tmp_path, capsys):
  out = shutil.copytree(classified / 'out', tmp_path / 'out')
  before = command.snapshot(tmp_path)
  assert main([*flags(run, classified, query=None, out=out), '--query',
               str(out / 'predictions.png')]) == 2
  assert 'predictions.png would be replaced' in capsys.readouterr().err
  assert command.snapshot(tmp_path) == before


def test_names_that_are_no_text_are_printed_and_written(run, folder, capsys):
  """Fails if a byte that is not UTF-8 or a line break ends in a traceback."""
  (folder / 'known/a').rename(os.fsdecode(bytes(folder) + b'/known/caf\xe9'))
  (folder / 'known/b').rename(folder / 'known/two\nlines')
  (folder / 'new/a').rename(os.fsdecode(bytes(folder) + b'/new/caf\xe9'))
  (folder / 'new/b/0.png').rename(
      os.fsdecode(bytes(folder) + b'/new/b/\xe9.png'))
  assert main(flags(run, folder)) == 0
  printed = capsys.readouterr().out.splitlines()
  assert any(line.startswith('  caf\\xe9 ') for line in printed)
  contents, rows = read(folder / 'out')
  assert list(contents['classes']) == ['c', 'caf\\xe9', 'two\\nlines']
  assert {row['true'] for row in rows} == {'b', 'c', 'caf\\xe9'}
  assert f'{folder}/new/b/\\xe9.png' in {row['file'] for row in rows}


def test_names_are_printed_where_the_terminal_lacks_their_signs(monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), 'ascii')
  adapt_main._say('Ünï 猫', stream)
  stream.flush()
  assert stream.buffer.getvalue() == b'\\xdcn\\xef \\u732b\n'


@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied'),
                                   RuntimeError('Symlink loop')])
def test_an_unreadable_out_gets_one_line(
    error, run, folder, monkeypatch, capsys):
  # Root may read everything: answer as somebody else would be answered.
  exists = pathlib.Path.exists
  def answer(path):
    if path.name == 'closed':
      raise error
    return exists(path)
  monkeypatch.setattr(pathlib.Path, 'exists', answer)
  assert main(flags(run, folder, out=folder / 'closed/out')) == 2
  said = capsys.readouterr().err
  assert '--out' in said and 'cannot be read' in said
  assert len(said.splitlines()) == 1


def test_the_home_folder_is_found_in_every_path(run, folder, monkeypatch):
  monkeypatch.setenv('HOME', str(folder))
  (folder / 'run').symlink_to(run)
  assert main(flags('~/run', folder, support='~/known', query='~/new',
                    out='~/out')) == 0
  assert (folder / 'out/confusion.png').exists()


def test_what_is_strange_is_said(run, folder, monkeypatch, capsys):
  known, new = folder / 'known', folder / 'new'
  (new / 'zebra').mkdir()
  shutil.copy(new / 'a/0.png', new / 'zebra')
  (new / 'empty').mkdir()
  (new / 'a/notes.txt').write_text('x')
  (new / 'a/.hidden.png').write_text('x')
  shutil.copy(new / 'a/0.png', new / 'loose.png')
  shutil.copy(new / 'a/0.png', known / 'beside.png')
  shutil.copy(known / 'b/1.png', new / 'b/same.png')
  Image.new('RGB', (90, 50), 'white').save(new / 'c/white.jpg')
  monkeypatch.setattr(heads, 'LARGE_RESIDUAL', -1)
  assert main(flags(run, folder)) == 0
  notes = capsys.readouterr().err.splitlines()
  for note, texts in zip(notes, (
      ('known: 1 images lie beside', 'beside.png'),
      ('new/a: 1 files', 'notes.txt'), ('new/empty has no images',),
      ('1 images have a white background', 'white.jpg', 'try --invert'),
      ('1 query images are of classes', 'zebra', 'left out of the accuracy'),
      ('1 query images are support images',),
      ('not converged', 'weights')), strict=True):
    assert note.startswith('mtl_jax.adapt: note: ')
    for text in texts:
      assert text in note
  contents, rows = read(folder / 'out')
  # 'same' and 'white' count; 'zebra' and 'loose' are only classified.
  assert contents['score']['images'] == 3 * QUERIES + 2
  assert len(rows) == 3 * QUERIES + 4
  assert {row['true'] for row in rows} == {'', 'a', 'b', 'c', 'zebra'}
  assert contents['notices'] == [note.partition('note: ')[2] for note in notes]


def missing(folder):
  shutil.rmtree(folder / 'known')


def a_file(folder):
  missing(folder)
  (folder / 'known').write_text('x')


def no_folders(folder):
  for name in SIZES:
    shutil.rmtree(folder / 'known' / name)


def one_class(folder):
  for name in 'ab':
    shutil.rmtree(folder / 'known' / name)


def class_without_images(folder):
  for file in (folder / 'known/b').iterdir():
    file.rename(file.with_suffix('.heic'))


def unreadable(folder):
  (folder / 'known/b/1.png').write_text('<html>no picture here</html>')


def truncated(folder):
  Image.effect_noise((99, 99), 50).save(folder / 'new/c/9.jpg')
  whole = (folder / 'new/c/9.jpg').read_bytes()
  (folder / 'new/c/9.jpg').write_bytes(whole[:len(whole) // 2])


def no_query(folder):
  shutil.rmtree(folder / 'new')


def empty_query(folder):
  no_query(folder)
  (folder / 'new').mkdir()


def nothing(folder):
  del folder


def taken(folder):
  (folder / 'taken').write_text('x')


def read_only(folder):
  (folder / 'locked').mkdir()


BAD_INPUT = {
    'no such support': (missing, {}, ('--support', 'known is not there')),
    'support is a file': (a_file, {}, ('known is no folder',)),
    'no sub-folders': (no_folders, {}, ('known has no folders in it',)),
    'one class': (one_class, {}, ('known has one class only', "'c'")),
    'class without images': (
        class_without_images, {}, ("class 'b' has no images", '0.heic')),
    'unreadable image': (unreadable, {}, ('known/b/1.png is no image',)),
    'truncated image': (
        truncated, {}, ('new/c/9.jpg cannot be read', 'truncated')),
    'no such query': (no_query, {}, ('--query', 'new is not there')),
    'query is empty': (empty_query, {}, ('--query', 'new has no images')),
    'out is a file': (
        taken, {'out': '{}/taken'}, ('--out', 'taken is a file')),
    'out cannot be made': (
        taken, {'out': '{}/taken/x/out'}, ('--out', 'taken is a file')),
    'out is read-only': (
        read_only, {'out': '{}/locked/out'}, ('--out', 'cannot be written')),
    'out within the query': (
        nothing, {'out': '{}/new/out'}, ('--out', 'within', 'new')),
    'no run': (
        nothing, {'checkpoint': '{}/known'},
        ('known/config.json is missing', 'not the workdir of a run')),
    'unknown head': (
        nothing, {'head': 'svn'}, ("--head is 'svn'", 'logistic')),
    'missing flag': (nothing, {'support': None}, ('--support', 'required')),
    'unknown flag': (nothing, {'hed': 'x'}, ('--hed',)),
}


@pytest.mark.parametrize('case', BAD_INPUT)
def test_bad_input_gets_one_line_and_nothing_is_written(
    case, run, folder, monkeypatch, capsys):
  # Root may write everywhere: ask as somebody else would be answered.
  access = os.access
  monkeypatch.setattr(os, 'access', lambda path, mode: (
      'locked' not in str(path) and access(path, mode)))
  spoil, changes, named = BAD_INPUT[case]
  spoil(folder)
  changes = {k: v and v.format(folder) for k, v in changes.items()}
  before = command.snapshot(folder), command.snapshot(run)
  assert main(flags(run, folder, **changes)) == 2
  output = capsys.readouterr()
  lines = output.err.splitlines()
  assert len(lines) == 1 and not output.out, output
  for text in ('mtl_jax.adapt: ', *named):
    assert text in lines[0]
  assert (command.snapshot(folder), command.snapshot(run)) == before


def test_a_support_too_large_for_its_head_is_refused_before_all_work(
    run, folder, monkeypatch, capsys):
  monkeypatch.setattr(heads.HEADS['svm'], 'MOST', 9)
  monkeypatch.setattr(trained, 'load', None)
  assert main(flags(run, folder, head='svm')) == 2
  assert capsys.readouterr().err == (
      'mtl_jax.adapt: the head svm can fit at most 9 support images, and there '
      'are 10: choose another head (logistic and ridge have no limit), or give '
      'fewer images\n')


def choices(heads, **fields):
  return ml_collections.ConfigDict({
      'eval': {'heads': heads}, 'heads': fields,
      'method': {'name': 'maml', 'batch_norm': 'transductive'}})


@pytest.mark.parametrize('tested, head, expected', [
    (('own', 'logistic'), None, ('logistic', {'C': 3.})),  # an older run
    (('own',), 'logistic', ('logistic', {'C': 3.})),
    (('own',), None, ('own', {'batch_norm': 'transductive'})),
    (('logistic',), 'own', ('own', {'batch_norm': 'transductive'}))])
def test_the_head_is_the_first_of_the_test_or_the_methods_own(
    tested, head, expected):
  assert learner.choose(choices(tested), head) == expected


def test_options_are_those_of_the_run():
  assert learner.choose(choices(('logistic',), logistic={'C': 2.})) == (
      'logistic', {'C': 2.})


def test_a_run_that_was_tested_in_another_way_asks_for_a_head():
  with pytest.raises(UserError, match='--head is missing.*tune_all.*own'):
    learner.choose(choices(('tune_all',)))


def test_statistics_are_chosen_for_the_methods_own_adaptation_alone():
  config = choices(('own',))
  assert learner.choose(config, None, 'support') == (
      'own', {'batch_norm': 'support'})
  with pytest.raises(UserError, match="--batch_norm is 'x': allowed are tran"):
    learner.choose(config, None, 'x')
  with pytest.raises(UserError, match='--batch_norm is for --head=own'):
    learner.choose(config, 'ridge', 'support')


def test_the_example_in_the_readme_runs(run, folder, monkeypatch, capsys):
  text = (ROOT / 'README.md').read_text().partition('## As a library')[2]
  example = re.search(r'```python\n(.*?)```', text, re.S)[1]
  assert len(example.splitlines()) <= 20
  checkpoint, support, query = re.findall(r"\('([\w/]+)'", example)
  for name, target in ((checkpoint, run), (support, folder / 'known'),
                       (query, folder / 'new')):
    place = folder / 'home' / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
  monkeypatch.chdir(folder / 'home')
  exec(compile(example, 'README.md', 'exec'), {})
  printed = capsys.readouterr().out.splitlines()
  result = classify.adapt(run, support, query)
  assert printed == [
      f'{row["file"]}: {row["predicted"]}, '
      f'{max(row["probabilities"].values()):.0%}'
      for row in result['predictions']]
