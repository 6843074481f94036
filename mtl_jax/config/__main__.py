"""Prints every field of a config, or where a run's settings come from.

    python -m mtl_jax.config > docs/fields.md
    python -m mtl_jax.config recipes > docs/recipes.md
    python -m mtl_jax.config --config=mini_5shot:maml
    python -m mtl_jax.config --mode=evaluate --checkpoint=WORKDIR

The first two write pages of the documents. The flags of the others are those
of mtl_jax.main; nothing is trained or tested.
"""

import sys

from mtl_jax import fields, models, program
from mtl_jax.algorithms import METHODS
from mtl_jax.config import flags, settings
from mtl_jax.config.fields import FIELDS, NAMED
from mtl_jax.errors import UserError
from mtl_jax.fields import Field, Range
from mtl_jax.run import workdir

HEAD = '''# Fields of a config

This page is the output of `python -m mtl_jax.config`. Every field is declared
once, in `mtl_jax/config/fields.py`, and the fields of a method or head in its
own file. On the command line a field is set by
`--config.SECTION.FIELD=VALUE`. The column "may differ" says when a field may
have another value than the run began with: "resume", at any later start or
test; "test", only in a test of the finished run; empty, never. Options of heads
that validation does not use may differ when a run resumes, too.'''
TABLE = '''| field | default | allowed | may differ | meaning |
|---|---|---|---|---|'''


def page():
  """Returns the page as text."""
  parts = [HEAD]
  single = {k: v for k, v in FIELDS.items() if isinstance(v, Field)}
  parts += ['## Single fields', table(single, '')]
  for name, section in FIELDS.items():
    if isinstance(section, Field) or name in NAMED:
      continue
    parts += [f'## {name}', table(section, f'{name}.')]
  parts.append('## method\n\n`:name` after the config file chooses the method '
               'and its recipe.')
  for name, method in METHODS.items():
    parts += [f'### {name}', table(method.OPTIONS, 'method.')]
  parts.append('## model\n\nThe fields of a network are the attributes of its '
               'class, which documents them (`mtl_jax/models/`).')
  for name in models.MODELS:
    parts.append(f'- `{name}`: ' + ', '.join(
        f'`{option}={default!r}`'
        for option, default in models.defaults(name).items()))
  return '\n\n'.join(parts) + '\n'


def table(section, prefix):
  """Returns the Markdown table of a section."""
  return '\n'.join([TABLE, *(
      f'| `{prefix}{name}` | `{field.default!r}` | {_allowed(field)} '
      f'| {_free(field)} | {field.meaning} |'
      for name, field in fields.flat(section))])


def _allowed(field):
  if isinstance(field.allowed, Range):
    return str(field.allowed)
  return ', '.join(f'`{value}`' for value in field.allowed or ())


def _free(field):
  return 'resume' if field.free else 'test' if field.free_to_test else ''


def main(argv=None):
  """Runs the command line; returns the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  try:
    if argv in ([], ['recipes']):
      program.show((settings.recipes_page() if argv else page()).rstrip())
      return 0
    command = flags.parse(argv, workdir.saved_config)
    program.show(program.usage(__doc__, 'mtl_jax.config') if command.help else
                 settings.page(command.config).rstrip())
  except UserError as error:
    print(f'{program.tag("mtl_jax")}: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
