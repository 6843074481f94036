"""Devices: the mesh, and the same step compiled through jit or pmap.

The step of train/step.py is written for one device of a named axis. `jit`
runs it by shard_map over the mesh, `pmap` binds the axis itself. State and
data are replicated; the tasks are divided among the devices, those of other
processes included.
"""

import contextlib
import functools
import os
import pathlib
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtl_jax import compile_cache, heap, processes
from mtl_jax.errors import UserError, check_choice, first_line

AXIS = 'tasks'  # the name of the axis of devices

# Steps that may wait behind the one that runs. A device must not wait for the
# host; but the host holds the pixels and the metrics of every step that waits.
STEPS_AHEAD = 8
# XLA's CPU client aborts the process when a device waits this long for the
# others in an all-reduce. Its own limit, 40 s, is less than a step of ResNet-12
# may take where eight counted devices share two cores.
_STUCK = '--xla_cpu_collective_call_terminate_timeout_seconds'
_STUCK_SECONDS = 600


class Compiled(NamedTuple):
  """A compiled step with the way its arguments are laid out.

  step(state, arrays, key, pixels) -> (state, metrics), on laid-out
    arguments; the state that goes in is donated: its buffers are gone
    afterwards. `pixels` [T, ..] comes from `divide`, or is None. On several
    devices of a CPU it returns when the step has ended, see `compile`.
  put(tree) -> tree laid out for `step`, which may share memory with what it
    was given and must be the same in all processes; get(tree) -> plain arrays
    of this process again.
  share(tree) -> as `put`, for what no step changes: all devices of a CPU read
    the memory that it was given.
  divide(array [t, ..]) -> [T, ..], every device holding its own tasks. The
    array has the tasks of this process alone, `own_tasks`.
  lower(state, arrays, key, pixels) -> the step lowered for these arguments.
  """

  step: Callable
  put: Callable
  get: Callable
  divide: Callable
  lower: Callable
  share: Callable


def split_cpu(count):
  """Counts the CPU as `count` devices; 0 leaves JAX's default.

  Call it before anything uses a device: from here they also take that they keep
  their memory and their compiled programs. It changes no number where XLA_FLAGS
  sets it, and warns in a process that already uses its devices.
  """
  heap.keep()
  compile_cache.keep()
  flags = os.environ.get('XLA_FLAGS', '')
  if _STUCK not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {_STUCK}={_STUCK_SECONDS}'
  if count and 'device_count' not in flags:
    try:
      jax.config.update('jax_num_cpu_devices', count)
    except RuntimeError:  # the devices are in use
      kept = jax.local_devices()
      # Several processes have a device each, or as many as XLA_FLAGS says.
      if processes.count() == 1 and kept[0].platform == 'cpu' and len(
          kept) != count:
        warnings.warn(
            f'config.parallel.cpu_devices is {count}, but this process already '
            f'uses {len(kept)} devices: it keeps them', stacklevel=2)


def check_platform():
  """Raises UserError where JAX finds no device, such as no GPU."""
  try:
    jax.local_devices()
  except (RuntimeError, AssertionError) as error:
    # JAX asserts that a platform it was told to take has started.
    platforms = jax.config.jax_platforms
    raise UserError(
        f'JAX finds no device of {platforms or "this machine"} '
        f'({first_line(error)}): set JAX_PLATFORMS to a platform of this '
        'machine, such as cpu') from error


def host_memory():
  """Returns the bytes of memory of this machine; None where it does not say.

  A container may have less than the machine that it runs on.
  """
  found = []
  try:
    found.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
  except (AttributeError, ValueError, OSError):
    pass
  for file in ('/sys/fs/cgroup/memory.max',
               '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
    try:
      found.append(int(pathlib.Path(file).read_text()))
    except (OSError, ValueError):  # not there, or 'max'
      pass
  return min(found, default=None)


_SMALLER = ('take fewer or smaller tasks at once, by '
            'config.parallel.tasks_at_once, config.train.meta_batch, '
            'config.eval.batch_size or config.eval.tasks_at_once')


@contextlib.contextmanager
def memory_errors(remedy=_SMALLER):
  """Turns an error for lack of memory into a UserError that names a remedy."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    # An error while a computation is dispatched has another status.
    if isinstance(error, MemoryError) or re.search(
        'RESOURCE_EXHAUSTED|Out of memory', str(error)):
      raise UserError(
          f'memory does not suffice ({first_line(error)}): {remedy}'
          ) from error
    raise


def mesh(devices, meta_batch):
  """Returns the mesh of the devices of all processes that share a meta-batch.

  Args:
    devices: how many of each process. 0 takes all; in one process alone, as
      many as divide the meta-batch evenly.
    meta_batch: T.

  Raises:
    UserError: more devices than are visible, or a number that does not divide
      T.
  """
  visible = jax.local_device_count()
  if devices > visible:
    raise UserError(f'config.parallel.devices is {devices}, but '
                    f'{visible} are visible: at most {visible}')
  several = processes.count() > 1
  if not devices:
    devices = visible if several else max(
        n for n in range(1, visible + 1) if meta_batch % n == 0)
  total = devices * processes.count()
  if meta_batch % total:
    of = f' of {processes.count()} processes' if several else ''
    raise UserError(
        f'config.train.meta_batch is {meta_batch}, which {total} devices{of} '
        'cannot share evenly: take a multiple, fewer config.parallel.devices,'
        ' or set config.parallel.tasks_per_device')
  return Mesh(np.array(chosen(devices)), (AXIS,))


def chosen(devices):
  """Returns the first devices of each process, one process after another.

  Args:
    devices: how many of each; 0: all.
  """
  of_process = {}
  for device in sorted(jax.devices(), key=lambda d: (d.process_index, d.id)):
    of_process.setdefault(device.process_index, []).append(device)
  return [device for of in of_process.values()
          for device in of[:devices or None]]


def own_tasks(mesh, meta_batch):
  """Returns the numbers of the tasks of this process' devices: a range."""
  share = meta_batch // mesh.size
  places = [i for i, device in enumerate(mesh.devices.flat)
            if device.process_index == jax.process_index()]
  return range(places[0] * share, (places[-1] + 1) * share)


def mesh_of_tasks(at_most):
  """Returns a mesh of at most `at_most` local devices; None: all.

  It is meant for tests, whose tasks and images do not depend on each other.
  """
  return Mesh(np.array(jax.local_devices()[:at_most]), (AXIS,))


def everywhere(tree, mesh):
  """Returns a tree of which each device of a local mesh holds a copy."""
  return jax.device_put(tree, NamedSharding(mesh, P()))


def compile(step, mesh, how='jit'):  # named for what it does, as re.compile
  """Compiles a step over the mesh; returns Compiled.

  A CPU that is counted as several devices runs one step at a time. Its
  devices share one pool of threads. Where there are fewer cores than devices,
  the pool has one thread per device, and each all-reduce keeps a thread of
  every device waiting. That is enough for one step. If several steps were
  dispatched, all threads could wait at once: for a place among the 32
  computations that the client takes, for the step before, or in an all-reduce
  whose last device gets no thread (docs/speed.md).

  Args:
    step: pure function of (state, arrays, key, pixels) under AXIS.
    mesh: from `mesh`.
    how: 'jit' (shard_map within jit) or 'pmap'.
  """
  check_choice('config.parallel.compile', how, ('jit', 'pmap'))
  local = mesh.local_devices
  if local[0].platform == 'cpu' and mesh.size > 1:
    in_turn = lambda run: lambda *args: jax.block_until_ready(run(*args))
  else:
    in_turn = lambda run: run
  home = lambda x: jax.device_put(x, local[0])
  if how == 'jit':
    # Gradients are averaged by the step itself; with check_vma the
    # transpose of a replicated argument would sum them a second time.
    mapped = jax.shard_map(step, mesh=mesh, out_specs=P(), check_vma=False,
                           in_specs=(P(), P(), P(), P(AXIS)))
    jitted = jax.jit(mapped, donate_argnums=0)
    put = functools.partial(_replicate, NamedSharding(mesh, P()))
    return Compiled(in_turn(jitted), put,
                    lambda tree: jax.tree.map(
                        lambda x: home(x.addressable_data(0)), tree),
                    lambda x: jax.make_array_from_process_local_data(
                        NamedSharding(mesh, P(AXIS)), x),
                    jitted.lower, _sharing(mesh, P(), put))
  mapped = jax.pmap(step, axis_name=AXIS, devices=list(mesh.devices.flat),
                    donate_argnums=0)
  # One device's copy. Were x[0] taken of the array of all devices, each number
  # would be a computation of all of them, with an all-reduce.
  first = lambda x: home(x.addressable_data(0)[0])
  # pmap takes and returns arrays of this process' devices.
  here = Mesh(np.array(local), (AXIS,))
  divided = NamedSharding(here, P(AXIS))
  put = lambda tree: _replicate(divided, jax.tree.map(lambda x: x[None], tree))
  return Compiled(
      in_turn(mapped), put, lambda tree: jax.tree.map(first, tree),
      lambda x: jax.device_put(
          x.reshape((len(local), -1) + x.shape[1:]), divided),
      mapped.lower, _sharing(here, P(AXIS), put))


def _replicate(sharding, tree):
  """Returns global arrays of which each device holds what it is given.

  Args:
    sharding: of P(), or of P(AXIS) for arrays with an axis of length one.
    tree: of arrays of this process.
  """
  def replicate(x):
    of_all = (sharding.mesh.size, *x.shape[1:]) if len(
        sharding.spec) else x.shape
    return jax.make_array_from_single_device_arrays(
        of_all, sharding, [jax.device_put(x, device)
                           for device in sharding.mesh.local_devices])
  return jax.tree.map(replicate, tree)


def _sharing(mesh, spec, put):
  """Returns what lays arrays out without copies where that can be done.

  `jax.device_put` of a numpy array copies nothing if the device is a CPU and
  the array begins at a multiple of 64 bytes, as a mapped file of numpy's does.

  Args:
    mesh: of the devices.
    spec: P(), or P(AXIS) for arrays with an axis of devices in front.
    put: what copies.
  """
  if mesh.devices.flat[0].platform != 'cpu':
    return put

  def share(x):
    x = np.asarray(x)  # no copy of what is on a CPU
    return _replicate(NamedSharding(mesh, spec), x[None] if len(spec) else x)

  return lambda tree: jax.tree.map(share, tree)
