"""Steps in flight: bounded by construction, whatever the log interval is."""

import os
import signal

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import devices, early
from mtl_jax.devices import AXIS
from mtl_jax.errors import UserError
from mtl_jax.run import checkpoint, loop, metrics, parts


def slow_step(state, arrays, key, pixels):
  """Takes long enough that a step that is not waited for is still running."""
  del arrays, key, pixels
  x = jnp.full((300, 300), 1e-3)
  x = jax.lax.fori_loop(0, 200, lambda _, x: x @ x, x)
  state = state + jax.lax.psum(x[0, 0] + 1., AXIS)
  return state, {'loss': (state, jnp.float32(1))}


@pytest.mark.parametrize('how', ['jit', 'pmap'])
def test_counted_devices_run_one_step_at_a_time(how):
  """Fails if the threads of XLA's CPU client can all wait for each other."""
  compiled = devices.compile(slow_step, devices.mesh(2, 2), how)
  state = compiled.put(jnp.float32(0))
  for _ in range(5):
    state, values = compiled.step(state, None, None, None)
    assert all(x.is_ready() for x in jax.tree.leaves((state, values)))
  assert compiled.get(state) == 10.


class Value:
  """A metric on a device; it counts the steps that nothing has waited for."""

  in_flight = set()

  def __init__(self, step):
    self.step = step
    self.in_flight.add(step)

  def block_until_ready(self):
    # A device runs its steps in order.
    self.in_flight -= {s for s in self.in_flight if s <= self.step}
    return self


def test_the_host_runs_a_bounded_number_of_steps_ahead(monkeypatch):
  most = 0

  def step(state, *_):
    nonlocal most
    value = Value(int(state))
    most = max(most, len(Value.in_flight))
    return state + 1, value

  def fetch(pending, first_step):
    jax.block_until_ready(pending)
    return [{'loss': (np.float32(1), 1)}] * len(pending)
  monkeypatch.setattr(metrics, 'fetch', fetch)
  same = lambda tree: tree
  compiled = devices.Compiled(step, same, same, same, None, same)

  class Log:
    every_steps = 10 ** 6
    record = staticmethod(lambda values: None)
  run = parts.Run(None, None, 1, 500, None, {})
  training = loop.Training(None, None, None, jnp.int32(0), log=Log,
                           save=checkpoint.every(0, None))
  end, = loop.train_epoch(compiled, [training], [None] * 500, range(500), run)
  assert int(end.state) == 500
  assert 1 < most <= devices.STEPS_AHEAD + 1


COUNT = """
import runpy, sys, warnings
warnings.simplefilter('error')
from mtl_jax.config import check
get_config = runpy.run_path('configs/glyphs_5shot.py')['get_config']
for method in ('imaml', 'mtl'):
  config = get_config(method)
  config.parallel.cpu_devices = 2
  check.validate(config)
  import jax
  assert jax.local_device_count() == 2, jax.devices()
"""


def test_a_cpu_is_counted_before_a_method_uses_it():
  """Fails if building a method, as iMAML's rate does, finds the devices."""
  result = command.run([], program=('-c', COUNT))
  assert result.returncode == 0, result.stderr


def test_devices_that_are_in_use_are_kept_with_a_warning(monkeypatch):
  jax.devices()
  monkeypatch.delenv('XLA_FLAGS')
  with pytest.warns(UserWarning, match='cpu_devices is 2, but .* 8 devices'):
    devices.split_cpu(2)


@pytest.mark.parametrize('error', [AssertionError(), RuntimeError('no cuda')])
def test_a_platform_without_a_device_gets_one_line(error, monkeypatch):
  """Fails if JAX_PLATFORMS=cuda without a GPU ends in a traceback."""
  def fail():
    raise error
  monkeypatch.setattr(jax, 'local_devices', fail)
  with pytest.raises(UserError, match='no device of cpu .*set JAX_PLATFORMS'):
    devices.check_platform()


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130),
                                          (signal.SIGTERM, 75)])
def test_a_signal_ends_the_process_with_one_line(number, code, monkeypatch):
  """Fails if it raises within JAX, which goes on or ends in a crash."""
  said, before = [], signal.getsignal(number)
  monkeypatch.setattr(os, 'write', lambda *args: said.append(args))

  def end(code):
    raise SystemExit(code)
  monkeypatch.setattr(os, '_exit', end)
  with pytest.raises(SystemExit, match=str(code)):
    with early.ends(lambda: 'stopped; it resumes'):
      signal.raise_signal(number)
  assert said == [(2, b'\nstopped; it resumes\n')]
  assert signal.getsignal(number) == before


@pytest.mark.parametrize('error', [
    MemoryError('Unable to allocate 9 GiB'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: allocating 9 bytes'),
    jax.errors.JaxRuntimeError('INTERNAL: Error dispatching: Out of memory')])
def test_a_lack_of_memory_gets_one_line(error):
  with pytest.raises(UserError, match='memory does not suffice'):
    with devices.memory_errors():
      raise error


def test_another_error_of_jax_is_a_fault_of_ours():
  with pytest.raises(jax.errors.JaxRuntimeError), devices.memory_errors():
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


@pytest.mark.parametrize('how', ['jit', 'pmap'])
def test_counted_devices_share_one_copy_of_the_pixels(how, tmp_path):
  """Fails if a data set takes its size once more for every counted device."""
  np.save(tmp_path / 'pixels.npy', np.arange(4096, dtype=np.uint8))
  pixels = np.load(tmp_path / 'pixels.npy', mmap_mode='r')
  compiled = devices.compile(slow_step, devices.mesh(8, 8), how)
  shared = compiled.share({'x': jax.device_put(pixels)})['x']
  assert {shard.data.unsafe_buffer_pointer()
          for shard in shared.addressable_shards} == {pixels.ctypes.data}
  assert shared.shape == ((8, 4096) if how == 'pmap' else (4096,))
