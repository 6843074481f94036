"""The flags of `python -m mtl_jax.main`, and the config that they make."""

import ast
import difflib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtl_jax import algorithms, fields, files, models, processes
from mtl_jax.config import named
from mtl_jax.config.fields import FIELDS, ConfigDict
from mtl_jax.errors import UserError, check_choice

MODES = ('train', 'evaluate', 'features', 'export')
FLAGS = ('config', 'workdir', 'mode', 'checkpoint', 'init_from', 'weights',
         'images', 'invert', 'help', *processes.FLAGS)
_WITHOUT_VALUE = ('invert', 'help')
# Where the value of a variable that is not set would mean something else.
_NOT_EMPTY = ('checkpoint', 'config', 'images', 'init_from', 'weights')
_ALONE = ('features', 'export')  # modes of one process
_NETWORK, _METHOD = 'config.model.name', 'config.method.name'
_WORDS = {'true': True, 't': True, '1': True,
          'false': False, 'f': False, '0': False}
# Fields that flags of their own set: where the first weights come from.
_STARTS = ('init_from', 'weights')
# A number below zero is a value.
_FLAG = re.compile('--?[A-Za-z]')


class Command(NamedTuple):
  """What a command line asks for."""

  mode: str  # of MODES
  config: Any  # ConfigDict
  workdir: str
  checkpoint: str | None  # workdir of the run to evaluate; None: of weights
  help: bool = False  # then config may be None, and the rest says nothing
  images: str | None = None  # folder of a user's own, for features
  invert: bool = False  # exchange black and white of these images
  place: Any = None  # processes.Place; None: one process


def parse(argv, saved_config):
  """Returns the Command of a command line.

  Args:
    argv: flags, without the program's name.
    saved_config: path of a workdir -> the config of its run, which is taken
      where --checkpoint is given and --config is not.

  Raises:
    UserError: a flag or a value is wrong.
  """
  given, changes = _split(argv)
  if 'help' in given:
    config = named.load(given['config']) if 'config' in given else None
    return Command('', config, '', None, True)
  mode, checkpoint = given.get('mode', 'train'), given.get('checkpoint')
  _check_mode(mode, given)
  place = processes.place(given)
  if place and mode in _ALONE:
    raise UserError(f'--mode={mode} takes one process: leave out --'
                    + ', --'.join(processes.VARIABLES))
  if 'config' in given:
    config = named.load(given['config'])
  elif checkpoint is not None:
    config = saved_config(checkpoint)
  else:
    raise UserError('--config is missing: name one, such as '
                    '--config=quickstart, or a file')
  for name in _STARTS:
    if name in given:
      config[name] = given[name]
  # The network decides which other fields its section has.
  for name, text in sorted(changes, key=lambda change: change[0] != _NETWORK):
    override(config, name, text)
  if checkpoint is None:
    _check_starts(config, mode)
  _note_command_line(config, [name for name, _ in changes])
  # An empty --workdir, such as an unset variable's, is not this folder.
  workdir = given.get('workdir') or _default_workdir(mode, given, config)
  return Command(mode, config, workdir, checkpoint, False,
                 given.get('images'), 'invert' in given, place)


def _check_mode(mode, given):
  """Raises UserError for an unknown mode, and flags that are of another one."""
  check_choice('--mode', mode, MODES)
  for name in ('images', 'invert'):
    if name in given and mode != 'features':
      raise UserError(f'--{name} is for --mode=features')
  if 'invert' in given and 'images' not in given:
    raise UserError('--invert is for --images, a folder of your own')
  if mode == 'train':
    if 'checkpoint' in given:
      raise UserError('--checkpoint is for '
                      + ', '.join(f'--mode={other}' for other in MODES[1:])
                      + ': a run is resumed with --workdir')
    return
  if 'init_from' in given:
    raise UserError('--init_from is for training: a run is tested with '
                    '--checkpoint')
  if 'weights' in given and ('checkpoint' in given or mode == 'export'):
    raise UserError('--weights names a file and --checkpoint the workdir of a '
                    'run: name one' if mode != 'export' else
                    '--weights is for other modes: --mode=export writes the '
                    'weights of a run, --checkpoint')
  if 'checkpoint' not in given and ('weights' not in given or mode == 'export'):
    or_file = ' or --weights, a file' * (mode != 'export')
    raise UserError(f'--checkpoint is missing: --mode={mode} needs the workdir '
                    f'of a run{or_file}')


def _check_starts(config, mode):
  """Makes the paths of weights whole, so that any folder can resume the run."""
  starts = [name for name in _STARTS if config.get(name)]
  if len(starts) > 1 and mode == 'train':
    raise UserError('--init_from and --weights are both set: weights can come '
                    'from one of them')
  for name in starts:
    config[name] = str(files.at(config[name]))


def _note_command_line(config, names):
  """Keeps the names of overridden fields, for config/settings.py."""
  if 'recipe' in config and names:
    earlier = config.recipe.command_line
    config.recipe.command_line = tuple(dict.fromkeys([
        *earlier, *(name.removeprefix('config.') for name in names)]))


def _default_workdir(mode, given, config):
  """Returns the folder for the files of a command that names none."""
  if mode != 'train':
    if 'checkpoint' not in given:
      raise UserError('--workdir is missing: name a folder for the results, as '
                      '--weights is of no run')
    return os.path.join(given['checkpoint'], (
        'export' if mode == 'export' else
        'images' if 'images' in given else 'evaluate'))
  name = pathlib.Path(named.split(given['config'])[0]).stem
  method = pathlib.Path(config.method.name).stem
  return os.path.join('runs', f'{name}_{method}')


def _split(argv):
  """Returns flags by name, and the changes [(field, text or None)]."""
  given, changes, rest = {}, [], list(argv)
  for text in rest:
    if not text.isascii() and text != os.fsencode(text).decode(
        'utf-8', 'replace'):
      raise UserError(f'{ascii(text)} is no text in UTF-8: rename the file or '
                      'folder, or type the value again')
  while rest:
    flag = rest.pop(0)
    name, assigned, text = flag.lstrip('-').partition('=')
    if not flag.startswith('-'):
      raise UserError(f'{flag!r} is not a flag: fields are set by '
                      '--config.field=value')
    if not assigned:
      follows = (rest and not _FLAG.match(rest[0])
                 and name not in _WITHOUT_VALUE)
      text = rest.pop(0) if follows else None
    name = 'help' if flag == '-h' else name
    negated = name.removeprefix('no')
    if name.startswith('config.'):
      changes.append((name, text))
    elif negated.startswith('config.') and text is None:
      changes.append((negated, 'false'))
    elif name not in FLAGS:
      raise UserError(f'--{name} is unknown: ' + _nearest(name, FLAGS, '--'))
    elif text is not None and name == 'invert':
      raise UserError(f'--{name} is {text!r}: it takes no value')
    elif text == '' and name in _NOT_EMPTY:
      raise UserError(f'--{name} is empty: write --{name}=value, or leave it '
                      'out')
    elif text is None and name not in _WITHOUT_VALUE:
      raise UserError(f'--{name} has no value: write --{name}=value')
    else:
      given[name] = text
  return given, changes


def _nearest(name, names, before=''):
  near = difflib.get_close_matches(name, names, 1)
  if near:
    return f'did you mean {before}{near[0]}?'
  return 'allowed are ' + ', '.join(before + known for known in sorted(names))


def override(config, name, text):
  """Sets the field `name` ('config.train.ways') from text, in place.

  Another network takes the defaults of its own fields.

  Raises:
    UserError: unknown field, text that is no value of its type, or another
      method, which would lack its recipe.
  """
  *sections, last = name.split('.')[1:]
  if last == 'source' or sections[:1] == ['recipe']:
    raise UserError(f'{name} says where the settings come from: it follows '
                    'from --config=NAME[:METHOD]')
  section = config
  for i, part in enumerate([*sections, last]):
    if not isinstance(section, Mapping) and not hasattr(section, 'to_dict'):
      raise UserError(f'{name} is unknown: '
                      f'config.{".".join(sections[:i])} is a single value')
    if part not in section:
      raise UserError(f'{name} is unknown: ' + (
          _of_another(sections, part) or _nearest(part, list(section))))
    if i < len(sections):
      section = section[part]
  value = section[last]
  if hasattr(value, 'to_dict'):
    raise UserError(f'{name} is a section: set one of its fields, '
                    + ', '.join(sorted(value)))
  new = _value(name, _type(config, name, value), text)
  if name == _NETWORK and new != value:
    config.model = ConfigDict({**models.defaults(new), 'name': new})
  elif name == _METHOD and new != value:
    algorithms.find(new)
    raise UserError(f'{name} is {value!r} in this config: another method '
                    'comes with its own recipe, so name it after the config, '
                    f'--config=NAME:{new}')
  else:
    section[last] = new


def _of_another(sections, field):
  """Says which methods or networks have a field; '' where none has."""
  if sections == ['method']:
    owners = [name for name, method in algorithms.METHODS.items()
              if field in method.OPTIONS]
    way = 'a method is chosen by --config=NAME:{}'
  else:
    owners = [name for name in models.MODELS
              if sections == ['model'] and field in models.defaults(name)]
    way = 'choose one by --config.model.name={}'
  return owners and (f'it is a field of {", ".join(owners)}; '
                     + way.format(owners[0]))


def _type(config, name, value):
  """Returns the type of a field, where nothing declares it that of its value.

  Methods declare their fields; networks, which may be a user's own, do not.
  """
  section, _, last = name.removeprefix('config.').partition('.')
  if section == 'method' and last != 'name':
    declared = algorithms.find(config.method.name).OPTIONS.get(last)
  elif section == 'model':
    declared = None
  else:
    declared = dict(fields.flat(FIELDS)).get(name.removeprefix('config.'))
  return declared.type if declared else type(value)


def _value(name, kind, text):
  """Returns the value that a text stands for."""
  wrong = UserError(f'{name} is {text!r}: must be of type {kind.__name__}')
  if kind is bool:
    if text is None:
      return True
    if text.lower() not in _WORDS:
      raise wrong
    return _WORDS[text.lower()]
  if text is None:
    raise UserError(f'{name} has no value: write --{name}=value')
  if kind is str:
    return text
  if kind is tuple:
    return _tuple(text)
  if text == 'None':
    return None
  try:
    return _literal(text) if kind is type(None) else kind(text)
  except ValueError:
    raise wrong from None


def _tuple(text):
  """Reads (1, 2), 1,2 and names without quotes: svm,centroid."""
  value = _literal(text)
  if value == text:
    text = text.strip()
    if text[:1] + text[-1:] in ('()', '[]'):
      text = text[1:-1]
    *parts, last = (part.strip(' \'"') for part in text.split(','))
    # An item that is missing within is kept, for a check to refuse.
    return (*parts, last) if last else tuple(parts)
  return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _literal(text):
  """Returns the number, tuple .. that a text is in Python, or the text."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    return text
