"""`--save_head` and `--load_head`: what was fitted is used without support."""

import io
import json
import pathlib
import pickle
import shutil
from unittest import mock

import numpy as np
import pytest
import untrained
from PIL import Image

from mtl_jax import weight_files
from mtl_jax.adapt import classify, kept
from mtl_jax.adapt.__main__ import main
from mtl_jax.errors import UserError
from mtl_jax.weight_files import safetensors

SIZES = {'a': 4, 'b': 3, '猫': 5}
MAML = {'train__ways': 3, 'eval__ways': 3, 'validation__ways': 3,
        'method__test_steps': 1, 'method__unroll': False}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with runs, pictures and a head file."""
  path = tmp_path_factory.mktemp('kept')
  untrained.run(path / 'run', eval__heads=('logistic', 'own'))
  untrained.run(path / 'other', seed=1)
  untrained.run(path / 'maml', 'maml', **MAML)
  untrained.pictures(path / 'known', SIZES)
  untrained.pictures(path / 'new', dict.fromkeys(SIZES, 2), seed=1)
  shutil.copy(path / 'known/a/0.png', path / 'new/a')
  assert main([f'--checkpoint={path / "run"}', f'--support={path / "known"}',
               f'--save_head={path / "head.safetensors"}']) == 0
  return path


@pytest.mark.parametrize('run, options', [
    ('run', {'invert': True}), ('run', {'head': 'ridge', 'balanced': False}),
    ('run', {'head': 'centroid'}), ('run', {'head': 'own'}),
    ('maml', {'batch_norm': 'support', 'calibrated': False})])
def test_it_classifies_as_on_the_day_it_was_fitted(run, options, home,
                                                   tmp_path):
  file = tmp_path / 'head.safetensors'
  first = classify.adapt(home / run, home / 'known', home / 'new',
                         save_head=file, **options)
  again = classify.adapt(home / run, query=home / 'new', load_head=file)
  # JSON, as predictions.json has it: a tuple would become a list.
  assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
  assert any('support images as well' in note for note in first['notices'])


def numbers(result):
  """Returns the probabilities [I, N] of predictions.json."""
  return np.array([list(row['probabilities'].values())
                   for row in result['predictions']])


def test_probabilities_are_divided_by_the_temperature(home):
  plain, found = (classify.adapt(home / 'run', home / 'known', home / 'new',
                                 calibrated=c) for c in (False, True))
  assert plain['calibration'] is None
  wanted = numbers(plain) ** (1 / found['calibration']['temperature'])
  wanted /= wanted.sum(1, keepdims=True)
  np.testing.assert_allclose(numbers(found), wanted, atol=1e-5)
  assert np.abs(numbers(found) - numbers(plain)).max() > 0.01


def test_inverted_negatives_are_classified_as_the_pictures(home, tmp_path):
  """Fails if support and query are not inverted alike."""
  for part in ('known', 'new'):
    for file in (home / part).rglob('*.png'):
      place = tmp_path / file.relative_to(home)
      place.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(255 - np.asarray(Image.open(file))).save(place)
  plain = classify.adapt(home / 'run', home / 'known', home / 'new')
  found = classify.adapt(home / 'run', tmp_path / 'known', tmp_path / 'new',
                         invert=True)
  np.testing.assert_allclose(numbers(found), numbers(plain), atol=1e-6)


def test_a_white_background_of_the_support_is_noted(home, tmp_path):
  """Fails if a head is kept that was fitted to inverted pictures unsaid."""
  untrained.pictures(tmp_path / 'known', dict.fromkeys('ab', 2))
  for name in 'ab':
    for i in range(2):
      path = tmp_path / f'known/{name}/{i}.png'
      pixels = np.asarray(Image.open(path)).copy()
      pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:] = [255] * 4
      Image.fromarray(pixels).save(path)
  model = classify.load(home / 'run')
  model.data['mean'] = [0.1]
  found = classify.pictures.list_support(tmp_path / 'known')
  with mock.patch.object(classify, 'load', lambda checkpoint: model):
    ready = classify.learn(home / 'run', found)
  assert ready.notices[0].startswith('4 images have a white background')


def test_the_command_needs_the_file_alone(home, tmp_path, capsys):
  for name in ('run', 'new'):
    shutil.copytree(home / name, tmp_path / name)
  shutil.copy(home / 'head.safetensors', tmp_path)
  assert main([f'--checkpoint={tmp_path / "run"}',
               f'--load_head={tmp_path / "head.safetensors"}',
               f'--query={tmp_path / "new"}']) == 0
  printed = capsys.readouterr().out
  assert '3 classes: a 4, b 3, 猫 5 images' in printed
  assert 'calibrated: temperature' in printed
  assert {p.name for p in (tmp_path / 'run/adapt').iterdir()} == {
      'predictions.csv', 'predictions.json', 'predictions.png',
      'confusion.png'}


def refused(home, capsys, *flags):
  """Returns the one line of a command that is refused."""
  assert main([f'--checkpoint={home / "run"}', *flags]) == 2
  said = capsys.readouterr()
  assert not said.out and said.err.count('\n') == 1, said
  return said.err


def test_the_head_of_another_network_is_refused(home, capsys):
  assert main([f'--checkpoint={home / "other"}', f'--query={home / "new"}',
               f'--load_head={home / "head.safetensors"}']) == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'belongs to another network (mtl' in said


def test_a_network_file_of_the_users_that_changed_is_another_network(
    home, tmp_path, monkeypatch):
  """Fails if old numbers go through new code without a word."""
  monkeypatch.chdir(tmp_path)
  source = pathlib.Path('head.py')
  source.write_text('from mtl_jax.heads.ridge import *\n'
                    'from mtl_jax.heads.ridge import OPTIONS\n')
  classify.keep(classify.learn(home / 'run', classify.pictures.list_support(
      home / 'known'), head='head.py'), kept.check_name('kept.safetensors'))
  moved = tmp_path / 'elsewhere/head.py'
  moved.parent.mkdir()
  source.rename(moved)
  classify.recall(home / 'run', 'kept.safetensors', str(moved))
  moved.write_text(moved.read_text() + '# Changed.\n')
  with pytest.raises(UserError, match='belongs to another network'):
    classify.recall(home / 'run', 'kept.safetensors', str(moved))


def test_a_head_file_executes_no_python_that_is_not_named(
    home, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('notes.py').write_text('open("ran", "w")')
  pathlib.Path('x.safetensors').write_bytes(rewrite(
      home, lambda about, arrays: about.update(head='notes.py')))
  said = refused(home, capsys, '--load_head=x.safetensors',
                 f'--query={home / "new"}')
  assert 'if you trust it, name it by --head=notes.py' in said
  assert not pathlib.Path('ran').exists()
  said = refused(home, capsys, '--load_head=x.safetensors', '--head=gone.py',
                 f'--query={home / "new"}')
  assert 'gone.py is not there' in said


def test_what_a_python_file_has_not_fitted_needs_none(home, tmp_path, capsys):
  (tmp_path / 'mine.py').write_text('')
  said = refused(home, capsys, f'--head={tmp_path}/mine.py',
                 f'--load_head={home / "head.safetensors"}',
                 f'--query={home / "new"}')
  assert 'the file holds what logistic has fitted' in said


class Hostile:
  """Makes a file when it is unpickled."""

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path('unpickled'),)


def rewrite(home, change):
  """Returns the bytes of the head file after change(about, arrays)."""
  weights = weight_files.read(home / 'head.safetensors')
  about = weight_files.json_of(weights, 'mtl_jax_head')
  arrays = dict(weights.arrays)
  change(about, arrays)
  return safetensors.pack(arrays, {'mtl_jax_head': json.dumps(about)})


def npz(home):
  """Returns the arrays of the head file as NumPy would write objects."""
  packed = io.BytesIO()
  np.savez(packed, state_0=np.array([Hostile()], object))
  return packed.getvalue()


BAD = {
    'empty': lambda home: b'',
    'a picture': lambda home: (home / 'new/a/0.png').read_bytes(),
    'cut off': lambda home: (home / 'head.safetensors').read_bytes()[:-400],
    'a pickle': lambda home: pickle.dumps(Hostile()),
    'a pickle within': npz,
    'weights': lambda home: safetensors.pack({'x': np.zeros(3)}, {}),
    'without a head': lambda home: rewrite(
        home, lambda about, arrays: about.pop('head')),
    'deep': lambda home: safetensors.pack({}, {'mtl_jax_head': 10**5 * '['}),
    'without classes': lambda home: rewrite(
        home, lambda about, arrays: about.update(classes=[])),
    'a negative temperature': lambda home: rewrite(
        home, lambda about, arrays: about['calibration'].update(
            temperature=-1)),
    'an endless temperature': lambda home: rewrite(
        home, lambda about, arrays: about['calibration'].update(
            temperature=float('inf'))),
    'other sizes': lambda home: rewrite(
        home, lambda about, arrays: about['classes'].update(a=10**9)),
    'another array': lambda home: rewrite(
        home, lambda about, arrays: arrays.update(
            state_0=np.zeros(7, np.float32))),
    'an array too many': lambda home: rewrite(
        home, lambda about, arrays: arrays.update(state_9=np.zeros(3))),
    'an unknown head': lambda home: rewrite(
        home, lambda about, arrays: about.update(head='nothing')),
    'another version': lambda home: rewrite(
        home, lambda about, arrays: about.update(version=2)),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_head_file_gets_one_line_and_runs_nothing(
    case, home, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  content = BAD[case](home)
  (tmp_path / 'x.safetensors').write_bytes(content)
  said = refused(home, capsys, '--load_head=x.safetensors',
                 f'--query={home / "new"}')
  assert '--load_head' in said and 'x.safetensors' in said
  assert [p.name for p in tmp_path.iterdir()] == ['x.safetensors']


@pytest.mark.parametrize('flags, line', [
    (('--load_head=no.safetensors', '--query=new'), 'no.safetensors: is not'),
    (('--load_head=x.safetensors', '--support=known', '--query=new'),
     '--support or --load_head is required, and not both'),
    (('--query=new',), '--support or --load_head is required'),
    (('--load_head=x.safetensors', '--query=new', '--invert'),
     '--invert does not go with --load_head'),
    (('--load_head=x.safetensors', '--query=new', '--head=svm'),
     '--head does not go with --load_head'),
    (('--load_head=x.safetensors',), '--query is required'),
    (('--support=known', '--query=new', '--save_head=x.pkl'),
     'must end in .safetensors'),
    (('--support=known', '--query=new',
      '--save_head=.safetensors/x.safetensors'),
     '.safetensors is a file; name a folder'),
    (('--support=known', '--query=new', '--save_head=mine.safetensors'),
     'mine.safetensors: the file there is no head file'),
    (('--support=known', '--query=new', '--watch=new'), 'one of them'),
    (('--support=known', '--save_head=new.safetensors', '--watch=~/nothing'),
     '--watch ~/nothing is not there'),
    (('--support=known', '--query=new', f'--save_head={300 * "x"}.safetensors'),
     'cannot be'),
    (('--support=known', '--query', '-', 'new'), '--query - is stdin'),
    (('--support=known', '--query=-', '--out=out'), '--out is for')])
def test_flags_that_do_not_go_together(flags, line, home, tmp_path,
                                       monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name in ('known', 'new'):
    (tmp_path / name).symlink_to(home / name)
  (tmp_path / 'mine.safetensors').write_bytes(
      safetensors.pack({'x': np.zeros(3)}, {}))
  (tmp_path / '.safetensors').write_text('')
  before = (tmp_path / 'mine.safetensors').read_bytes()
  assert line in refused(home, capsys, *flags)
  assert (tmp_path / 'mine.safetensors').read_bytes() == before
  assert {p.name for p in tmp_path.iterdir()} == {
      'known', 'new', 'mine.safetensors', '.safetensors'}
