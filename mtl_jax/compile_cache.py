"""Compiled programs on disk, so that a second start need not compile again."""

import hashlib
import os
import pathlib
import platform
import time

import jax

KEPT_DAYS = 30  # entries are small, but every new config adds some
# Programs that take longer are kept. JAX's own limit is a second; a test of a
# run has a dozen below it.
_SECONDS = 0.1
_TIME = 'jax_persistent_cache_min_compile_time_secs'


def keep():
  """Lets JAX keep what it compiles, in the user's folder for caches.

  Nothing changes where JAX has been told about its cache, by the environment
  (an empty JAX_COMPILATION_CACHE_DIR turns it off) or by a program, and where
  the folder cannot be written. Entries of more than KEPT_DAYS are removed.
  """
  if ('JAX_COMPILATION_CACHE_DIR' in os.environ
      or jax.config.jax_compilation_cache_dir):
    return
  try:
    path = folder()
    path.mkdir(parents=True, exist_ok=True)
    oldest = time.time() - KEPT_DAYS * 86400
    for file in path.iterdir():
      if file.is_file() and file.stat().st_mtime < oldest:
        file.unlink()
    writable = os.access(path, os.W_OK)
  # No home, or no room; or another process removed the same entry first.
  except (OSError, RuntimeError):
    return
  if writable:
    jax.config.update('jax_compilation_cache_dir', str(path))
    if _TIME.upper() not in os.environ:
      jax.config.update(_TIME, _SECONDS)


def folder():
  """Returns the folder of the programs of this kind of processor.

  Machines may share a home. XLA compiles for the instructions of the one that
  it runs on, and JAX's key does not name them.
  """
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  kind = hashlib.sha256(_processor().encode()).hexdigest()[:16]
  return pathlib.Path(cache) / 'mtl_jax/compiled' / kind


def _processor():
  """Returns the name of the processor and its instruction sets, if known."""
  found = [platform.machine(), platform.processor()]
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    # Of the first core: x86 has 'model name' and 'flags', Arm 'Features'.
    end = lines.index('') if '' in lines else len(lines)
    found += [line for line in lines[:end] if line.startswith((
        'model name', 'flags', 'Features', 'CPU part'))]
  except OSError:
    pass
  return '\n'.join(found)
