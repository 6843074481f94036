"""How a field is declared: its default, meaning and range, in one place.

Sections of a config, the options of a method, a head or a backbone, and those
of the checks of the theory are dictionaries of Field. Defaults, checks, what a
resumed run may change and the page that documents the fields all follow from
the declaration.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mtl_jax.errors import UserError, check_choice


class Range(NamedTuple):
  """Numbers that a field may hold: low <= value < high."""

  low: float = 0
  above: bool = False  # low itself is not allowed
  high: float = float('inf')
  whole: bool = False  # of a tuple's items, which have no type of their own

  def __str__(self):
    text = 'whole, ' * self.whole + (
        f'{"above" if self.above else "at least"} {self.low}')
    return text + ('' if self.high == float('inf') else f', below {self.high}')

  def holds(self, value):
    """Returns whether a number is within; NaN never is."""
    above = value > self.low if self.above else value >= self.low
    return above and value < self.high and (
        not self.whole or isinstance(value, int))


# Devices compute in float32 and count in int32.
_LARGEST, _SMALLEST, LARGEST_WHOLE = 3.4e38, 1.2e-38, 2**31 - 1
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
SHARE = Range(0, high=1)


class Field(NamedTuple):
  """A field of a config.

  default: its value, which also gives the type; a float field takes whole
    numbers too.
  meaning: what it is, with its unit; one sentence.
  allowed: a Range of numbers, or a tuple of values; None: any value of the
    type. It holds for each item of a field that is a tuple.
  free: whether a run may resume with another value.
  free_to_test: whether a finished run may be tested with another value.
  kind: the type, where the default is None.
  """

  default: Any
  meaning: str
  allowed: Range | tuple | None = None
  free: bool = False
  free_to_test: bool = False
  kind: type | None = None

  @property
  def type(self):
    """The type of the field's values."""
    return self.kind or type(self.default)


def defaults(fields):
  """Returns name -> default, sections within sections alike."""
  return {name: defaults(field) if isinstance(field, Mapping)
          else field.default for name, field in fields.items()}


def flat(fields, prefix=''):
  """Yields ('section.name', Field) of all fields, in their order."""
  for name, field in fields.items():
    if isinstance(field, Mapping):
      yield from flat(field, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', field


def flat_values(section, prefix=''):
  """Yields ('section.name', value) of all values, sections within alike."""
  for name in section:
    value = section[name]
    if hasattr(value, 'keys'):
      yield from flat_values(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def check(fields, values, path='config.'):
  """Raises UserError for the first value that a declaration does not allow.

  Args:
    fields: name -> Field, or a section of them.
    values: mapping of the same structure.
    path: prefix of the names in messages.
  """
  for unknown in sorted(set(values) - set(fields)):
    raise UserError(f'{path}{unknown} is unknown: {path.rstrip(".")} has the '
                    'fields ' + ', '.join(sorted(fields)))
  for name, field in fields.items():
    if name not in values:
      raise UserError(f'{path}{name} is missing')
    value, section = values[name], isinstance(field, Mapping)
    if section != isinstance(value, Mapping):
      raise UserError(
          f'{path}{name} is {value!r}: must be a section like the default'
          if section else f'{path}{name} must be a single value')
    if section:
      check(field, value, f'{path}{name}.')
    else:
      check_value(f'{path}{name}', field, value)


def check_value(name, field, value):
  """Raises UserError unless `value` is of the field's type and range."""
  if value is None and field.default is None:
    return
  kinds = (int, float) if field.type is float else (field.type,)
  # In Python True is a whole number.
  if not isinstance(value, kinds) or (
      isinstance(value, bool) and field.type is not bool):
    raise UserError(
        f'{name} is {value!r}: must be of type {field.type.__name__}')
  for item in value if field.type is tuple else (value,):
    if isinstance(field.allowed, Range):
      _check_range(name, field.allowed, item, value)
    elif field.allowed is not None:
      check_choice(name, item, field.allowed)
    _check_number(name, field.allowed, item)


def _check_number(name, allowed, number):
  """Raises UserError for a number that would be another one on a device."""
  size = abs(number) if isinstance(number, (int, float)) else 0
  if isinstance(number, float) and size and not (
      _SMALLEST <= size <= _LARGEST):
    raise UserError(f'{name} has {number!r}: must be finite, and in float32 '
                    f'from {_SMALLEST} to {_LARGEST}')
  bounded = isinstance(allowed, Range) and allowed.high < float('inf')
  if isinstance(number, int) and size > LARGEST_WHOLE and not bounded:
    raise UserError(f'{name} has {number}: must be at most {LARGEST_WHOLE}')


def _check_range(name, allowed, number, value):
  whole = isinstance(number, (int, float)) and not isinstance(number, bool)
  if not whole or not allowed.holds(number):
    has = 'has' if isinstance(value, tuple) else 'is'
    finite = ' and finite' if number == float('inf') else ''
    raise UserError(f'{name} {has} {number!r}: must be {allowed}{finite}')
