"""Where each setting of a run comes from, field by field.

A run prints `summary` at its start and keeps `page` in its workdir.
`python -m mtl_jax.config --config=NAME[:METHOD]` prints the page, and
`python -m mtl_jax.config recipes` what is not published in all recipes.
"""

import itertools
import json
from typing import Any, NamedTuple

from mtl_jax import algorithms, fields, models
from mtl_jax.config.fields import FIELDS
from mtl_jax.errors import UserError

# Where a value comes from.
PUBLISHED = 'published'
OURS = 'ours'  # of the recipe
CONFIG_FILE = 'config file'
COMMAND_LINE = 'command line'
DEFAULT = 'default'

# They say where and how fast a run computes, not what.
_APART = ('seeds', 'source', 'recipe', 'init_from', 'weights', 'parallel',
          'log', 'data.dir', 'data.manual_dir', 'data.store',
          'train.save_minutes')
PAGE = '''# Where the settings come from

{source}

| field | value | from | in the source | why it differs |
|---|---|---|---|---|
{rows}
{notes}'''

RECIPES = '''# Where published recipes differ from their source

This page is the output of `python -m mtl_jax.config recipes`. It lists every
recipe of the scale `published`: its source, the fields whose value is not that
of the source, and what no field can change. All other fields of a recipe are
as published. `python -m mtl_jax.config --config=mini_5shot:maml`
prints all fields of one recipe.'''


class Setting(NamedTuple):
  """A field and where its value comes from."""

  field: str
  value: Any
  origin: str
  published: Any  # value in the recipe's source, None where it has none
  reason: str  # why the recipe differs, '' where it does not


def recipe(config):
  """Returns the Recipe that a config was made by, or None."""
  c = config.get('recipe', {'benchmark': ''})
  if not c['benchmark']:
    return None  # made without one, or by an older version
  try:
    return algorithms.recipe(config['method']['name'], c['benchmark'],
                             c['shots'], c['scale'])
  except UserError:  # the user's method has changed
    return None


def settings(config):
  """Returns a Setting for each field that decides what a run computes.

  Args:
    config: mapping of a run's sections.
  """
  known = recipe(config)
  method, network = config['method']['name'], config['model']['name']
  defaults = dict(fields.flat_values(fields.defaults(FIELDS) | {
      'model': {'name': FIELDS['model']['name'].default,
                **models.defaults(network)},
      'method': {'name': method,
                 **fields.defaults(algorithms.find(method).OPTIONS)}}))
  given = config.get('recipe', {}).get('command_line', ())
  found = []
  for field, value in fields.flat_values(config):
    if field in _APART or field.partition('.')[0] in _APART:
      continue
    published = known.stated().get(field) if known else None
    origin = _origin(field, value, known, given, defaults)
    found.append(Setting(
        field, value, origin, published,
        known.reasons.get(field, '') if origin == OURS else ''))
  return found


def _origin(field, value, known, given, defaults):
  if known and field in known.stated() and _same(
      value, known.stated()[field]):
    return PUBLISHED
  if field in given:
    return COMMAND_LINE
  if known and field in known.overrides:
    if _same(value, known.overrides[field]):
      return OURS
    # Another network has brought its own values.
    return (COMMAND_LINE if field.startswith('model.') and 'model.name' in given
            else CONFIG_FILE)
  if field in defaults and _same(value, defaults[field]):
    return DEFAULT
  return CONFIG_FILE


def summary(config):
  """Returns the lines that a run prints: source, and what differs from it."""
  known, found = recipe(config), settings(config)
  names = {}
  for setting in found:
    names.setdefault(setting.origin, []).append(setting.field)
  head = config['source'] or 'config file'
  if known and not known.ours:
    c = config['recipe']
    head += (f', {c["benchmark"]}, K = {c["shots"]}; '
             f'{len(names.get(PUBLISHED, ()))} fields as published, the rest '
             'and why: settings.md')
    shown = (OURS, CONFIG_FILE, COMMAND_LINE)
  else:
    shown = (CONFIG_FILE, COMMAND_LINE)
  return '\n'.join([f'settings: {head}', *(
      f'  {origin}: ' + ', '.join(names[origin])
      for origin in shown if origin in names)])


def page(config):
  """Returns all settings as a Markdown table."""
  known = recipe(config)
  source = config['source'] or 'config file'
  if known:
    c = config['recipe']
    source += (f' (recipe: {config["method"]["name"]}, {c["benchmark"]}, '
               f'{c["shots"]} shots, {c["scale"]})')
  rows = '\n'.join(
      f'| {s.field} | {_text(s.value)} | {s.origin} '
      f'| {"" if s.published is None else _text(s.published)} | {s.reason} |'
      for s in settings(config))
  notes = ''.join(f'\n- {note}' for note in known.notes) if known else ''
  return PAGE.format(
      source=f'Settings: {source}.', rows=rows,
      notes=notes and f'\nWhat no field can change:\n{notes}\n')


def recipes_page():
  """Returns docs/recipes.md."""
  parts = [RECIPES]
  for name, method in algorithms.METHODS.items():
    published = {key: recipe for key, recipe in method.RECIPES.items()
                 if key[-1] == 'published'}
    parts.append(f'## {name}')
    parts += [_of_recipe(*key[:2], recipe) for key, recipe in published.items()
              if key not in _taken(published)]
    for nearest, taken in itertools.groupby(
        sorted(_taken(published).items(), key=lambda pair: pair[::-1]),
        lambda pair: pair[1]):
      parts.append('**' + '**, **'.join(
          _heading(*key[:2]) for key, _ in taken)
                   + f'**: ours, all as {_heading(*nearest[:2])}.')
    notes = _notes(published)
    if notes:
      parts += ['No field changes the following.', notes]
  return '\n\n'.join(parts) + '\n'


def _notes(published):
  """Returns a line per note, with its benchmarks where it is not of all."""
  of_note = {}
  for (benchmark, *_), recipe in published.items():
    for note in recipe.notes:
      of_note.setdefault(note, {})[benchmark] = True
  every = {benchmark for benchmark, *_ in published}
  return '\n'.join(
      '- ' + (f'{", ".join(some)}: ' if set(some) != every else '') + note
      for note, some in of_note.items())


def _taken(published):
  """Returns key -> that of the Recipe whose settings it takes as a whole."""
  taken = {}
  for key, recipe in published.items():
    same = next(other for other in published if
                published[other].overrides == recipe.overrides
                and published[other].source == recipe.source)
    if recipe.ours and same != key:
      taken[key] = same
  return taken


def _of_recipe(benchmark, shots, recipe):
  """Returns the paragraph of a recipe: a line per reason."""
  by_reason = {}
  for field, reason in recipe.reasons.items():
    text = f'`{field}={_text(recipe.overrides[field])}`'
    if field in recipe.stated():
      text += f' (source: {_text(recipe.stated()[field])})'
    by_reason.setdefault(reason, []).append(text)
  return '\n'.join([
      f'**{_heading(benchmark, shots)}**: {recipe}'
      + (':' if by_reason else ''), '',
      *(f'- {", ".join(texts)}: {reason}'
        for reason, texts in by_reason.items())]).rstrip()


def _heading(benchmark, shots):
  """Returns what a recipe is for."""
  return f'{benchmark}, ' + ('any number of shots' if shots is None else (
      f'{shots} shot' + 's' * (shots != 1)))


def _same(a, b):
  # As config.json keeps them: a list is a tuple, and 1 is 1.0.
  if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
    return len(a) == len(b) and all(map(_same, a, b))
  return isinstance(a, bool) == isinstance(b, bool) and a == b


def _text(value):
  """Returns a value as a cell of a table, long ones cut."""
  text = value if isinstance(value, str) and value else json.dumps(
      value, default=str)
  return (text if len(text) <= 60 else f'{text[:57]}...').replace('|', '\\|')
