"""What made each cell: its test, its config, its program and machine."""

from mtl_jax import fields, models
from mtl_jax.algorithms import METHODS
from mtl_jax.config import FIELDS
from mtl_jax.report import accuracy, page, records

_PROVENANCE = ('date', 'device', 'devices', 'processor', 'platform', 'python',
               'settings_sha256')
_LONGEST = 2000  # signs of a value


def of_column(methods):
  """Returns [page.Folded], one per cell of a column.

  Args:
    methods: of accuracy.groups.
  """
  return [page.Folded(f'{name}, seed {cell.seed}', [page.Facts(_facts(cell))])
          for name, cells in methods.items() for cell in cells]


def differing(config):
  """Returns [(name, value)] of the fields of a config without their default.

  The default of a field of a method or network is that of the package's own
  ones: a user's file is not run.

  Args:
    config: the config of a record, whatever is in it.
  """
  section = lambda name: config[name] if isinstance(
      config.get(name), dict) else {}
  method, model = (str(section(name).get('name')) for name in (
      'method', 'model'))
  known = dict(fields.flat_values(fields.defaults(FIELDS) | {
      'method': {'name': '', **fields.defaults(
          METHODS[method].OPTIONS if method in METHODS else {})},
      'model': {'name': FIELDS['model']['name'].default, **(
          models.defaults(model) if model in models.MODELS else {})}}))
  nothing = object()
  return [(name, value) for name, value in fields.flat_values(config)
          if _listed(known.get(name, nothing)) != _listed(value)]


def _facts(cell):
  """Returns the pairs of names and texts of a cell."""
  get = lambda name: _text(cell.get(name))
  test = (f'{get("test.ways")}-way {get("test.shots")}-shot, '
          f'{get("test.queries")} queries per class, {get("test.num_tasks")} '
          f'tasks of the {get("test.split")} classes of {get("test.data")}')
  commit = get('provenance.commit') + (
      ', with changes' if cell.get('provenance.changed') else '')
  return [
      ('file', cell.path),
      ('accuracy', accuracy.percent(
          cell.get('test.accuracy'), cell.get('test.ci95'))
          + f', {get("test.head")} head'),
      ('BatchNorm', f'{get("test.batch_norm")} statistics'),
      ('test', test), ('tasks', get('test.tasks_sha256')),
      *(('score', line) for line in _scores(cell)),
      ('best step', f'{get("training.best_step")} of {get("training.steps")}'),
      ('commit', commit),
      *((name.replace('_sha256', ', hash'), get(f'provenance.{name}'))
        for name in _PROVENANCE),
      ('versions', _pairs((cell.get('provenance.versions') or {}).items())),
      ('command', get('provenance.command')),
      ('config', _pairs(differing(cell.get('config') or {})))]


def _scores(cell):
  """Returns a line per score of the test, also of heads beside the method's."""
  lines = []
  for name, score in (cell.get('test.scores') or {}).items():
    values = [records.share(score.get(key)) if isinstance(score, dict) else None
              for key in ('accuracy', 'ci95')]
    lines.append(f'{name}: {accuracy.percent(*values)}')
  return lines


def _pairs(items):
  return _text(', '.join(f'{name}={value}' for name, value in items)) or '-'


def _listed(value):
  """Returns a value with lists for tuples, as JSON has them."""
  return list(map(_listed, value)) if isinstance(value, (tuple, list)) else (
      value)


def _text(value):
  text = '-' if value is None or value == '' else str(value)
  return text if len(text) <= _LONGEST else text[:_LONGEST] + ' ...'
