"""What a run's folder says of its data: damaged files get one line."""

import json

import pytest
from etils import epath

from mtl_jax.errors import UserError
from mtl_jax.run import trained

DATA = {'name': 'mine', 'classes': ['a', 'b'], 'image_shape': [8, 8, 1],
        'mean': [0.5], 'std': [1]}


def test_the_data_of_a_run_are_read(tmp_path):
  (tmp_path / 'data.json').write_text(json.dumps(DATA))
  assert trained.read_data(epath.Path(tmp_path)) == DATA


@pytest.mark.parametrize('content', [
    '', '{}', '[]', '3', 'null', '{"name": 1', '[' * 10**5, 'caf\xe9',
    *(json.dumps(DATA | change) for change in (
        {'classes': 3}, {'classes': []}, {'classes': [1, 2]},
        {'image_shape': '881'}, {'image_shape': [8, 8]},
        {'image_shape': [8, 8, 0]}, {'image_shape': [8, 8, 1.]},
        {'mean': None}, {'mean': ['a']}, {'mean': [.5, .5]},
        {'std': {}}, {'std': [float('nan')]}, {'std': [0]}, {'before': 3},
        {'before': ['a']}, {'before': [{'name': 'a', 'classes': [3]}]}))],
                         ids=range(24))
def test_a_file_that_does_not_describe_data_gets_one_line(content, tmp_path):
  """Fails if it ends in a traceback, or in a network of other shapes."""
  (tmp_path / 'data.json').write_bytes(content.encode('latin1'))
  with pytest.raises(UserError, match='data.json cannot be read .* once more'):
    trained.read_data(epath.Path(tmp_path))
