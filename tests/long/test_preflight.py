"""launch.preflight compiles for accelerators that are not here.

It needs `pip install '.[tpu]'` for TPUs and `'.[cuda]'` for a GPU.
"""

import json

import command
import pytest

IMAGES = 5 * (5 + 5)  # of a task, one for each chip
# Products of CNN-4 with 64 channels on 28x28, by hand: three by three kernels,
# pixels of a layer, channels in and out.
FORWARD = sum(2 * 9 * side**2 * channels * 64 for side, channels in (
    (28, 1), (14, 64), (7, 64), (3, 64)))
FLAGS = ['--config=glyphs_5shot', '--config.data.name=glyphs/tiny',
         '--config.train.ways=5', '--config.train.shots=5',
         '--config.train.queries=5', '--config.parallel.tasks_per_device=1',
         '--train_images=240', '--operations=3']


@pytest.mark.parametrize('target, needs, chips', [
    ('v5e:2x2', 'libtpu', 4), ('v4:2x2x1', 'libtpu', 4),
    ('h100', 'jax_plugins.xla_cuda12', 1)])
def test_a_step_is_compiled(target, needs, chips, tmp_path):
  """Fails if a compiler, or what it writes, has changed its form."""
  pytest.importorskip(needs, reason=f'{needs} is not installed')
  result = command.run([*FLAGS, f'--target={target}', f'--out={tmp_path}'],
                       ('-m', 'launch.preflight'), env={'XLA_FLAGS': ''})
  assert result.returncode == 0, result.stderr
  assert 'operations, one after another' in result.stdout
  found = json.loads((tmp_path / 'preflight.json').read_text())
  assert found['chips'] == chips
  # Forward, and twice that backward, but for the gradient of the images.
  assert 2.5 < found['flops'] / FORWARD / IMAGES < 3.5
  reduced = sum(c['size'] for c in found['collectives'])
  assert (reduced > 4 * 100_000) is (chips > 1)
  assert all(cell['seconds'] > 0 for cell in found['scaling'])
