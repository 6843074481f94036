"""The heap of the C library; with glibc, in processes of their own."""

import ctypes
import json
import os

import command
import jax
import pytest

from mtl_jax import heap

of_glibc = pytest.mark.skipif(
    not hasattr(heap._glibc(), 'mallinfo2'),
    reason='needs glibc 2.33, and no setting of it in the environment')

FAULTS = """
import resource
from mtl_jax import devices
devices.split_cpu(2)
import jax, jax.numpy as jnp
x = jnp.ones((25, 2 ** 20))  # 100 MB
step = jax.jit(lambda x: jnp.sort(x + 1, axis=0)[0])
count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = []
for _ in range(12):
  before = count()
  step(x).block_until_ready()
  counts.append(count() - before)
print(min(counts))  # memory of a step may be freed after the next has begun
"""
# 200 MB of blocks, of which every other is free again, and a gap of 1 GB.
GAPS = """
import ctypes, json, mmap
from mtl_jax import devices, heap
devices.split_cpu(2)
import jax
c = ctypes.CDLL(None)
c.malloc.restype, c.mallinfo2.restype = ctypes.c_void_p, heap._Mallinfo2
c.malloc.argtypes, c.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
size, blocks = 500_000, []
long = c.malloc(1 << 30)
for i in range(400):
  blocks.append(c.malloc(size))
  ctypes.memset(blocks[-1], i % 251, size)
for block in (long, *blocks[::2]):
  c.free(block)
def state():
  info = c.mallinfo2()
  pages = int(open('/proc/self/statm').read().split()[1])
  return info.fordblks - info.keepcost, mmap.PAGESIZE * pages
found = []
for seconds in 0.1, 1.:
  jax.monitoring.record_event_duration_secs(heap._COMPILED, seconds)
  found.append(state())
kept = all(ctypes.string_at(block, size) == bytes([i % 251]) * size
           for i, block in enumerate(blocks) if i % 2)
print(json.dumps([found, kept]))
"""
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, resource.RLIM_INFINITY))
"""


@of_glibc
@pytest.mark.parametrize('environment', [{}, {'MALLOC_ARENA_MAX': '8'}])
def test_a_step_keeps_its_memory_for_the_next(environment):
  """Fails if each step takes its buffers anew from the system, page by page.

  Fails, too, if a user's own setting of the C library is overruled.
  """
  result = command.run([], program=('-c', FAULTS), env=environment)
  pages = 100 * 2 ** 20 // os.sysconf('SC_PAGE_SIZE')
  assert (int(result.stdout) > pages / 2) == bool(environment), result


@of_glibc
@pytest.mark.parametrize('before, environment, closed', [
    ('', {}, True), ('', {'MALLOC_ARENA_MAX': '8'}, False),
    ('', {'GLIBC_TUNABLES': 'glibc.malloc.tcache_count=7'}, False),
    (LIMITED, {}, False)])
def test_a_long_compilation_leaves_no_gaps(before, environment, closed):
  """Fails if steps look through what a compilation has freed, or it is lost.

  Its pages must go back to the system, and what is in use must stay. Nothing
  is taken where addresses are limited or the user sets the C library.
  """
  result = command.run([], program=('-c', before + GAPS), env=environment)
  (short, long), kept = json.loads(result.stdout)
  assert kept
  assert short[0] > 90e6  # a short compilation changes nothing
  assert long[0] < 10e6 if closed else long[0] > 90e6
  assert (short[1] - long[1] > 80e6) == closed


def test_compilations_are_told():
  """Fails if JAX gives the event another name: then no gap is closed."""
  seen = set()
  jax.monitoring.register_event_duration_secs_listener(
      lambda event, *_, **__: seen.add(event))
  jax.jit(lambda x: x * 3.25 + 1.5)(1.)
  assert heap._COMPILED in seen


def test_another_library_is_left_alone(monkeypatch):
  """Fails if jemalloc gets the settings of glibc, or if musl is an error."""
  for name in [n for n in os.environ if n.startswith('MALLOC_')]:
    monkeypatch.delenv(name)
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)

  class Other:
    malloc = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(
        lambda size: pytest.fail('another malloc was called'))
  monkeypatch.setattr(heap.ctypes, 'CDLL', lambda name: Other())
  assert heap._close_gaps() == 0
  heap.keep()
  monkeypatch.setattr(heap.ctypes, 'CDLL', lambda name: object())
  assert heap._close_gaps() == 0
  heap.keep()
