"""Measures the structure of the package: `python tests/house.py [FOLDER]`.

Rooms are folders or files of mtl_jax; an import goes downward, from a floor
to one below it or within a floor.
"""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = 'mtl_jax'
COMMANDS = ('main', 'adapt', 'report', 'data.__main__', 'config.__main__',
            'ntk.__main__', 'ntk.checks')
# From the top floor down. The longest name that fits is a module's room.
FLOORS = (('', *COMMANDS), ('run',), ('config',), ('evaluate',), ('train',),
          ('algorithms',), ('heads',), ('models', 'solvers', 'ntk'), ('data',),
          ('devices', 'compile_cache', 'heap', 'processes', 'stopping',
           'writers'),
          ('files', 'unpickle', 'weight_files'),
          ('fields', 'fonts', 'registry', 'progress'),
          ('early', 'errors', 'program'))
MAY_TAKE_CONFIG = (*COMMANDS, 'run', 'config')
LONGEST_FUNCTION = 60


def modules(root=ROOT):
  """Returns name within the package -> (path, syntax tree)."""
  trees = {}
  for path in sorted((root / PACKAGE).rglob('*.py')):
    parts = path.relative_to(root / PACKAGE).with_suffix('').parts
    name = '.'.join(p for p in parts if p != '__init__')
    trees[name] = path, ast.parse(path.read_text(encoding='utf-8'))
  return trees


def edges(trees):
  """Returns the pairs (module, module that it imports)."""
  pairs = set()
  for name, (_, tree) in trees.items():
    for node in ast.walk(tree):
      targets = []
      if isinstance(node, ast.ImportFrom) and node.module:
        targets = [f'{node.module}.{alias.name}' for alias in node.names]
      elif isinstance(node, ast.Import):
        targets = [alias.name for alias in node.names]
      for target in targets:
        inside = target.removeprefix(PACKAGE).removeprefix('.')
        if target.split('.')[0] != PACKAGE:
          continue
        if inside not in trees:  # a name in a module
          inside = inside.rpartition('.')[0]
        if inside in trees and inside != name:
          pairs.add((name, inside))
  return pairs


def room(name, rooms):
  """Returns the longest of `rooms` that holds a module, or None."""
  holding = [r for r in rooms if name == r or (r and name.startswith(f'{r}.'))]
  return max(holding, key=len, default=None)


def floor(name):
  """Returns the number of a module's floor, 0 at the top."""
  rooms = {r: number for number, of in enumerate(FLOORS) for r in of}
  return rooms[room(name, rooms)]


def functions(trees):
  """Yields (module, name, lines, parameters) of every function."""
  for name, (_, tree) in trees.items():
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        arguments = node.args
        yield (name, node.name, node.end_lineno - node.lineno + 1,
               [a.arg for a in (*arguments.posonlyargs, *arguments.args,
                                *arguments.kwonlyargs)])


def measure(root=ROOT):
  """Returns what the structure is judged by: name -> list of cases."""
  trees = modules(root)
  pairs = edges(trees)
  lines = {name: len(path.read_text(encoding='utf-8').splitlines())
           for name, (path, _) in trees.items()}
  longest = max(lines, key=lines.get)
  return {
      'modules': sorted(trees),
      'import edges': sorted(pairs),
      'upward import edges': sorted(
          pair for pair in pairs if floor(pair[0]) > floor(pair[1])),
      'longest file': [f'{longest}: {lines[longest]} lines'],
      f'functions above {LONGEST_FUNCTION} lines': sorted(
          f'{module}.{function}: {length} lines'
          for module, function, length, _ in functions(trees)
          if length > LONGEST_FUNCTION),
      'files below run/ that take a whole config': sorted({
          module for module, _, _, parameters in functions(trees)
          if 'config' in parameters
          and room(module, MAY_TAKE_CONFIG) is None}),
  }


def main():
  """Prints the counts, and the cases where there should be none."""
  root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
  for what, cases in measure(root).items():
    print(f'{what}: {cases[0] if what == "longest file" else len(cases)}')
    if what not in ('modules', 'import edges', 'longest file'):
      for case in cases:
        print(f'  {" -> ".join(case) if isinstance(case, tuple) else case}')


if __name__ == '__main__':
  main()
