"""The heap of the C library: steps keep their memory, gaps are closed.

It concerns glibc alone. Other C libraries are left as they are, and so is glibc
where the environment sets it (MALLOC_...).
"""

import ctypes
import functools
import mmap
import os

import jax

# Parameters of glibc's mallopt, from its malloc.h, and values. One heap for all
# threads: the others map whatever is longer than their 64 MB.
_MALLOPT = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0),
            'M_TRIM_THRESHOLD': (-1, -1)}
_COMPILED = '/jax/core/compile/backend_compile_duration'
_LONG = 0.3  # seconds; shorter compilations leave few gaps
_PROBE = 1 << 30  # bytes, longer than any gap
_SIZES = [1 << n for n in range(29, 11, -1)]  # bytes, the longest first


class _Mallinfo2(ctypes.Structure):
  """What glibc says of its heaps; fields as in malloc.h."""

  _fields_ = [(name, ctypes.c_size_t) for name in (
      'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks',
      'uordblks', 'fordblks', 'keepcost')]


def keep():
  """Lets the C library keep the memory that a step has freed, for the next.

  Otherwise every step gets its buffers as new pages of the system, which come
  one by one and zeroed: a sixth of a CPU's step (docs/speed.md). Memory that
  was needed once stays with the process, but for the gaps, see `close_gaps`.
  """
  if any(name.startswith('MALLOC_') for name in os.environ):
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, TypeError, OSError):  # macOS, Windows, musl
    return
  for parameter, value in _MALLOPT.values():
    mallopt(parameter, value)
  _close_gaps_after_compiling()


@functools.cache  # once in a process
def _close_gaps_after_compiling():
  def compiled(event, seconds, **_):
    if event == _COMPILED and seconds > _LONG:
      close_gaps()
  jax.monitoring.register_event_duration_secs_listener(compiled)


def close_gaps():
  """Takes the free blocks between those in use for ever, without their pages.

  A compilation leaves tens of thousands of them. Every request of a step looks
  through those of its size, while the other threads wait for the heap: steps of
  a process that has compiled took 1.2 times as long (docs/speed.md). What is
  taken costs addresses, but no memory: its pages go back to the system.

  Returns:
    How many bytes were taken; 0 where the library is not glibc.
  """
  try:
    library = ctypes.CDLL(None)  # with functions of its own
    info, malloc, free, madvise = (
        library.mallinfo2, library.malloc, library.free, library.madvise)
  except (AttributeError, TypeError, OSError):  # not glibc, or before 2.33
    return 0
  info.restype, malloc.restype = _Mallinfo2, ctypes.c_void_p
  malloc.argtypes = [ctypes.c_size_t]
  free.argtypes = [ctypes.c_void_p]
  madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  now = info()
  gaps = now.fordblks - now.keepcost
  end = malloc(_PROBE)  # where the free end of the heap begins
  free(end)
  taken = 0
  for size in _SIZES if end else ():
    # Another library's malloc knows no such end: it gets no more than the gaps.
    while taken + size <= gaps:
      block = malloc(size)
      if not block or block >= end:
        free(block)
        break
      first = -block % mmap.PAGESIZE
      length = (size - first) // mmap.PAGESIZE * mmap.PAGESIZE
      if length > 0:
        madvise(block + first, length, mmap.MADV_DONTNEED)
      taken += size
  return taken
