"""What a person at a terminal sees while a run goes."""

import fcntl
import os
import pty
import struct
import termios

import command


def test_a_terminal_gets_a_bar_with_what_matters(tmp_path):
  terminal, end = pty.openpty()
  fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 150, 0, 0))
  result = command.run(command.arguments(
      tmp_path / 'run', config__train__max_epochs=1), stderr=end)
  os.close(end)
  shown = os.read(terminal, 1 << 16).decode()
  assert result.returncode == 0, shown
  last = [part for part in shown.split('\r') if '4/4' in part][-1]
  for text in ('loss ', 'accuracy ', 'validation ', 'tasks/s ', '<'):
    assert text in last
  assert 'step 4  loss' not in result.stdout
