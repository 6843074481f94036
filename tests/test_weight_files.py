"""Files of weights: each format is read, and hostile files do no harm.

Hostile ones are read in another process, which a mistake would kill.
"""

import json
import pathlib
import zipfile

import command
import hostile_weights
import jax.numpy as jnp
import make_torch_weights as peer
import numpy as np
import pytest

from mtl_jax import weight_files
from mtl_jax.errors import UserError

HAND_MADE = list(hostile_weights.hand_made(pathlib.Path('nowhere')))
# They hold no tensor, or only what a state_dict has too: nothing is executed,
# and a network is not found in them.
HARMLESS = {*hostile_weights.structures(), 'entries that overlap',
            'shared by many tensors'}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The folder of the files that PyTorch wrote."""
  folder = tmp_path_factory.mktemp('files')
  with zipfile.ZipFile(peer.PATH) as archive:
    archive.extractall(folder)
  return folder


@pytest.fixture(scope='module')
def outcome(tmp_path_factory):
  """Returns the folder, and what became of every hostile file."""
  folder = tmp_path_factory.mktemp('hostile')
  result = command.run([str(folder)], ('tests/hostile_weights.py',))
  assert result.returncode == 0, result.stderr[-2000:]
  return folder, json.loads(result.stdout)


def test_nothing_in_a_file_is_executed(outcome):
  folder, _ = outcome
  assert [p.name for p in folder.iterdir()] == ['weights.pth']


def test_hostile_files_take_little_memory(outcome):
  """Fails if a bomb is unpacked, or a size is believed."""
  _, found = outcome
  assert found['memory'] < 300


def test_every_file_is_read_or_gets_one_line(outcome):
  """Fails if damaged bytes end in a traceback."""
  _, found = outcome
  assert len(found['results']) > 300
  for case, result in found['results'].items():
    assert isinstance(result, int) or (
        result.startswith('UserError: ') and 'weights.pth: ' in result
        and len(result.splitlines()) == 1), (case, result)


@pytest.mark.parametrize('case', [
    case for case in HAND_MADE if case not in HARMLESS])
def test_a_hand_made_file_is_refused(case, outcome):
  _, found = outcome
  assert isinstance(found['results'][case], str)


@pytest.mark.parametrize('case', list(hostile_weights.good()))
def test_a_good_file_is_read(case, outcome):
  """Fails if the refusals are those of everything."""
  _, found = outcome
  assert isinstance(found['results'][case], int)


def test_a_checkpoint_of_pytorch_is_read(files):
  """Fails if what lies beside the tensors is refused or takes their place."""
  weights = weight_files.read(files / 'cnn4.pth')
  assert len(weights.arrays) == 30 and len(weights.sha256) == 64
  kernel = weights.arrays['model.module.encoder.0.0.weight']
  assert kernel.shape == (3, 3, 3, 3) and kernel.dtype == np.float32
  count = weights.arrays['model.module.encoder.0.1.num_batches_tracked']
  assert count.shape == () and count == 9


@pytest.mark.parametrize('name, bits', [('bfloat16.pt', 8), ('half.pt', 11)])
def test_short_numbers_are_those_of_the_long_ones(name, bits, files):
  short = weight_files.read(files / name).arrays
  long = weight_files.read(files / 'cnn4.pth').arrays
  for key, value in short.items():
    np.testing.assert_allclose(
        value.astype(np.float32), long[f'model.module.{key}'],
        rtol=2. ** -bits, atol=1e-7)


def test_a_view_has_the_numbers_that_it_shows(files):
  """Fails if the strides or the offset of a tensor are ignored."""
  x = weight_files.read(files / 'transposed.pt').arrays['x']
  np.testing.assert_array_equal(x, [[1, 4], [2, 5]])


@pytest.mark.parametrize('name, words', [
    ('of old.pth', ('PyTorch before 1.6', 'torch.save(torch.load(')),
    ('a module.pt', ('torch.nn.modules.container.Sequential',
                     'write tensors alone, such as a state_dict()')),
    ('a script.pt', ('a TorchScript module', 'state_dict()')),
    ('a list.pt', ('a list, not a dictionary',)),
    ('missing.pt', ('is not there',)), ('', ('is a folder',))])
def test_other_files_say_how_to_write_them_again(name, words, files):
  with pytest.raises(UserError) as error:
    weight_files.read(files / name)
  assert all(word in str(error.value) for word in (str(files), *words))


ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3),
          'b.c': np.array(7, np.int64), 'd': np.zeros((0, 2), np.float16),
          'e': np.array([True]), 'f': np.float64([[1.5]]),
          'g': np.asarray(jnp.arange(3, dtype=jnp.bfloat16))}


def assert_same(arrays):
  assert arrays.keys() == ARRAYS.keys()
  for name, value in arrays.items():
    assert value.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(value, ARRAYS[name])


def test_what_is_written_is_read_again(tmp_path):
  path = tmp_path / 'weights'
  path.write_bytes(weight_files.pack(ARRAYS, {'x': '{"y": 1}', 'z': '3'}))
  weights = weight_files.read(path)
  assert_same(weights.arrays)
  assert weight_files.json_of(weights, 'x') == {'y': 1}
  assert weight_files.json_of(weights, 'z') is None


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_is_read(save, tmp_path):
  arrays = {k: v for k, v in ARRAYS.items() if k != 'g'}  # NumPy has no type
  arrays['h'] = np.asfortranarray(ARRAYS['a'])
  save(tmp_path / 'weights.npz', **arrays)
  for name, value in weight_files.read(tmp_path / 'weights.npz').arrays.items():
    np.testing.assert_array_equal(value, arrays[name])
    assert value.dtype == arrays[name].dtype


def test_the_library_reads_and_writes_the_same(tmp_path):
  library = pytest.importorskip('safetensors.numpy')
  arrays = {k: v for k, v in ARRAYS.items() if k != 'g'}
  packed = weight_files.pack(arrays, {'a': 'b'})
  for name, value in library.load(packed).items():
    np.testing.assert_array_equal(value, arrays[name])
  path = tmp_path / 'weights'
  path.write_bytes(library.save(arrays, {'a': 'b'}))
  weights = weight_files.read(path)
  assert weights.metadata == {'a': 'b'} and weights.arrays.keys() == (
      arrays.keys())
  for name, value in weights.arrays.items():
    np.testing.assert_array_equal(value, arrays[name])
