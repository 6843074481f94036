"""Settings of all tests: eight fake devices, a compile cache, small data."""

import importlib.metadata
import os
import pathlib
import signal
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Small networks take longer to compile than to run. Not level 0, which makes
# NaN of a second derivative through a plain convolution (jaxlib 0.10.2).
# Without fusion emitters programs compile in two thirds of the time;
# tests/long/test_compiler.py repeats the tests of numbers with XLA's defaults.
# Later versions of jaxlib end the process at this flag, which they do not know.
COMPILER = 'MTL_JAX_TEST_COMPILER'
FAST_COMPILES = os.environ.get(COMPILER, ' '.join([
    '--xla_backend_optimization_level=1',
    *['--xla_cpu_use_fusion_emitters=false'] * (
        importlib.metadata.version('jaxlib').startswith('0.10.'))]))

# Before jax is imported.
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), FAST_COMPILES,
    '--xla_force_host_platform_device_count=8',
    # On a busy machine a device may wait long for the seven others.
    '--xla_cpu_collective_call_terminate_timeout_seconds=600'])
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache/jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('MTL_JAX_DATA', str(ROOT / '.data'))
# A shell starts what is in its background with Ctrl-C ignored, and commands of
# the tests would inherit this.
signal.signal(signal.SIGINT, signal.default_int_handler)


def unpack_old_run(path):
  """Writes the workdir of an older version to a folder; returns it."""
  with zipfile.ZipFile(ROOT / 'tests/data/run_of_2026_11_24.zip') as packed:
    packed.extractall(path)
  return path


@pytest.fixture
def bars(monkeypatch):
  """Returns the bars that a terminal has shown: [what, done, total] each."""
  from mtl_jax import progress

  shown = []

  class Bar(progress.tqdm.tqdm):
    def close(self):
      if not (self.disable or getattr(self, 'told', False)):
        self.told = True
        shown.append([self.desc, self.n, self.total])
      super().close()

  monkeypatch.setattr(progress.tqdm, 'tqdm', Bar)
  monkeypatch.setattr(progress, 'columns', lambda: 80)
  return shown
