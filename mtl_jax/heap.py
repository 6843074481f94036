"""The heap of the C library: steps keep their memory, gaps are closed.

It concerns glibc alone. Other C libraries are left as they are, and so is glibc
where the environment sets it, see `_glibc`.
"""

import ctypes
import functools
import mmap
import os
import pathlib

import jax

# Parameters of glibc's mallopt, from its malloc.h, and values. One heap for all
# threads that have none yet: other heaps map whatever is longer than their
# 64 MB.
_MALLOPT = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0),
            'M_TRIM_THRESHOLD': (-1, -1)}
_COMPILED = '/jax/core/compile/backend_compile_duration'
_LONG = 0.3  # seconds; closing takes up to 0.1
_LONGEST, _SHORTEST = 1 << 29, 4 * mmap.PAGESIZE  # bytes of what is taken


class _Mallinfo2(ctypes.Structure):
  """What glibc says of its heaps; fields as in malloc.h."""

  _fields_ = [(name, ctypes.c_size_t) for name in (
      'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks',
      'uordblks', 'fordblks', 'keepcost')]


def keep():
  """Lets the C library keep the memory that a step has freed, for the next.

  Otherwise every step gets its buffers as new pages of the system, which come
  one by one and zeroed: a sixth of a CPU's step (docs/speed.md). Memory that
  was needed once stays with the process, but for gaps, see `_close_gaps`.
  """
  library = _glibc()
  if library:
    for parameter, value in _MALLOPT.values():
      library.mallopt(parameter, value)
    _close_gaps_after_compiling()


def _glibc():
  """Returns glibc if it is what gives this process memory, else None.

  It is left alone, too, where the environment sets it: by MALLOC_.. or by
  glibc.malloc in GLIBC_TUNABLES.
  """
  if any(name.startswith('MALLOC_') for name in os.environ) or (
      'glibc.malloc' in os.environ.get('GLIBC_TUNABLES', '')):
    return None
  try:
    # Holds Python's lock while it is called: no thread of Python comes between.
    library, first = ctypes.PyDLL('libc.so.6'), ctypes.CDLL(None)
    address = lambda f: ctypes.cast(f, ctypes.c_void_p).value
    # A library that was loaded before it, such as jemalloc, takes its place.
    return library if address(library.malloc) == address(first.malloc) else None
  except (AttributeError, TypeError, OSError):  # macOS, Windows, musl
    return None


@functools.cache  # once in a process
def _close_gaps_after_compiling():
  def compiled(event, seconds, **_):
    if event == _COMPILED and seconds > _LONG:
      _close_gaps()
  if not _addresses_are_limited():
    jax.monitoring.register_event_duration_secs_listener(compiled)


def _addresses_are_limited():
  """Returns whether memory without pages counts, by ulimit -v or the system."""
  import resource  # not on Windows
  strict = pathlib.Path('/proc/sys/vm/overcommit_memory')
  return (resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
          or strict.exists() and strict.read_text().strip() == '2')


def _close_gaps():
  """Takes the free blocks that lie between blocks in use, and keeps them.

  A compilation leaves tens of thousands. Every request of a step looks through
  those of its size, while the other threads wait for the heap: steps of a
  process that had compiled took 1.1 to 1.4 times as long (docs/speed.md). What
  is taken costs addresses; its pages, but one for each block, go back to the
  system. It needs what `keep` sets.

  Returns:
    How many bytes were taken.
  """
  library = _glibc()
  if library is None or not hasattr(library, 'mallinfo2'):  # before 2.33
    return 0
  info, malloc, free, madvise, sbrk = (
      library.mallinfo2, library.malloc, library.free, library.madvise,
      library.sbrk)
  info.restype = _Mallinfo2
  malloc.restype = sbrk.restype = ctypes.c_void_p
  malloc.argtypes, free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
  madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  sbrk.argtypes = [ctypes.c_ssize_t]
  now = info()
  end = sbrk(0) - now.keepcost  # of all blocks; the rest of the heap is free
  left, taken, size = now.fordblks - now.keepcost, 0, _LONGEST
  while size >= _SHORTEST:
    block = malloc(size) if taken + size <= left else None
    if not block or block >= end:  # there is no gap of this size
      free(block)
      size //= 2
      continue
    first = -block % mmap.PAGESIZE
    madvise(block + first, (size - first) // mmap.PAGESIZE * mmap.PAGESIZE,
            mmap.MADV_DONTNEED)
    taken += size
  return taken
