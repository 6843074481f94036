"""The text of --help: what may be named, and every field of a config."""

import inspect
import re
import shutil
import textwrap

from mtl_jax import algorithms, fields, heads, models
from mtl_jax.config import named
from mtl_jax.config.fields import FIELDS
from mtl_jax.data import sources
from mtl_jax.fields import Field, Range

_NAMES = 24  # columns of a name
_WIDEST, _NARROWEST = 100, 50  # columns of a line
_ATTRIBUTES = re.compile(r'Attributes:\n((?:  .*\n?)*)')
_ATTRIBUTE = re.compile(r'^  (\w+): (.*(?:\n    .*)*)', re.M)


def text(usage, config=None):
  """Returns the text.

  Args:
    usage: what it begins with.
    config: whose fields are listed, with its values, those of its method and
      of its network too; None: all names, and the common fields.
  """
  if config is None:
    return '\n'.join([
        usage, *_names(), *_fields('Fields and their defaults', FIELDS, {}),
        _paragraph('A method and a network have further fields: --help '
                   '--config=NAME:METHOD lists all fields of a config with '
                   'their values.')])
  method, network = config.method.name, config.model.name
  own = {'method': algorithms.find(method).OPTIONS,
         'model': _of_network(network)}
  return '\n'.join([usage, *_fields(
      f'Fields of this config ({method}, {network})', FIELDS | own,
      dict(fields.flat_values(config)))])


def _names():
  """Yields the lines on all that has a name."""
  yield from _table('Configs, --config=NAME[:METHOD]', named.summaries())
  yield from _table('Methods, --config=NAME:METHOD',
                    _first_lines(algorithms.METHODS))
  yield from _table('Networks, --config.model.name',
                    _first_lines(models.MODELS))
  yield from _table('Heads, --config.eval.heads',
                    _first_lines(heads.HEADS))
  yield from _table('Data sets, --config.data.name', {
      name: ' '.join(filter(None, [
          source.description, '; '.join(
              f'{name}/{variant}: {meaning.rstrip(".")}'
              for variant, meaning in source.variants.items())]))
      for name, source in sources.SOURCES.items()})
  yield _paragraph('The path of a .py file may stand for any of these names, '
                   'and that of a folder of images for a data set.') + '\n'


def _first_lines(registered):
  return {name: entry.__doc__.partition('\n')[0]
          for name, entry in registered.items()}


def _table(title, meanings):
  """Yields a title, and a paragraph for each name."""
  yield f'{title}:'
  for name, meaning in meanings.items():
    yield _paragraph(f'  {name:<{_NAMES}}  {meaning}', ' ' * (_NAMES + 4))
  yield ''


def _of_network(name):
  """Returns the fields of a network, with what its class says of them."""
  section = _ATTRIBUTES.search(inspect.getdoc(models.find(name)) or '')
  said = dict(_ATTRIBUTE.findall(section[1])) if section else {}
  return {'name': FIELDS['model']['name'], **{
      option: Field(default, ' '.join(said.get(option, '').split()))
      for option, default in models.defaults(name).items()}}


def _fields(title, declared, values):
  """Yields a title, and a paragraph for each field.

  Args:
    title: without colon.
    declared: name -> Field, or a section of them.
    values: 'section.name' -> value, where it is not the default.
  """
  yield f'{title}, --config.FIELD=VALUE:'
  for name, field in fields.flat(declared):
    if name != 'source' and not name.startswith('recipe.'):  # no flag is theirs
      allowed = _allowed(field.allowed)
      yield _paragraph(
          f'  {name}={values.get(name, field.default)}  {field.meaning}'
          + (f' [{allowed}]' if allowed else ''), ' ' * 6)
  yield ''


def _allowed(allowed):
  if isinstance(allowed, Range):
    return str(allowed)
  return ', '.join(str(value) for value in allowed or ())


def _paragraph(line, indent=''):
  """Returns a paragraph as wide as the terminal; `indent`: of later lines."""
  columns = shutil.get_terminal_size().columns
  return textwrap.fill(
      line, min(max(columns, _NARROWEST), _WIDEST), subsequent_indent=indent,
      break_long_words=False, break_on_hyphens=False)
