"""One build of a data set at a time, over what a killed one has left."""

import contextlib

from etils import epath

try:
  import fcntl
except ImportError:  # no locks on this system: builds do not wait
  fcntl = None

LOCK = '.lock'


@contextlib.contextmanager
def alone(data_path):
  """Waits for another build of `data_path`; removes what killed ones left.

  TFDS builds in 'incomplete.XXXXXX_VERSION' beside `data_path`. The system
  takes the lock from a process that dies, so that whatever stands there while
  the lock is ours belongs to no one.

  Raises:
    OSError: the folder of `data_path` cannot be written.
  """
  folder = epath.Path(data_path).parent
  if fcntl is None or '://' in str(folder):
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  # The file stays: removed, it would be another lock for who waits for it.
  with open(folder / LOCK, 'wb') as file:
    locked = False
    with contextlib.suppress(OSError):  # a file system without locks
      fcntl.flock(file, fcntl.LOCK_EX)
      locked = True
    for left in folder.glob(f'incomplete.*_{data_path.name}') if locked else ():
      left.rmtree()
    yield
