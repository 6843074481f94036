"""Checkpoints: the latest states and the best one, each with a manager.

One manager with a best-of rule may delete the newest step, so there are two.
Orbax writes a temporary folder and renames it: a folder with a step's name is
complete. In an object store, which cannot rename a folder, it is complete when
it holds the object that Orbax writes last.
"""

import contextlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from mtl_jax import processes
from mtl_jax.errors import UserError, first_line
from mtl_jax.run import metrics

FOLDERS = {'latest': 'checkpoints', 'best': 'best'}
# In the metadata of a step.
_PENDING, _UNVALIDATED = 'pending_metrics', 'unvalidated'


class Damaged(UserError):
  """A checkpoint that cannot be read."""

  def __init__(self, problem):
    super().__init__(f'{problem}: restore it, or choose an empty --workdir')
    self.problem = problem


def manager(workdir, which):
  """Returns the Orbax manager of 'latest' (the last two) or 'best' (one)."""
  folder, alone = workdir / FOLDERS[which], {}
  if processes.count() > 1:  # a process uses it alone, and waits for no other
    folder.mkdir(parents=True, exist_ok=True)
    this = jax.process_index()
    alone = {'create': False,
             'multiprocessing_options': ocp.options.MultiprocessingOptions(
                 primary_host=this, active_processes={this},
                 barrier_sync_key_prefix=f'mtl_jax.{which}.{this}')}
  options = ocp.CheckpointManagerOptions(
      max_to_keep=2 if which == 'latest' else 1,
      enable_async_checkpointing=False, **alone)
  return ocp.CheckpointManager(folder, options=options)


def last_step(workdir, which='latest'):
  """Returns the step that a run in `workdir` would resume at; None: none.

  With 'best': the step of its best state.
  """
  try:
    return max((int(p.name) for p in (workdir / FOLDERS[which]).iterdir()
                if p.name.isdigit() and ocp.utils.is_checkpoint_finalized(p)),
               default=None)
  except (FileNotFoundError, NotADirectoryError):
    return None


def has_state(workdir):
  """Returns whether a run in `workdir` has saved anything."""
  return any(last_step(workdir, which) is not None for which in FOLDERS)


def save(manager, step, state, pending=(), unvalidated=False, again=False):
  """Saves a state, unless this step is saved already.

  A resumed run may reach such a step again, with the same state to the bit.

  Args:
    manager: from `manager`.
    step: of the state.
    state: TrainState.
    pending: metrics {name: (sum, count)} of each step that no record of the
      run holds yet; they are kept with the state.
    unvalidated: whether the state ends an epoch that is not validated yet.
    again: whether to replace a state of this step. A process that is killed
      meanwhile leaves the state before.

  Raises:
    UserError: the disk is full, or the folder cannot be written.
  """
  try:
    with _one_voice():
      if again and step in manager.all_steps():
        manager.delete(step)
      if processes.count() > 1:  # Orbax refuses arrays of one process
        state = jax.device_get(state)
      manager.save(step, args=ocp.args.StandardSave(state), custom_metadata={
          _UNVALIDATED: unvalidated, _PENDING: [{name: [float(x) for x in value]
                      for name, value in metrics.items()}
                     for metrics in pending]})
  except (OSError, ValueError, RuntimeError) as error:
    if not manager.directory.exists():
      raise UserError(
          f'{manager.directory} is gone since the run has started: restore it, '
          'or start again with another --workdir') from error
    _remove_unfinished(manager.directory)
    raise UserError(
        f'{manager.directory}: the checkpoint of step {step} cannot be '
        f'written ({first_line(error)}): make room and start again; earlier '
        'checkpoints are whole') from error


class Saver(NamedTuple):
  """Saves states within an epoch.

  due() -> whether it is time to save.
  now(step, state, pending, unvalidated=False) saves, as `save`.
  """

  due: Callable
  now: Callable


def every(minutes, manager):
  """Returns a Saver that is due `minutes` after its last save; 0: never.

  Where `manager` is None it saves nothing, as in all processes but one.
  """
  last = time.monotonic()

  def due():
    return bool(minutes) and time.monotonic() - last >= 60 * minutes

  def now(step, state, pending, unvalidated=False):
    nonlocal last
    metrics.check_parameters(state.variables['params'], step - 1)
    if manager is None:
      return
    save(manager, step, state, pending, unvalidated)
    last = time.monotonic()

  return Saver(due, now)


def restore_latest(workdir, initial):
  """Loads the state that a run resumes from: the newest one that is whole.

  A damaged one after it is set aside, with a warning: the run reaches its step
  again.

  Args:
    workdir: of the run.
    initial: the state before the first step.

  Returns:
    The newest state, and `pending` and `unvalidated` that were saved with it;
    `initial`, an empty list and False where nothing has been saved.

  Raises:
    UserError: as `restore`.
  """
  # A manager makes its folder; a run that is only read must stay as it is.
  if not (workdir / FOLDERS['latest']).exists():
    return initial, [], False
  latest = manager(workdir, 'latest')
  state = _newest_whole(latest, initial)
  if state is None:
    return initial, [], False
  metadata = latest.metadata(int(state.step)).custom_metadata or {}
  return (state, metadata.get(_PENDING, []),
          metadata.get(_UNVALIDATED, False))


def drop_damaged(manager, state):
  """Sets states after `state` aside that cannot be read: they are made again.

  Args:
    manager: of 'best', where a state that is there is not written again.
    state: TrainState that the run resumes from.
  """
  for step in manager.all_steps():
    if step > int(state.step):
      try:
        restore(manager, state, step)
      except Damaged as error:
        _set_aside(manager, step, error, int(state.step))


def _set_aside(manager, step, error, kept):
  """Renames a state that cannot be read, and says so.

  It is not deleted: an error of the file system may pass.
  """
  aside = manager.directory / f'damaged-{step}'
  if aside.exists():
    aside.rmtree()
  (manager.directory / str(step)).rename(aside)
  manager.reload()
  print(f'warning: {error.problem}: it was renamed to {aside.name}; going back '
        f'to step {kept}', file=sys.stderr, flush=True)


def _newest_whole(manager, like):
  """Returns the newest state that can be read, or None; sets others aside.

  Raises:
    Damaged: none can be read.
  """
  damaged = []
  for step in sorted(manager.all_steps(), reverse=True):
    try:
      state = restore(manager, like, step)
    except Damaged as error:
      damaged.append((step, error))
      continue
    for number, error in damaged:
      _set_aside(manager, number, error, step)
    return state
  if damaged:
    raise damaged[0][1]
  return None


def restore_best(workdir, like):
  """Loads the best epoch of a run.

  Args:
    workdir: of the run.
    like: a state, or its shapes.

  Raises:
    UserError: as `restore`; also where no epoch has been saved.
  """
  # A manager makes its folder; a run that is only read must stay as it is.
  folder = workdir / FOLDERS['best']
  state = restore(manager(workdir, 'best'), like) if folder.exists() else None
  if state is None:
    raise UserError(f'{folder} holds no checkpoint to test: restore it, or '
                    f'train first with --workdir={workdir}')
  return state


def restore(manager, like, step=None):
  """Loads a step.

  Args:
    manager: from `manager`.
    like: a state, or its shapes (jax.eval_shape): structure of the result.
    step: of the state; None: the newest one.

  Returns:
    The state, or None where nothing has been saved.

  Raises:
    Damaged: the files are damaged or of another structure.
  """
  step = manager.latest_step() if step is None else step
  if step is None:
    return None
  shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  try:
    with _one_voice():
      return manager.restore(step, args=ocp.args.StandardRestore(shapes))
  except Exception as error:  # pylint: disable=broad-except
    # Damaged files may raise any error of their reader.
    raise Damaged(f'{manager.directory / str(step)}: the checkpoint cannot be '
                  f'read ({first_line(error)})') from error


@contextlib.contextmanager
def _one_voice():
  """Lets nothing but the exception report an error of the files.

  Orbax reads and writes from many threads. When one fails, the others still
  print on stderr, even after the exception was raised. So their output is
  enabled again only after success.
  """
  hooks = sys.unraisablehook, threading.excepthook
  asyncio_log = logging.getLogger('asyncio')
  try:
    sys.unraisablehook = threading.excepthook = lambda _: None
    asyncio_log.disabled = True
    yield
  except Exception:
    warnings.simplefilter('ignore', RuntimeWarning)
    raise
  sys.unraisablehook, threading.excepthook = hooks
  asyncio_log.disabled = False


def _remove_unfinished(directory, tries=20):
  """Removes what a failed save left; its threads may write a moment longer.

  A folder that remains does no harm: it does not have a checkpoint's name.
  """
  for _ in range(tries):
    left = list(directory.glob('*.orbax-checkpoint-tmp*'))
    if not left:
      return
    for folder in left:
      try:
        folder.rmtree()
      except OSError:
        time.sleep(0.1)
