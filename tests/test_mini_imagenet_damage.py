"""mini-ImageNet: damaged files get one line of the command, and leave nothing.

The damages are done to a counterfeit of a few images.
"""

import os
import pickle
import shutil
import zipfile

import bad_pictures
import command
import mini_imagenet_fake as fake
import numpy as np
import pytest

from mtl_jax.data import __main__ as data_main
from mtl_jax.data.sources import mini_imagenet

TRAIN, VALIDATION, TEST = [wnids[:count] for wnids, count in zip(
    mini_imagenet.published_classes().values(), fake.NUM_CLASSES, strict=True)]
FIRST = fake.ordered('train')[0][1]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
  fake.use(monkeypatch, tmp_path / 'data')


def edit(folder, name, change):
  path = folder / name
  path.write_text(change(path.read_text()))


def listed(change, split='train'):
  """A damage to a list of layout c."""
  def write(folder):
    fake.write_zips(folder)
    edit(folder, fake.CSVS[split], change)
  return write


def without(text, count):
  """Removes the first `count` lines that contain `text`."""
  def change(content):
    lines = content.splitlines(keepends=True)
    gone = [line for line in lines if text in line][:count]
    return ''.join(line for line in lines if line not in gone)
  return change


def overwritten(write, name, content):
  """A damage to a whole file: new bytes, or how many to keep."""
  def damage(folder):
    write(folder)
    path = folder / name
    if isinstance(content, bytes):
      path.write_bytes(content)
    else:
      os.truncate(path, content)
  return damage


def removed(write, name):
  def damage(folder):
    write(folder)
    (folder / name).unlink()
  return damage


def array_damage(**change):
  """A damage to a key of a pickle of layout a."""
  (key, changed), = change.items()
  return lambda folder: fake.write_cache(
      folder, split='validation',
      change=lambda content: content | {key: changed(content[key])})


def exchanged(folder):
  """Gives a test class to the training list and the other way round."""
  fake.write_zips(folder)
  train, test = [folder / fake.CSVS[split] for split in ('train', 'test')]
  swapped = train.read_text().replace(TRAIN[1], 'x').replace(
      TEST[0], TRAIN[1]).replace('x', TEST[0])
  test.write_text(test.read_text().replace(TEST[0], TRAIN[1]))
  train.write_text(swapped)


class Evil:
  def __reduce__(self):
    return os.system, ('echo evil',)


HTML = b'\n<!DOCTYPE html><html><head><title>Download</title>'
ONE_MORE = f'{TRAIN[1]}00000999.jpg,{TRAIN[1]}\n'
CACHE = 'mini-imagenet-cache-val.pkl'
CATEGORY = 'miniImageNet_category_split_val.pickle'

# Name -> (what writes the files, what the line must say).
DAMAGES = {
    'empty folder': (lambda folder: folder.mkdir(), ('nothing', 'train.csv')),
    'only another data set': (
        lambda folder: (folder / 'omniglot').mkdir(parents=True) or (
            folder / 'omniglot/images_background.zip').write_bytes(b''),
        ('nothing', 'train.csv')),
    'no folder': (lambda folder: None, ('is no folder', 'train.csv')),
    'a CSV is missing': (
        removed(fake.write_zips, 'val.csv'), ('val.csv is missing', 'Ravi')),
    'no images': (fake.write_lists, ('images is missing', 'train.csv')),
    'a pickle is missing': (
        removed(fake.write_cache, CACHE), (CACHE, 'is missing')),
    "another split's class": (
        exchanged, ('train.csv', f'{TEST[0]}, which is of the test split',
                    '1 such', 'Ravi')),
    'a class of no split': (
        listed(lambda text: text.replace(TRAIN[1], 'n99999999')),
        ('train.csv', 'n99999999', 'no split', 'Vinyals')),
    "Vinyals' list": (
        listed(lambda text: text.replace('label', 'class', 1).replace(
            '.jpg', '.JPEG')), ('train.csv', 'Vinyals et al.', 'Ravi')),
    'numbers for classes': (
        listed(lambda text: text.replace(f',{TRAIN[0]}', ',0').replace(
            f',{TRAIN[1]}', ',1').replace(f',{TRAIN[2]}', ',2')),
        ('train.csv', "'filename,label' and 'n0", 'filename,label')),
    'names without an ending': (
        listed(lambda text: text.replace('.jpg', '')),
        ('train.csv', "'filename,label' and 'n0", 'filename,label')),
    'three columns': (
        listed(lambda text: text.replace('\n', ',1\n', 3).replace(
            'label,1', 'label')), ('train.csv, line 2', '3 columns')),
    'an empty CSV': (
        overwritten(fake.write_zips, 'test.csv', b''),
        ('test.csv is empty', 'Ravi')),
    'a CSV that is a page': (
        overwritten(fake.write_zips, 'test.csv', HTML), ('test.csv', 'HTML')),
    'a label of another class': (
        listed(lambda text: text.replace(f',{TRAIN[1]}', f',{TRAIN[0]}', 1)),
        ('train.csv, line', TRAIN[1], f'label {TRAIN[0]}')),
    'a class is missing': (
        listed(without(TRAIN[1], 99)),
        ('train.csv', f'lacks class {TRAIN[1]}', '1 of 3')),
    'a class in two splits': (
        listed(lambda text: text + ''.join(
            f'{name},{wnid}\n' for wnid, name, _ in fake.rows()['train']
            if wnid == TRAIN[1]), 'validation'),
        ('train.csv', 'val.csv', TRAIN[1], 'one split')),
    'an image too few': (
        listed(without(TRAIN[1], 1)), ('train.csv', f'{TRAIN[1]} has 3', '4')),
    'an image too many': (
        listed(lambda text: text + ONE_MORE),
        ('train.csv', f'{TRAIN[1]} has 5', '4')),
    'an image twice': (
        listed(lambda text: text + f'{FIRST},{TRAIN[0]}\n'),
        ('train.csv', FIRST, 'twice')),
    'an archive of another kind': (
        lambda folder: folder.mkdir() or (
            folder / 'mini.tar.gz').write_bytes(b''),
        ('mini.tar.gz: unpack it',)),
    'a class is missing in one folder of all': (
        lambda folder: fake.write_folders(folder / 'a/train') or (
            folder / 'a/train/train').rename(folder / 'all'),
        (f'all lacks class {VALIDATION[0]}', '2 of 2')),
    'a zip without its end': (
        lambda folder: fake.write_lists(folder) or (
            folder / 'images.zip').write_bytes(b'PK\3\4' + bytes(99)),
        ('images.zip', '103 bytes', 'cut short', 'in no other file')),
    'an image in no archive': (
        lambda folder: fake.write_zips(folder, skip=(FIRST,)),
        (FIRST, TRAIN[0], 'train.csv', '1 of 12')),
    'an archive is missing': (
        removed(fake.write_zips, 'images-2.zip'),
        ('val.csv', VALIDATION[0], '8 of 8')),
    'a truncated JPEG': (
        lambda folder: fake.write_zips(
            folder, train0=fake.ordered('train')[0][2][:-500]),
        (FIRST, TRAIN[0], 'images-1.zip', 'truncated', '1 of 12')),
    'a file that is no image': (
        lambda folder: fake.write_zips(folder, train0=b'text', train1=b''),
        (FIRST, TRAIN[0], 'it is no image', '2 of 12')),
    'an image that starts a program': (
        lambda folder: fake.write_zips(
            folder, train0=bad_pictures.POSTSCRIPT),
        (FIRST, TRAIN[0], 'it is no image', '1 of 12')),
    'an image that fills the memory': (
        lambda folder: fake.write_zips(folder, train0=bad_pictures.BOMB),
        (FIRST, TRAIN[0], '400000000 pixels', '1 of 12')),
    'an image that is a page': (
        lambda folder: fake.write_zips(folder, train0=HTML),
        (FIRST, TRAIN[0], 'HTML')),
    'an archive that is a page': (
        overwritten(fake.write_zips, 'images-1.zip', HTML),
        ('images-1.zip', 'HTML page')),
    'a truncated zip': (
        overwritten(fake.write_zips, 'images-2.zip', 9000),
        ('images-2.zip', '9000 bytes', 'cut short')),
    'a flipped byte in a zip': (
        lambda folder: fake.write_zips(folder) or flip(folder, FIRST),
        (FIRST, TRAIN[0], 'images-1.zip', 'CRC')),
    'a pickle that is a page': (
        overwritten(fake.write_cache, CACHE, HTML), (CACHE, 'HTML page')),
    'a truncated pickle': (
        overwritten(fake.write_category_split, CATEGORY, 9000),
        (CATEGORY, 'cut short')),
    'a pickle that runs code': (
        overwritten(fake.write_cache, CACHE, pickle.dumps(Evil())),
        (CACHE, 'posix.system', 'any code')),
    'a pickle of a list': (
        overwritten(fake.write_cache, CACHE, pickle.dumps([1])),
        (CACHE, 'list', 'image_data')),
    'a pickle with other keys': (
        overwritten(fake.write_category_split, CATEGORY,
                    pickle.dumps({'data': 1})),
        (CATEGORY, 'lacks labels')),
    'floats': (
        array_damage(image_data=lambda x: x.astype(np.float32) / 255),
        (CACHE, 'float32', 'uint8')),
    'NCHW': (
        array_damage(image_data=lambda x: x.transpose(0, 3, 1, 2)),
        (CACHE, '8x3x84x84', 'height x width x 3')),
    'a list of arrays': (
        array_damage(image_data=list), (CACHE, 'list', 'not an array')),
    'fewer images than rows': (
        array_damage(image_data=lambda x: x[:-1]),
        (CACHE, VALIDATION[1], 'there are 7')),
    'a class of too few rows': (
        array_damage(class_dict=lambda x: {
            **x, VALIDATION[1]: x[VALIDATION[1]][:-1]}),
        (CACHE, '1 of 8 images are of no class')),
    'a row twice': (
        array_damage(class_dict=lambda x: {
            **x, VALIDATION[1]: x[VALIDATION[0]]}),
        (CACHE, 'twice')),
    'a class missing in a pickle': (
        array_damage(class_dict=lambda x: {VALIDATION[0]: list(range(8))}),
        (CACHE, f'lacks class {VALIDATION[1]}', '1 of 2')),
    "another split's pickle": (
        lambda folder: fake.write_category_split(folder) or (
            folder / CATEGORY).write_bytes((folder / CATEGORY.replace(
                'val', 'test')).read_bytes()),
        (CATEGORY, TEST[0], 'the test split')),
    'labels of no name': (
        lambda folder: fake.write_category_split(
            folder, split='validation',
            change=lambda x: x | {'labels': [99] * 8}),
        (CATEGORY, 'catname2label')),
    'another number of labels': (
        lambda folder: fake.write_category_split(
            folder, split='validation',
            change=lambda x: x | {'labels': x['labels'][:-1]}),
        (CATEGORY, '8 images have 7 labels')),
    'a zip of a split is a web page': (
        lambda folder: zipped_splits(folder) or (
            folder / 'train.zip').write_bytes(HTML),
        ('train.zip', 'HTML page')),
    'a folder lacks an image': (
        lambda folder: fake.write_folders(folder) or next(
            (folder / 'val' / VALIDATION[1]).iterdir()).unlink(),
        ('val', f'{VALIDATION[1]} has 3', '4')),
    'a folder too many': (
        lambda folder: fake.write_folders(folder) or (
            folder / 'val' / 'n99999999').mkdir() or (
            folder / 'val/n99999999/a.jpg').write_bytes(b''),
        ('val', 'n99999999', 'no split')),
}


def zipped_splits(folder):
  fake.write_folders(folder)
  for split in ('train', 'val', 'test'):
    shutil.make_archive(folder / split, 'zip', folder, split)
    shutil.rmtree(folder / split)


def flip(folder, name):
  path = folder / 'images-1.zip'
  with zipfile.ZipFile(path) as archive:
    at = archive.getinfo(f'images/{name}').header_offset + 200
  content = bytearray(path.read_bytes())
  content[at] ^= 255
  path.write_bytes(content)


@pytest.mark.parametrize('case', DAMAGES)
def test_damaged_files_get_one_line_and_no_folder(case, tmp_path, capfd):
  write, named = DAMAGES[case]
  write(tmp_path / 'files')
  before = command.snapshot(tmp_path)
  assert fake.build(tmp_path / 'files') == 2
  printed = capfd.readouterr()
  line, = printed.err.splitlines()
  for text in named + ('files',):
    assert text in line
  assert 'evil' not in printed.out
  assert command.snapshot(tmp_path) == before


def test_a_damaged_zip_is_no_matter_where_the_images_are(tmp_path):
  """Fails if archives are to be fetched again that nobody needs."""
  fake.write_loose(tmp_path / 'files/images')
  (tmp_path / 'files/images/images.zip').write_bytes(b'cut')
  assert fake.build(tmp_path / 'files') == 0


def test_a_link_to_a_folder_above_ends(tmp_path):
  fake.write_folders(tmp_path / 'files/a')
  (tmp_path / 'files/a/train/again').symlink_to(tmp_path / 'files')
  (tmp_path / 'linked').mkdir()
  (tmp_path / 'linked/mini').symlink_to(tmp_path / 'files/a')
  assert fake.build(tmp_path / 'linked') == 0


def test_no_folder_named(tmp_path, capsys):
  assert data_main.main(['build', 'mini_imagenet']) == 2
  line, = capsys.readouterr().err.splitlines()
  for text in ('config.data.manual_dir', 'MTL_JAX_MANUAL', 'train.csv',
               'mini-imagenet-cache'):
    assert text in line


def test_an_unknown_option_is_answered_by_those_there_are(capsys):
  assert data_main.main(['build', 'mini_imagenet', '--channels=bgr']) == 2
  assert 'channel_order' in capsys.readouterr().err


@pytest.mark.parametrize('case', ['empty folder', "Vinyals' list"])
def test_the_real_command_ends_in_one_line(case, tmp_path):
  write, named = DAMAGES[case]
  write(tmp_path / 'files')
  result = command.run(
      ['build', 'mini_imagenet', f'--manual_dir={tmp_path / "files"}'],
      program=('-m', 'mtl_jax.data'),
      env={'MTL_JAX_DATA': str(tmp_path / 'data')})
  assert result.returncode == 2 and not result.stdout
  line, = result.stderr.splitlines()
  for text in named + (str(tmp_path / 'files'),):
    assert text in line
  assert not (tmp_path / 'data').exists()
