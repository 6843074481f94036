"""Several processes: the same command on every host, joined by JAX.

`jax.distributed` joins the processes, and its heartbeats watch them. Everything
here also works in one process, where it does nothing. Process 0 leads: it alone
writes and prints.
"""

import collections
import ctypes
import json
import os
import re
import signal
import sys
import tempfile
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtl_jax import files
from mtl_jax.errors import AgreedError, UserError, first_line

# Exit code, beside 2 of a UserError and those of signals.
LOST = 76  # another process is gone, or does not answer

# Flags of mtl_jax.main: those of jax.distributed.initialize, and limits in
# seconds. A flag is taken before its environment variable.
VARIABLES = {'coordinator_address': 'JAX_COORDINATOR_ADDRESS',
             'num_processes': 'JAX_NUM_PROCESSES',
             'process_id': 'JAX_PROCESS_ID'}
LIMITS = {'initialization_timeout': 300, 'peer_timeout': 60}
FLAGS = (*VARIABLES, *LIMITS)
_ADDRESS = re.compile(r'(\[[0-9a-fA-F:.]+\]|[^\s:/]+):([0-9]+)')
# Heartbeats have this share of --peer_timeout: JAX may end a process a little
# after its own limit.
_SHARE = 0.8
# A process that ends waits so long for the others to end, in seconds.
_END = 300


class Place(NamedTuple):
  """Where a process stands among the others.

  The first three are None where JAX finds them, on a TPU pod or under Slurm.
  """

  coordinator_address: str | None
  num_processes: int | None
  process_id: int | None
  initialization_timeout: int
  peer_timeout: int


def place(given, environment=os.environ):
  """Returns the Place that flags and environment name; None: one process.

  Args:
    given: flag -> text, of FLAGS.
    environment: variable -> text.

  Raises:
    UserError: a value is wrong or missing.
  """
  texts = {name: given.get(name) or environment.get(variable)
           for name, variable in VARIABLES.items()}
  named = lambda name: (f'--{name}' if given.get(name) else VARIABLES.get(name))
  limits = {name: _whole(f'--{name}', given.get(name) or limit, 1)
            for name, limit in LIMITS.items()}
  if not any(texts.values()):
    return Place(None, None, None, **limits) if _in_a_cluster(
        environment) else None
  for name, text in texts.items():
    if not text:
      raise UserError(
          f'--{name} is missing: several processes need '
          + ', '.join(f'--{flag}' for flag in VARIABLES) + ' (or '
          + ', '.join(VARIABLES.values()) + ')')
  address = texts['coordinator_address']
  found = _ADDRESS.fullmatch(address)
  if not found or not 0 < int(found[2]) < 2**16:
    raise UserError(f'{named("coordinator_address")} is {address!r}: must be '
                    'HOST:PORT of process 0, such as 10.0.0.2:8476')
  count = _whole(named('num_processes'), texts['num_processes'], 1)
  number = _whole(named('process_id'), texts['process_id'], 0)
  if number >= count:
    raise UserError(f'{named("process_id")} is {number}: {count} processes '
                    f'have the numbers 0 to {count - 1}')
  return Place(address, count, number, **limits) if count > 1 else None


def _whole(name, text, least):
  if not re.fullmatch('[0-9]{1,9}', str(text)) or int(text) < least:
    raise UserError(f'{name} is {text!r}: must be a whole number of at least '
                    f'{least}')
  return int(text)


def _in_a_cluster(environment):
  """Returns whether JAX may find the other processes by itself."""
  # GKE sets the first three. On a TPU VM JAX sets the next one when it is
  # imported, and the last one where libtpu is installed but there is no chip.
  tpu = any(environment.get(name) for name in (
      'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES', 'TPU_WORKER_ID')) or (
          environment.get('TPU_ML_PLATFORM') == 'JAX'
          and not environment.get('TPU_SKIP_MDS_QUERY'))
  tasks = environment.get('SLURM_NTASKS', '')
  slurm = 'SLURM_STEP_NODELIST' in environment and tasks.isdigit() and int(
      tasks) > 1
  platforms = environment.get('JAX_PLATFORMS', '')
  return slurm or (tpu and 'cpu' not in platforms.split(',')[:1])


def start(where, tag):
  """Joins the other processes; call it before anything uses a device.

  From then on a process that loses another one ends within `peer_timeout`
  seconds, with one line and the exit code LOST.

  Args:
    where: Place; None: one process, and nothing is done.
    tag: what a message begins with.

  Raises:
    UserError: the processes cannot be joined.
  """
  if where is None:
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  address = where.coordinator_address or 'the coordinator'
  said = _catch_aborts(tag, (
      f'no answer of {address} with all processes within '
      f'{where.initialization_timeout} seconds (--initialization_timeout): '
      'start the same command in every process, each with its own '
      '--process_id'))
  try:
    jax.distributed.initialize(
        *where[:3], initialization_timeout=where.initialization_timeout,
        heartbeat_timeout_seconds=max(1, int(_SHARE * where.peer_timeout)),
        shutdown_timeout_seconds=_END)
  except (RuntimeError, ValueError, OSError) as error:
    if 'coordinator_address should be defined' in str(error):
      said['line'] = ''
      return  # JAX finds no others: a TPU that is no virtual machine's
    raise UserError(f'{address}: the processes cannot be joined '
                    f'({first_line(error)}): choose a free port of process 0, '
                    'and name it in every process') from error
  said['line'] = ''


def _catch_aborts(tag, line):
  """Makes JAX's runtime end the process with one line and the code LOST.

  When another process is lost, the runtime writes a long log and aborts, from
  a thread of its own. Python's signal handlers run in the main thread, which
  may wait for the lost process for ever. So the handler is the C library's.

  What native code prints goes to a file that is nowhere listed, as gloo prints
  on stdout. An abort for another reason shows its end.

  Args:
    tag: what a message begins with.
    line: what the message says; '' that a process is lost.

  Returns:
    {'line': line}, which may be changed.
  """
  log = tempfile.TemporaryFile()
  stdout, stderr = (os.dup(stream.fileno()) for stream in (
      sys.__stdout__, sys.__stderr__))
  said = {'line': line, 'stderr': stderr}
  sys.stdout.flush()
  sys.stdout = open(stdout, 'w', buffering=1, closefd=False)
  sys.stderr = open(stderr, 'w', buffering=1, closefd=False)
  for number in (1, 2):
    os.dup2(log.fileno(), number)

  def abort(_):
    log.seek(0)
    text = log.read().decode(errors='replace')
    if 'JAX distributed service' not in text:
      os.write(stderr, text[-4000:].encode())
      return  # the process aborts
    found = re.findall(r'absl::Status: (.*?)(?:\n\n|\*\*\*|$)', text, re.S)
    reason = ' '.join(''.join(found[-1:]).split())
    os.write(stderr, f'{tag}: {said["line"] or loss(reason)}\n'.encode())
    os._exit(LOST)

  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(abort)
  said['handler'] = handler  # kept as long as the process
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
  _KEPT.append(said)
  return said


_KEPT = []  # handlers of the C library, which Python must not collect


def stderr():
  """Returns the number of the file of stderr, as `start` leaves it."""
  return _KEPT[0]['stderr'] if _KEPT else 2


def loss(reason):
  """Returns the line about another process that is gone.

  Args:
    reason: what JAX says; it may name the process.
  """
  named = re.search(r'sending heartbeats\): ?(\d+)', reason)
  who = f'process {named[1]}' if named else 'another process'
  detail = '' if named or not reason else f' ({reason[:160].strip()})'
  return (f'{who} has ended or does not answer{detail}: see its last lines; '
          'the same command in all processes resumes')


def is_loss(error):
  """Returns whether a step has failed because another process is gone."""
  return isinstance(error, (jax.errors.JaxRuntimeError, ValueError)) and bool(
      re.search('Gloo|NCCL|[Cc]onnection (closed|reset)|coordination service',
                str(error)))


def count():
  """Returns the number of processes."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def leads():
  """Returns whether this process writes and prints."""
  return count() == 1 or jax.process_index() == 0


def leave(code=None):
  """Leaves the other processes, which must leave too.

  Args:
    code: ends this process with it at once, if others are left behind.
  """
  if not jax.distributed.is_initialized():
    return
  sys.stdout.flush()
  sys.stderr.flush()
  if code is not None:
    os._exit(code)
  jax.distributed.shutdown()


def texts(text):
  """Returns the text that each process gives, by the process' number."""
  if count() == 1:
    return [text]
  _check_devices()
  own = np.frombuffer(text.encode(errors='surrogateescape'), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(own))).ravel()
  padded = np.zeros(max(sizes), np.uint8)
  padded[:len(own)] = own
  everyone = multihost_utils.process_allgather(padded)
  return [bytes(row[:size]).decode(errors='surrogateescape')
          for row, size in zip(everyone, sizes, strict=True)]


def _check_devices():
  """Raises AgreedError where processes have different numbers of devices."""
  counts = collections.Counter(d.process_index for d in jax.devices())
  for number, devices in sorted(counts.items()):
    if devices != counts[0]:
      raise AgreedError(
          f'process {number} has {devices} devices and process 0 has '
          f'{counts[0]}: all must have equally many (on a CPU set the same '
          'config.parallel.cpu_devices and XLA_FLAGS)')


def agree(values, what):
  """Raises AgreedError unless all processes have the same values.

  Args:
    values: name -> what JSON can hold, of this process.
    what: the values are, for the message.
  """
  everyone = [json.loads(text) for text in texts(json.dumps(
      values, sort_keys=True))]
  for number, others in enumerate(everyone):
    differ = sorted(name for name in {*everyone[0], *others}
                    if everyone[0].get(name) != others.get(name))
    if differ:
      name = differ[0]
      raise AgreedError(
          f'process {number} has another {what} than process 0: {name} is '
          f'{others.get(name)!r}, not {everyone[0].get(name)!r}; start the '
          'same command, version and data in all processes')


def together(function):
  """Returns what `function` returns, if no process raises a UserError.

  Raises:
    AgreedError: in all processes, if `function` raises a UserError in one.
  """
  if count() == 1:
    return function()
  result, error = None, ''
  try:
    with files.errors():
      result = function()
  except UserError as raised:
    error = str(raised)
  errors = texts(error)
  for number, text in enumerate(errors):
    if text:
      raise AgreedError(text if len({*errors}) == 1 else
                        f'process {number}: {text}')
  return result


def by_leader(function):
  """Returns what `function` returns in process 0; None in the others.

  They wait for it.

  Raises:
    AgreedError: in all processes, if it raises a UserError.
  """
  return together(lambda: function() if leads() else None)


def arrays_of_leader(tree):
  """Returns process 0's tree of arrays, which has the same form in all."""
  if count() == 1:
    return tree
  return jax.tree.map(jax.numpy.asarray,
                      multihost_utils.broadcast_one_to_all(tree))


def mine(items):
  """Returns those of a list of items that this process deals with.

  They are as many in every process, so that `joined` can put the results
  together; where the items do not suffice, some are dealt with twice.
  """
  total = count()
  number = jax.process_index() if total > 1 else 0
  return [items[(i + number) % len(items)]
          for i in range(0, len(items), total)]


def joined(results, length):
  """Returns the results of all items, from those of `mine` in each process.

  Args:
    results: tree of arrays for each of the items of `mine`, all of one form.
    length: number of the items.
  """
  if count() == 1:
    return results
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(
      results))
  everyone = multihost_utils.process_allgather(stacked)  # [P, I / P, ..]
  return [jax.tree.map(lambda x, i=i: x[i % count(), i // count()], everyone)
          for i in range(length)]
