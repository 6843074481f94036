"""Errors that a user can mend."""


class UserError(Exception):
  """Says in one line what is wrong and what would be right.

  The command line prints the line on stderr and exits with code 2; every
  other exception is a fault of ours and keeps its traceback.
  """


class AgreedError(UserError):
  """Is raised in all processes alike; one of them prints it."""


def check_choice(field, value, allowed):
  """Raises UserError unless `value` is one of `allowed`."""
  if value not in allowed:
    raise UserError(
        f'{field} is {value!r}: allowed are '
        + ', '.join(str(name) or "''" for name in allowed))


def reason(error):
  """Returns what the system, or a client of an object store, says was wrong."""
  if getattr(error, 'strerror', None):
    return error.strerror
  return ('no such bucket or object' if isinstance(error, FileNotFoundError)
          else first_line(error))


def first_line(error):
  """Returns the first line of an error, short enough for a line of ours."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0] if len(lines[0]) <= 160 else lines[0][:160] + ' ...'
