"""`data check`: what is twice, looks alike or is wrong is found and named."""

import io

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import __main__ as data_main
from mtl_jax.data import checking
from mtl_jax.data import store as stores


def store(images, per_class, split):
  count = len(images) // per_class
  return stores.Store(
      np.asarray(images, np.uint8), np.arange(count + 1) * per_class,
      tuple(f'{split}{m}' for m in range(count)), np.zeros(3), np.ones(3),
      'mine', split)


@pytest.fixture
def splits():
  """Two splits of 4 x 5 smooth images, none like another."""
  rng = np.random.default_rng(0)
  # Neighbours differ clearly, as parts of a photograph do.
  level = rng.integers(0, 2, (2, 20, 8, 9, 1)) * 90 + 60
  level[:, :, :, 1::2] += 45
  coarse = (level + rng.integers(0, 20, 3)).repeat(4, 2).repeat(4, 3)
  return [coarse[0], coarse[1]]


def found(splits):
  left_out = []
  prints = [checking.fingerprint(store(images, 5, split)) for images, split in
            zip(splits, ('train', 'test'), strict=True)]
  return [*checking.duplicates(prints),
          *checking.look_alikes(prints, left_out)], left_out


def test_other_images_are_no_duplicates(splits):
  assert found(splits) == (['no image is in two splits', 'no two images of '
                            'different splits look alike'], [])


def test_an_image_that_is_twice_is_named(splits):
  splits[1][7] = splits[0][13]
  splits[0][3] = splits[0][2]
  splits[0][6] = splits[0][19]
  lines, _ = found(splits)
  assert lines == [
      '1 images are in two splits, pixel by pixel, such as train train2 3 and '
      'test test1 2',
      '1 images are in two classes of a split, pixel by pixel, such as train '
      'train1 1 and train train3 4',
      '1 images are twice in a class, pixel by pixel, such as train train0 2 '
      'and train train0 3',
      '1 pairs of images in different splits look alike (their coarse looks '
      'differ in at most 3 of 64 places), such as train train2 3 and test '
      'test1 2']


@pytest.mark.parametrize('change', ['jpeg', 'darker', 'noise', 'smaller'])
def test_an_image_that_was_changed_a_little_looks_alike(change, splits):
  """Fails if a copy that was saved again is taken for another image."""
  image = splits[0][13].astype(np.uint8)
  if change == 'jpeg':
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=60)
    image = np.asarray(Image.open(file))
  elif change == 'darker':
    image = (0.8 * image).astype(np.uint8)
  elif change == 'noise':
    image = np.clip(image + np.random.default_rng(1).normal(
        0, 3, image.shape), 0, 255)
  else:
    image = np.asarray(
        Image.fromarray(image).resize((18, 16)).resize((36, 32)))
  splits[1][7] = image
  lines, _ = found(splits)
  assert lines[0] == 'no image is in two splits'
  assert lines[1].startswith('1 pairs of images') and lines[1].endswith(
      'train train2 3 and test test1 2')


def test_pairs_are_those_of_all_comparisons():
  """Fails if a pair is missed, or counted once per band."""
  rng = np.random.default_rng(2)
  looks = rng.integers(0, 2**63, 300).astype(np.uint64)
  for i in range(60):  # 0 to 4 bits apart, of the other split
    flips = sum(1 << int(bit) for bit in rng.permutation(64)[:i % 5])
    looks[150 + i] = looks[i] ^ np.uint64(flips)
  splits = [store(np.zeros((150, 1, 1, 3)), 5, s) for s in ('train', 'test')]
  prints = [checking.Prints(s, looks[k:k + 150], looks[k:k + 150])
            for s, k in zip(splits, (0, 150), strict=True)]
  wanted = sum(int(a ^ b).bit_count() <= 3 for a in looks[:150].tolist()
               for b in looks[150:].tolist())
  line, = checking.look_alikes(prints, [])
  assert wanted >= 48 and line.startswith(f'{wanted} pairs of images')


def test_what_is_not_compared_is_said(monkeypatch):
  monkeypatch.setattr(checking, '_CROWD', 9)
  _, left_out = found([np.zeros((20, 32, 36, 3))] * 2)
  assert left_out == ['all pairs of 40 images that may look alike: more than '
                      '9 share a quarter of their coarse look']


def test_pairs_of_a_crowded_quarter_are_said_to_be_left_out(monkeypatch):
  """Fails if images that were not compared are said not to look alike."""
  monkeypatch.setattr(checking, '_CROWD', 9)
  rng = np.random.default_rng(3)
  looks = rng.integers(0, 2**47, 20).astype(np.uint64)  # one quarter is 0
  looks[10] = looks[0] ^ np.uint64(1 | 1 << 16 | 1 << 32)
  prints = [checking.Prints(
      store(np.zeros((10, 1, 1, 3)), 5, split), looks[k:k + 10],
      looks[k:k + 10]) for split, k in (('train', 0), ('test', 10))]
  left_out = []
  line, = checking.look_alikes(prints, left_out)
  assert line.endswith('look alike, of those compared')
  assert left_out and left_out[0].startswith('all pairs of 20 images')


def test_the_command_draws_sheets_and_says_what_it_did_not_check(capsys):
  assert data_main.main(['check', 'glyphs/tiny']) == 0
  out = capsys.readouterr().out
  for line in ('train: 12 classes of 20 to 20 images (28, 28, 1), 240 in all',
               'no image is in two splits'):
    assert line in out
  folder = stores.builder('glyphs/tiny').data_path
  for split, classes in (('train', 12), ('validation', 6), ('test', 8)):
    with Image.open(folder / f'check-{split}.png') as sheet:
      assert sheet.size == (770, 60 * classes)


def test_other_constants_are_wrong(capsys, monkeypatch):
  """Fails if swapped colours or other images pass."""
  monkeypatch.setattr(checking, '_OFF', 0.001)  # tiny has other letters
  assert data_main.main(['check', 'glyphs/tiny']) == 2
  out, error = capsys.readouterr()
  assert 'from the published [0.1269]: WRONG: other images' in out
  assert error.endswith('glyphs/tiny: 2 of these lines say what is WRONG\n')
