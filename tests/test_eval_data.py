"""Tests on another data set than the one trained on: classes and images."""

import itertools
import json

import numpy as np
import own_source
import pytest
import tiny_run
from PIL import Image

from mtl_jax import main
from mtl_jax.data import overlap, pictures, sources
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.run import loop, tested_split, trained, workdir

# (trained on, tested on) -> test classes that are among the training classes,
# and among those of training and validation. Counted from the published lists,
# with a character for each of its drawings; the others are 0. Between glyphs
# and Omniglot alphabets count: Old Church Slavonic is Cyrillic, 45 characters,
# and Hebrew and Armenian are for validation in Omniglot and for test in glyphs.
SEEN = {
    ('mini_imagenet', 'tiered_imagenet'): (13, 15),
    ('tiered_imagenet', 'mini_imagenet'): (5, 6),
    ('cifar_fs', 'fc100'): (11, 15),
    ('fc100', 'cifar_fs'): (11, 15),
    ('omniglot/vinyals', 'omniglot/lake'): (236, 236),
    ('omniglot/vinyals', 'omniglot'): (106, 106),
    ('omniglot/lake', 'omniglot'): (106, 106),
    ('glyphs', 'omniglot/vinyals'): (45, 45),
    ('glyphs', 'omniglot/lake'): (45, 45),
    ('glyphs/tiny', 'omniglot/vinyals'): (45, 45),
    ('glyphs/tiny', 'omniglot/lake'): (45, 45),
    ('omniglot/vinyals', 'glyphs'): (0, 147),
    ('omniglot/vinyals', 'glyphs/tiny'): (0, 7),
    ('omniglot/lake', 'glyphs'): (0, 147),
    ('omniglot/lake', 'glyphs/tiny'): (0, 7),
}


def classes(name, *splits):
  source, variant = sources.find(name)
  of_split = source.classes(variant)
  return name, sum((tuple(of_split[split]) for split in splits), ())


@pytest.mark.parametrize('on, tested', list(
    itertools.permutations(sources.names(), 2)))
def test_classes_that_two_data_sets_share_are_known(on, tested):
  """Fails if a test of one counts classes as unseen that it was trained on."""
  found = tuple(len(overlap.by_name(classes(tested, 'test'), classes(
      on, *splits))) for splits in (('train',), ('train', 'validation')))
  assert found == SEEN.get(tuple(map(turned, (on, tested))), (0, 0))


def turned(name):
  """Returns the split of Omniglot with the same characters, turned."""
  return name.removesuffix('/small_upright').removesuffix('_upright')


@pytest.mark.parametrize('on', ['omniglot/vinyals', 'omniglot/vinyals_upright'])
def test_turned_characters_are_the_upright_ones(on):
  """All 64 characters that train in two splits, four classes each in one."""
  on = classes(on, 'train')
  assert len(overlap.by_name(classes('omniglot', 'train'), on)) == 256
  assert len(overlap.by_name(classes('omniglot/small_upright', 'train'),
                             on)) == 64


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of colour images of 20x24 pixels; none is a glyph."""
  return own_source.write_folder(tmp_path_factory.mktemp('photos'))


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
  """(workdir, contents of test.json, output) of a run tested on photos."""
  path = tmp_path_factory.mktemp('run') / 'run'
  config = tiny_run.config_of(train__max_epochs=1, eval__data=str(photos))
  return path, loop.train_and_evaluate(config, path)


def store_of(run, **changes):
  """Returns the store that a test of the run reads."""
  config = workdir.saved_config(run[0])
  config.update_from_flattened_dict(
      {name.replace('__', '.'): value for name, value in changes.items()})
  return tested_split.load(config, trained.load(run[0]).data)


def test_images_of_another_shape_are_brought_to_that_trained_on(run, photos):
  """Against Pillow: grey, the centred square of 20 pixels, LANCZOS."""
  store = store_of(run)
  assert store.images.shape == (36, 28, 28, 1)
  for m, i in ((0, 0), (5, 3)):
    image = Image.fromarray(own_source.pixels('test', m, i))
    wanted = image.convert('L').resize(
        (28, 28), Image.Resampling.LANCZOS, box=(2, 0, 22, 20))
    np.testing.assert_array_equal(
        store.images[store.offsets[m] + i, ..., 0], wanted)
  on = stores.load('glyphs/tiny', 'train')
  assert (store.mean, store.std) == (on.mean, on.std)


def test_they_are_mapped_from_a_file_that_is_made_once(run, monkeypatch):
  """Fails if the test split of a large data set fills the memory."""
  first = store_of(run)
  monkeypatch.setattr(pictures, 'fit', None)
  second = store_of(run)
  assert isinstance(second.images, np.memmap)
  np.testing.assert_array_equal(first.images, second.images)


def test_the_scores_say_how_the_images_were_brought_to_it(run, photos, capsys):
  path, result = run
  assert result['images'] == {
      'shape': [20, 24, 3], 'trained_shape': [28, 28, 1], 'inverted': False,
      'normalised_by': 'glyphs/tiny', 'classes_compared_by': 'name',
      'white_background': False}
  assert result == json.loads((path / 'test.json').read_text())
  assert main.main(['--mode=evaluate', f'--checkpoint={path}',
                    '--config.log.progress=True']) == 0
  said = capsys.readouterr().out.splitlines()
  assert (f'  images of {photos}: (20, 24, 3) brought to (28, 28, 1), the '
          'largest centred part of each resized by LANCZOS; normalised as '
          'those of glyphs/tiny; classes compared by name') in said
  assert json.loads((path / 'evaluate/test.json').read_text()) == result


def test_grey_images_become_colours_of_another_ratio(run):
  data = trained.load(run[0]).data | {
      'name': 'photos', 'image_shape': [20, 24, 3], 'mean': [.1, .2, .3],
      'std': [1., 2., 3.]}
  store = tested_split.as_trained(stores.load('glyphs/tiny', 'test'), data)
  np.testing.assert_allclose(store.std, [1, 2, 3])
  glyph = stores.load('glyphs/tiny', 'test').images[7]
  # The largest centred part of the ratio 20 : 24.
  wanted = Image.fromarray(glyph[..., 0]).convert('RGB').resize(
      (24, 20), Image.Resampling.LANCZOS, box=(0, 28 / 12, 28, 28 * 11 / 12))
  np.testing.assert_array_equal(store.images[7], wanted)
  with pytest.raises(UserError, match=r'photos are \(28, 28, 1\) now'):
    tested_split.as_trained(stores.load('glyphs/tiny', 'test')._replace(
        name='photos'), data)


def drawn_as(names, draw, path):
  """Writes a folder of grey 28x28 images with classes of these names."""
  for split in own_source.SPLITS:
    for m, name in enumerate(names):
      place = path / split / f'{split}_{name}'
      place.mkdir(parents=True)
      for i in range(own_source.IMAGES):
        Image.fromarray(draw(split, m, i)).save(place / f'{i}.png')
  return path


@pytest.fixture
def known(tmp_path):
  """A folder with two test classes whose images are training glyphs."""
  on = stores.load('glyphs/tiny', 'train')

  def draw(split, m, i):
    if split == 'test' and m in (1, 4):
      return on.images[on.offsets[m] + i, ..., 0]
    return own_source.pixels(split, m, i, (28, 28))

  return drawn_as('abcdef', draw, tmp_path / 'known')


def test_images_that_were_trained_on_are_refused_under_any_name(run, known):
  """Fails if a copy of the training images under other names is a test."""
  with pytest.raises(UserError, match=(
      r'2 of its test classes were trained on in glyphs/tiny \(test_b, \.\.; '
      'compared by name and image')):
    store_of(run, eval__data=str(known))
  store = store_of(run, eval__data=str(known), eval__allow_seen_classes=True)
  assert store.tested['seen'] == ('test_b', 'test_e')


def test_without_the_training_images_names_are_compared(run, known, tmp_path):
  """Fails if a test says that it compared images which it did not have."""
  data = trained.load(run[0]).data | {'name': str(tmp_path / 'gone')}
  config = workdir.saved_config(run[0])
  config.eval.data = config.data.name = str(known)
  store = tested_split.load(config, data)
  assert store.tested['images']['classes_compared_by'] == 'name'


def test_white_paper_is_noticed_and_inverted(run, tmp_path, capsys):
  """Fails if drawings are tested as their negatives without a word."""
  def draw(split, m, i):
    image = np.full((28, 28), 255, np.uint8)
    image[m + 3:m + 8, i + 3:i + 8] = 0
    return image

  folder = drawn_as('abcdef', draw, tmp_path / 'paper')
  flags = ['--mode=evaluate', f'--checkpoint={run[0]}',
           f'--config.eval.data={folder}', '--config.log.progress=True']
  for invert, note in ((False, True), (True, False)):
    assert main.main([*flags, f'--config.eval.invert={invert}']) == 0
    said = capsys.readouterr().out
    assert ('try --config.eval.invert=True' in said) is note
    assert ('black and white exchanged' in said) is invert
  plain, inverted = (store_of(run, eval__data=str(folder), eval__invert=invert)
                     for invert in (False, True))
  np.testing.assert_array_equal(plain.images, 255 - inverted.images)
