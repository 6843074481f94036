"""What takes long says how far it is: a bar on a terminal, lines in a log."""

import fcntl
import os
import pty
import re
import struct
import termios

import command
import own_source
import pytest

from mtl_jax.data import __main__ as data_command

LOOP = """
import time
from mtl_jax import progress
progress.DELAY = 0
for _ in progress.each(range(4), 'working', unit='task'):
  time.sleep(0.12)
with progress.bar(2, 'hidden', show=False) as bar:
  bar.update(2)
"""


def test_a_terminal_gets_the_time_left_and_keeps_no_line():
  terminal, end = pty.openpty()
  fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 100, 0, 0))
  result = command.run([], ('-c', LOOP), stderr=end)
  os.close(end)
  shown = os.read(terminal, 1 << 16).decode()
  assert result.returncode == 0, shown
  assert 'working:  75%' in shown and '3/4 [' in shown
  assert shown.rstrip(' \r\n').endswith(']')  # then it is cleared
  assert 'hidden' not in shown


def test_a_log_gets_nothing_of_what_is_soon_done():
  result = command.run([], ('-c', LOOP))
  assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_a_log_gets_a_line_now_and_then():
  """Fails if a test of many minutes leaves its log silent."""
  result = command.run([], ('-c', LOOP.replace('DELAY = 0', 'EVERY = 0.1')))
  assert (result.returncode, result.stdout) == (0, '')
  lines = result.stderr.splitlines()
  assert re.fullmatch(r'working: [1-3] of 4, 00:0\d left', lines[0])
  assert len(lines) <= 4 and 'hidden' not in result.stderr
  assert all(line == line.strip() and line for line in lines)


def test_bars_within_bars_leave_lines_alone_in_a_log():
  """Fails if what moves a terminal's cursor is printed."""
  result = command.run([], ('-c', """
import time
from mtl_jax import progress
progress.EVERY = 0.1
for _ in progress.each(range(2), 'outer'):
  for _ in progress.each(range(4), 'inner'):
    time.sleep(0.12)
"""))
  lines = result.stderr.splitlines()
  assert {line.split(':')[0] for line in lines} == {'outer', 'inner'}
  assert '\x1b' not in result.stderr


@pytest.fixture
def data(tmp_path, monkeypatch):
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path / 'data'))
  return own_source.write_folder(tmp_path / 'birds')


def test_building_and_checking_show_how_far_they_are(data, bars, capfd):
  """A bar of TFDS would know no time left, as it knows no total."""
  assert data_command.main(['build', str(data)]) == 0
  assert [bar for bar in bars if bar[0].startswith('building')] == [
      [f'building {split}', 6, 6] for split in own_source.SPLITS]
  del bars[:]
  assert data_command.main(['check', str(data)]) == 0
  assert ['decoding', 36, 36] in bars and ['measuring', 1, 1] in bars
  assert 'Generating' not in capfd.readouterr().err
