"""Ways to damage files, for the tests of data sources."""


class Runs:
  """Prints 'it ran' where it is unpickled by Python's own reader."""

  def __reduce__(self):
    return print, ('it ran',)


def changed(write, name, content):
  """Returns what writes files and then changes one; None: removes it.

  Args:
    write: (folder) -> None.
    name: of the file in the folder.
    content: (bytes) -> bytes, or None.
  """
  def damage(folder):
    write(folder)
    path = folder / name
    if content is None:
      path.unlink()
    else:
      path.write_bytes(content(path.read_bytes()))
  return damage


def assert_refused(code, captured, said, folder):
  """Fails unless a build ended in one line on a file, and executed nothing.

  Args:
    code: exit code of the command.
    captured: what it printed, of capsys.readouterr().
    said: that must be in the line.
    folder: that the line must name.
  """
  assert code == 2
  line, = captured.err.splitlines()
  assert said in line and 'it ran' not in captured.out
  assert str(folder) in line
