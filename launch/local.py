"""Starts several processes of one run on this machine, over loopback.

    python -m launch.local --processes=2 -- --config=quickstart --workdir=runs/a

What follows `--` are flags of mtl_jax.main, which every process gets, together
with the flags that join them. --devices_per_process=N counts the CPU of each as
N devices. Lines are printed with the number of their process. If one process
ends badly, the others have --grace seconds to end by themselves and are then
killed. So long are the last lines waited for, too, where they are read slowly.
SIGTERM and Ctrl-C are passed on. The exit code is the first bad one.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from mtl_jax import early, program

PROGRAM = ('-m', 'mtl_jax.main')


def parse(argv):
  """Returns the arguments of a command line."""
  head, tail = (argv[:argv.index('--')], argv[argv.index('--') + 1:]
                ) if '--' in argv else (argv, [])
  parser = argparse.ArgumentParser(
      prog='python -m launch.local', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--processes', type=_count, default=2)
  parser.add_argument('--devices_per_process', type=_count, default=1)
  parser.add_argument('--grace', type=float, default=90.,
                      help='seconds that the others have after a bad end')
  args = parser.parse_args(head)
  if not tail:
    parser.error('after -- the flags of mtl_jax.main are missing, such as '
                 '-- --config=quickstart')
  args.flags = tail
  return args


def _count(text):
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{text}: must be at least 1')
  return value


def main(argv=None, program=PROGRAM):
  """Runs the processes; returns the first bad exit code, or 0."""
  args = parse(sys.argv[1:] if argv is None else argv)
  processes, printers, asked = [], [], []

  def pass_on(number, _):
    asked.append(number)
    tell(processes, number)

  # Before the first starts, so that none is left alone.
  before = {number: signal.signal(number, pass_on)
            for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    for process in start(args, program, printers):
      processes.append(process)
      if asked:  # before or after this one was in the list
        tell([process], asked[0])
        break
    code = wait(processes, args.grace)
    # Who reads may be slower than who writes.
    end = time.monotonic() + args.grace
    while (any(printer.is_alive() for printer in printers) and not asked
           and time.monotonic() < end):
      time.sleep(0.02)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    tell(processes, signal.SIGKILL)
  # A process that has no handler yet is ended by the signal itself.
  return early.CODES[asked[0]] if asked and code == 128 + asked[0] else code


def start(args, program, printers):
  """Starts and yields the processes; of each `printers` get two threads."""
  environment = dict(os.environ)
  if args.devices_per_process > 1:
    environment['XLA_FLAGS'] = (
        environment.get('XLA_FLAGS', '') +
        f' --xla_force_host_platform_device_count={args.devices_per_process}')
  port = free_port()
  for number in range(args.processes):
    # A group of its own: Ctrl-C in a terminal reaches it once, from here.
    process = subprocess.Popen(
        [sys.executable, *program, *args.flags,
         f'--coordinator_address=127.0.0.1:{port}',
         f'--num_processes={args.processes}', f'--process_id={number}'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True)
    for source, target in ((process.stdout, sys.stdout),
                           (process.stderr, sys.stderr)):
      printers.append(threading.Thread(
          target=show, args=(number, source, target), daemon=True))
      printers[-1].start()
    yield process


def free_port():
  """Returns a port of loopback that no process listens on now."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def show(number, source, target):
  """Prints the lines of a process behind its number, as long as it can."""
  for line in source:
    text = line.decode(errors='replace').rstrip('\n')
    try:
      target.write(f'[{number}] {text}\n')
      target.flush()
    except OSError:  # nobody reads it; a process whose lines stay would stop
      program.silence(target)


def tell(processes, number):
  """Sends a signal to all processes that still run."""
  for process in processes:
    if process.poll() is None:
      process.send_signal(number)


def wait(processes, grace):
  """Returns the first bad exit code, when all have ended; 0: all ended well.

  A process that a signal has ended counts as 128 + its number, as in a shell.
  """
  code, killed_at = 0, None
  while None in [process.poll() for process in processes]:
    time.sleep(0.1)
    for process in processes:
      if process.returncode and not code:
        code = process.returncode
        killed_at = time.monotonic() + grace
    if killed_at and time.monotonic() > killed_at:
      tell(processes, signal.SIGKILL)
  code = code or next((p.returncode for p in processes if p.returncode), 0)
  return code if code >= 0 else 128 - code


if __name__ == '__main__':
  sys.exit(main())
