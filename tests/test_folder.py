"""A user's folder of images: layouts, splits, lists, and what is left out."""

import csv
import json
import re
import shutil

import numpy as np
import own_source as own
import pytest
from PIL import Image

from mtl_jax.data import __main__ as data_main
from mtl_jax.data import sources
from mtl_jax.data import store as stores
from mtl_jax.data.source import SPLITS
from mtl_jax.data.sources.folder import listing, lists, options
from mtl_jax.errors import UserError

SHORT = {'train': 'train', 'validation': 'val', 'test': 'test'}
ROWS = [(split, name, m, i) for split, names in own.CLASSES.items()
        for m, name in enumerate(names) for i in range(own.IMAGES)]


@pytest.fixture
def data(tmp_path, monkeypatch):
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path / 'data'))
  monkeypatch.delenv('MTL_JAX_MANUAL', raising=False)
  return tmp_path


def draw(path, split, m, i, size=own.SHAPE):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(own.pixels(split, m, i, size)).save(path)


def write_classes(folder):
  """Writes a folder of images for each class, whatever its split."""
  for split, name, m, i in ROWS:
    draw(folder / name / f'{i}.png', split, m, i)
  return folder


def write_csv(path, header, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', newline='') as file:
    csv.writer(file).writerows([header, *rows])


def tables(folder, header=('path', 'species'), row=lambda n, i: (
    f'{n}/{i}.png', n)):
  write_classes(folder / 'images')
  for split, short in SHORT.items():
    write_csv(folder / f'{short}.csv', header,
              [row(n, i) for s, n, _, i in ROWS if s == split])


def one_table(folder):
  write_classes(folder / 'a/images')
  write_csv(folder / 'all.csv', ('n', 'set', 'kind', 'file'), [
      (k, SHORT[s], n, f'a\\images\\{n}\\{i}.png')
      for k, (s, n, _, i) in enumerate(ROWS)])
  return ':list=all.csv,label=kind'


def easy_fsl(folder):
  write_classes(folder / 'images')
  for split, names in own.CLASSES.items():
    (folder / f'{SHORT[split]}.json').write_text(json.dumps({
        'class_names': names,
        'class_roots': [f'./data/CUB/images/{n}' for n in names]}))


def cub(folder):
  write_classes(folder / 'images')
  names = [name for of_split in own.CLASSES.values() for name in of_split]
  for split, short in zip(SPLITS, ('base', 'val', 'novel'), strict=True):
    rows = [(f'/home/x/images/{n}/{i}.png', names.index(n))
            for s, n, _, i in ROWS if s == split]
    (folder / f'{short}.json').write_text(json.dumps({
        'label_names': names, 'image_names': [row[0] for row in rows],
        'image_labels': [row[1] for row in rows]}))


def texts(folder):
  write_classes(folder / 'data')
  (folder / 'splits').mkdir()
  for split, names in own.CLASSES.items():
    (folder / f'splits/{SHORT[split]}.txt').write_text('\n'.join(names) + '\n')


LAYOUTS = {
    'folders of splits': lambda f: own.write_folder(f, names=SHORT.values()),
    'wrapped twice': lambda f: own.write_folder(f / 'x/y'),
    'deeper in a class': lambda f: deeper(f),
    'tables': tables,
    'tables of other columns': lambda f: tables(
        f, ('row', 'who', 'img', 'class'),
        lambda n, i: (i, 'me', f'{n}/{i}.png', n)),
    'one table with a column of splits': one_table,
    'lists of EasyFSL': easy_fsl,
    'lists of CUB': cub,
    'lists of classes': texts,
}


def deeper(folder):
  """Puts the images of a class into folders of its folder."""
  for split, name, m, i in ROWS:
    draw(folder / split / name / (f'{i}.png' if i < 3 else f'more/{i}.png'),
         split, m, i)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_same_images(layout, data, capsys):
  """Fails if an image gets another class or split than the user's."""
  folder = data / 'birds'
  given = LAYOUTS[layout](folder)
  name = str(folder) + (given if isinstance(given, str) else '')
  assert data_main.main(['build', name]) == 0
  assert 'test: 6 classes, 36 images, 6 to 6 of a class: test_a' in (
      capsys.readouterr().out)
  for split in SPLITS:
    store = stores.load(name, split)
    assert store.class_names == own.CLASSES[split]
    np.testing.assert_array_equal(store.images, np.stack([
        own.pixels(split, m, i) for m in range(6) for i in range(own.IMAGES)]))


# The split of classes by a seed.


def split_by(folder, text=''):
  return {split: set(classes) for split, classes in listing.find(
      folder, options.parse(text)).splits.items()}


@pytest.fixture(scope='module')
def many(tmp_path_factory):
  """25 classes in 5 groups, one image each."""
  folder = tmp_path_factory.mktemp('many')
  for m in range(25):
    draw(folder / f'group{m % 5}/class{m}/0.png', 'test', m, 0)
  return folder


@pytest.mark.parametrize('text, counts', [
    ('', [16, 4, 5]), ('shares=1/1/1', [8, 8, 9]),
    ('shares=98/1/1', [23, 1, 1]),
    ('group=yes', [15, 5, 5]), ('group=yes,shares=1/1/3', [5, 5, 15])])
def test_classes_are_split_by_shares(text, counts, many):
  splits = split_by(many, text)
  assert sorted(map(len, splits.values())) == sorted(counts)
  assert len(set().union(*splits.values())) == 25
  if 'group' in text:
    groups = [{name.split('/')[0] for name in split}
              for split in splits.values()]
    assert sum(map(len, groups)) == 5


def test_a_split_depends_on_its_seed_alone(many, tmp_path):
  assert split_by(many) == split_by(many)
  assert split_by(many) != split_by(many, 'seed=1')
  copy = shutil.copytree(many, tmp_path / 'copy')
  draw(copy / 'group0/new/0.png', 'test', 0, 0)
  before, after = split_by(many), split_by(copy)
  moved = sum(len(before[split] - after[split]) for split in SPLITS)
  assert moved <= 2  # a random split would move half of them


# What is found and left out is said.


def test_what_is_found_and_left_out_is_said(data, capsys):
  folder = write_classes(data / 'birds')
  (folder / 'train_a/notes.txt').write_text('x')
  (folder / 'train_a/gone.png').symlink_to('nowhere.png')
  draw(folder / 'cover.png', 'test', 0, 0)
  (folder / 'empty').mkdir()
  draw(folder / 'small/0.png', 'test', 7, 0)
  (folder / 'test_a/5.png').write_bytes(b'not an image')
  shutil.copy(folder / 'test_b/0.png', folder / 'train_b/0.png')
  shutil.copy(folder / 'test_c/0.png', folder / 'test_c/1.png')
  assert data_main.main(['build', f'{folder}:least=2,broken=skip']) == 0
  out = capsys.readouterr().out
  for line in ('class folders, split by seed 0 as 64/16/20.',
               'train_a: 2 files are no images by their names, or links to '
               'nothing, and were left out, such as gone.png',
               '1 images lie beside the class folders, such as cover.png',
               'empty has no images: left out.',
               'class small has 1 images, fewer than 2: left out.',
               '1 images cannot be read and were left out: .*test_a/5.png',
               '1 images are twice in a class, such as .*test_c/0.png',
               '1 images are in .*classes .*test_b/0.png'):
    assert re.search(line, out), line
  stored = [stores.load(f'{folder}:least=2,broken=skip', s) for s in SPLITS]
  assert sum(len(store.images) for store in stored) == 107


@pytest.mark.parametrize('place', ['a/self', 'self'])
def test_a_link_to_a_folder_above_shows_no_image_again(place, tmp_path):
  """Fails if support and query share pictures that a link leads to."""
  folder = write_classes(tmp_path / 'birds')
  before, _ = listing.classes_below(folder)
  link = folder / place.replace('a/', f'{ROWS[0][1]}/')
  link.symlink_to(link.parent)
  assert listing.classes_below(folder)[0] == before


def test_a_guess_of_bits_is_said(data, capsys):
  """Fails if a dark picture becomes as bright as others without a word."""
  folder = write_classes(data / 'birds')
  picture = folder / ROWS[0][1] / 'dark.tif'
  Image.fromarray(np.full(own.SHAPE[:2], 3000, np.uint16)).save(picture)
  assert data_main.main(['build', str(folder)]) == 0
  assert ('1 images have 16 bits or more per pixel and use 12 of them, such as '
          f'{picture}: they were read as 12 bits') in capsys.readouterr().out


def test_options_make_data_of_their_own(data):
  """Fails if another seed reads the classes of the first."""
  folder = write_classes(data / 'birds')
  first, second = (stores.load(name, 'test').class_names
                   for name in (str(folder), f'{folder}:seed=1'))
  assert first != second


def test_images_get_the_size_that_is_asked(data):
  folder = write_classes(data / 'birds')
  assert stores.load(f'{folder}:size=16', 'test').images.shape[1:] == (
      16, 16, 3)


def test_splits_of_images_are_merged_where_asked(data):
  """Fails if a folder of ordinary classification cannot be used."""
  for split, name, m, i in ROWS:
    draw(data / 'birds' / ('train' if i % 2 else 'test') / name / f'{i}.png',
         split, m, i)
  splits = listing.find(data / 'birds', options.parse('merge=yes')).splits
  assert sorted(len(p) for classes in splits.values()
                for p in classes.values()) == [own.IMAGES] * 18


def lists_of(change):
  """Returns a damage: tables, then `change` of one of them."""
  def damage(folder):
    tables(folder)
    change(folder / 'val.csv')
  return damage


def replaced(old, new):
  return lambda path: path.write_text(path.read_text().replace(old, new, 1))


DAMAGES = {
    'a list is missing': (lists_of(lambda p: p.unlink()), 'no val.csv'),
    'a list is HTML': (lists_of(lambda p: p.write_text('<html>')),
                       'val.csv is an HTML page'),
    'a list is empty': (lists_of(lambda p: p.write_text('')),
                        'val.csv is no table with a header'),
    'an image is not there': (lists_of(replaced('/2.png', '/9.png')),
                              "line 4: there is no image 'validation_a/9.png'"),
    'the only image of that name is in another folder': (
        lambda f: (tables(f), draw(f / 'images/test_a/only.png', 'test', 0, 0),
                   replaced('a/2.png', 'a/only.png')(f / 'val.csv')),
        "line 4: there is no image 'validation_a/only.png'"),
    'an image outside of the folder': (
        lists_of(replaced('validation_a/0.png', '../../outside.png')),
        "there is no image '../../outside.png'"),
    'no column of images': (
        lists_of(lambda p: p.write_text('a,b\nx,y\n')),
        r'no column \(a, b\) names images'),
    'several columns of classes': (
        lambda f: tables(f, ('file', 'x', 'y'),
                         lambda n, i: (f'{n}/{i}.png', n, n)),
        'Name one of x, y by :label=NAME'),
    'an image is HTML': (
        lambda f: (write_classes(f) / 'test_a/0.png').write_bytes(
            b'<!DOCTYPE html><html>not found</html>'),
        r'test_a/0.png is no image'),
    'a row is short': (lists_of(replaced(',validation_a\n', '\n')),
                       'line 2 has 1 columns, not 2'),
    'a class in two lists': (lists_of(replaced(',validation_a', ',test_a')),
                             "'test_a' is in validation and in test"),
    'two folders of a list': (
        lambda f: (texts(f), shutil.copytree(
            f / 'data', f / 'copy')), 'more than one folder .train_a'),
    'a list of folders that are not there': (
        lambda f: (easy_fsl(f), shutil.rmtree(f / 'images/test_a')),
        "there is no folder '.*test_a'"),
    'other JSON': (
        lambda f: (easy_fsl(f), (f / 'val.json').write_text('[1]')),
        'val.json has neither class_names'),
    'no images': (lambda f: f.mkdir(), 'has no images in folders'),
    'two classes': (
        lambda f: [draw(f / name / '0.png', 'test', 0, 0) for name in 'ab'],
        'there are 2 classes'),
    'an image that is cut off': (
        lambda f: (write_classes(f) / 'test_a/0.png').write_bytes(
            (f / 'test_a/0.png').read_bytes()[:99]), 'add :broken=skip'),
}


@pytest.mark.parametrize('case', DAMAGES)
def test_a_wrong_folder_gets_one_line_and_builds_nothing(case, data, capsys):
  damage, said = DAMAGES[case]
  draw(data / 'outside.png', 'test', 0, 0)
  damage(data / 'birds')
  assert data_main.main(['build', str(data / 'birds')]) == 2
  line, = capsys.readouterr().err.splitlines()
  assert re.search(said, line)
  assert not (data / 'data').exists()


def test_a_picture_stands_for_no_other(tmp_path):
  """Fails if a class whose folder is gone gets the images of another."""
  draw(tmp_path / 'crow/1.png', 'test', 0, 0)
  write_csv(tmp_path / 'all.csv', ('path', 'kind'),
            [('robin/1.png', 'robin'), ('crow/1.png', 'crow')])
  with pytest.raises(UserError, match="line 3: 'crow/1.png' and 'robin/1.png'"):
    lists.find(tmp_path, options.parse('list=all.csv'))


@pytest.mark.parametrize('names', [
    ['1.png', 'robin/1.png', 'owl/1.png'], ['crow/2.png', 'robin/1.png'],
    ['/home/a/1.png', '/home/b/1.png']])
def test_rows_that_contradict_each_other_are_refused(names, tmp_path):
  for i in (1, 2):
    draw(tmp_path / f'crow/{i}.png', 'test', 0, 0)
  write_csv(tmp_path / 'all.csv', ('path', 'kind'),
            [(name, str(i)) for i, name in enumerate(names)])
  with pytest.raises(UserError, match=f"line {len(names) + 1}: '"):
    lists.find(tmp_path, options.parse('list=all.csv'))


def test_a_folder_between_does_no_harm(tmp_path):
  draw(tmp_path / 'images/part1/1.png', 'test', 0, 0)
  write_csv(tmp_path / 'all.csv', ('path', 'kind'), [('images/1.png', 'a')])
  assert lists.find(tmp_path, options.parse('list=all.csv')).classes == {
      'a': [tmp_path / 'images/part1/1.png']}


def test_images_may_lie_in_one_folder(tmp_path):
  """Fails if a list must name the folder that its images were put in."""
  for name in 'ab':
    draw(tmp_path / f'images/{name}.png', 'test', 0, 0)
  write_csv(tmp_path / 'all.csv', ('path', 'kind'),
            [(f'/home/x/{name}/{name}.png', name) for name in 'ab'])
  assert lists.find(tmp_path, options.parse('list=all.csv')).classes == {
      name: [tmp_path / f'images/{name}.png'] for name in 'ab'}


def same_size(folder):
  path = folder / 'all.csv'
  before = path.read_bytes()
  path.write_bytes(before.replace(b',train_a,', b',train_b,', 1))
  assert before != path.read_bytes()


@pytest.mark.parametrize('change', [
    same_size, lambda f: draw(f / 'a/images/test_a/9.png', 'test', 0, 0),
    lambda f: draw(f.parent / 'elsewhere/9.png', 'test', 0, 0)],
    ids=['a list', 'an image', 'an image behind a link'])
def test_what_changes_is_built_again(change, tmp_path):
  folder, elsewhere = tmp_path / 'birds', tmp_path / 'elsewhere'
  chosen = options.parse(one_table(folder)[1:])
  elsewhere.mkdir()
  (folder / 'linked').symlink_to(elsewhere)
  (elsewhere / 'up').symlink_to(folder)
  before = listing.digest(folder, chosen)
  assert listing.digest(folder, chosen) == before
  change(folder)
  assert listing.digest(folder, chosen) != before


@pytest.mark.parametrize('text', ['label=kind', 'image=file'])
def test_a_column_that_is_not_there_is_named(text, data, capsys):
  """Fails if a misspelt column ends in a traceback or in other classes."""
  tables(data / 'birds')
  assert data_main.main(['build', f'{data / "birds"}:{text}']) == 2
  line, = capsys.readouterr().err.splitlines()
  column = text.partition('=')[2]
  assert f"train.csv has no column '{column}': it has path, species" in line
  assert not (data / 'data').exists()


@pytest.mark.parametrize('text, line', [
    ('sead=1', 'the option sead is unknown'), ('seed=x', "seed is 'x'"),
    ('seed=-1', "seed is '-1'"), ('shares=1/2', 'three numbers above 0'),
    ('shares=1/nan/2', 'three numbers'), ('least=0', 'from 1 on'),
    ('group=maybe', 'yes or no'), ('broken=', 'refuse or skip'),
    ('size=7', 'from 8 to 1024'), ('list=', 'a name')])
def test_a_wrong_option_gets_one_line(text, line, tmp_path):
  with pytest.raises(UserError, match=line):
    sources.check_name('config.data.name', f'{tmp_path}:{text}')


def test_a_folder_may_have_a_colon(tmp_path):
  """Fails if a path that looks like options is taken for one."""
  folder = write_classes(tmp_path / 'a:seed=1')
  assert len(sources.find(str(folder)).source.classes('')['test']) > 0
  assert options.divide(f'{folder}:least=2') == (str(folder), 'least=2')
