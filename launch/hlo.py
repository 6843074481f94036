"""Reads the text of an optimised program of XLA: work, traffic, collectives.

Each operation of the program is counted once per pass of the loops around it.
A fusion reads what its computation uses of each operand and writes its result;
what is within it moves nothing. Neither does what a TPU keeps on its core, but
for its way from and to memory. Products are those of convolutions and of
matrices; the rest is small beside them.
"""

import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r'\b(pred|bf16|[sufc]\d+)(?:e\d+m\d+\w*)?\[([\d,]*)\]'
                    r'(\{[^}]*\})?')
_COMPUTATION = re.compile(r'(?P<entry>ENTRY )?%(?P<name>\S+) \(.*\) -> .*{$')
_INSTRUCTION = re.compile(r'\s+(?P<root>ROOT )?%(?P<name>\S+) = (?P<rest>.+)$')
_CALL = re.compile(r'(?P<op>[a-z][a-z0-9-]*)\((?P<operands>.*)')
_NAME = re.compile(r'%([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')
_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
# What names or arranges arrays, and moves nothing by itself.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
         'after-all', 'partition-id', 'replica-id', 'copy-start', 'slice-start',
         'opt-barrier', 'while', 'conditional', 'call', 'async-start',
         'all-reduce-start', 'all-gather-start', 'collective-permute-start'}
_NO_WORK = re.compile('custom_call_target="(?:ConcatBitcast|AllocateBuffer)"')
_SLICES = ('gather', 'dynamic-slice', 'slice')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
               'collective-permute')


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  op: str
  shapes: tuple  # (kind, dims, layout) of each array of the result
  operands: tuple[str, ...]
  text: str
  root: bool
  number: int  # of a parameter; -1 for others


class Operation(NamedTuple):
  """One operation of a program, as often as it is run."""

  name: str
  flops: float  # of all passes
  traffic: float  # bytes read and written in all passes
  source: str = ''  # what of the traced program it is, by XLA's metadata
  written: float = 0.  # bytes of its result, in all passes


class Collective(NamedTuple):
  """A kind of operation in which all devices take part."""

  name: str
  count: int
  size: int  # bytes of all results on a device


class Program(NamedTuple):
  """What the text of a program says."""

  operations: list[Operation]
  collectives: list[Collective]  # the largest first
  unknown_loops: int  # whose passes the text does not say; they count once


def read(text):
  """Returns the Program of an optimised program's text."""
  entry, computations = _computations(text)
  operations, collectives, unknown = [], {}, 0
  waiting = [(entry, 1)]
  while waiting:
    name, passes = waiting.pop()
    lines = computations[name]
    for line in lines.values():
      called = [n for n in _called(line) if n in computations]
      if line.op == 'while':
        trips = _TRIPS.search(line.text)
        unknown += trips is None
        waiting += [(n, passes * int(trips[1] if trips else 1))
                    for n in called]
      elif line.op in ('conditional', 'call', 'async-start'):
        waiting += [(n, passes) for n in called]
      elif line.op not in _FREE and not _NO_WORK.search(line.text):
        inside = computations[called[0]] if line.op == 'fusion' else None
        operations.append(Operation(
            line.name, passes * _flops(line, lines, inside),
            passes * _traffic(line, lines, inside),
            (_SOURCE.search(line.text) or [''] * 2)[1],
            passes * _size(line.shapes[:1])))
      kind = _collective(line.op)
      if kind:
        collectives.setdefault(kind, []).append(passes * _size(line.shapes))
  return Program(operations, sorted(
      (Collective(name, len(sizes), sum(sizes))
       for name, sizes in collectives.items()), key=lambda c: -c.size), unknown)


def _computations(text):
  """Returns the name of the entry, and name -> name -> Instruction."""
  computations, entry, lines = {}, None, {}
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header:
      lines = computations.setdefault(header['name'], {})
      entry = header['name'] if header['entry'] else entry
      continue
    found = _INSTRUCTION.match(line)
    if found:
      shapes, rest = _result(found['rest'])
      call = _CALL.match(rest)
      if call:
        operands, others = _operands(call['operands'])
        lines[found['name']] = Instruction(
            found['name'], call['op'], shapes, operands, others,
            bool(found['root']), int(call['operands'].partition(')')[0])
            if call['op'] == 'parameter' else -1)
  return entry, computations


def _closing(text):
  """Returns where the parenthesis that opens a text is closed."""
  depth = 0
  for i, char in enumerate(text):
    depth += (char == '(') - (char == ')')
    if not depth:
      return i
  return len(text)


def _result(text):
  """Splits 'f32[2]{0} add(..)' or '(f32[2], u8[0]) sort(..)'."""
  end = _closing(text) + 1 if text[0] == '(' else text.index(' ')
  return tuple(_ARRAY.findall(text[:end])), text[end:].strip()


def _operands(text):
  """Returns the names in 'a, b), attributes', and the attributes."""
  end = _closing('(' + text) - 1
  return tuple(_NAME.findall(text[:end])), text[end + 1:]


def _called(line):
  """Returns the names of the computations that an instruction runs."""
  return re.findall(r'(?:calls|body|to_apply|true_computation|'
                    r'false_computation)=%([\w.\-]+)', line.text) + [
                        name for names in re.findall(
                            r'branch_computations=\{([^}]*)\}', line.text)
                        for name in _NAME.findall(names)]


def _collective(op):
  """Returns the kind of a collective at the place where it counts, or None.

  One that is split counts at its end, but an all-reduce at its beginning, where
  its result has the shape of what is reduced.
  """
  kind = op.removesuffix('-start').removesuffix('-done')
  if kind not in COLLECTIVES:
    return None
  return None if op.endswith(
      '-done' if kind == 'all-reduce' else '-start') else kind


def _dims(shape):
  return [int(n) for n in shape[1].split(',') if n]


def _size(shapes):
  """Returns the bytes of arrays."""
  bits = {'pred': 8, 'bf16': 16}
  return sum(math.prod(_dims(shape)) * (
      bits.get(shape[0]) or int(shape[0][1:])) // 8 for shape in shapes)


def _traffic(line, lines, inside):
  """Returns the bytes that an instruction reads and writes."""
  read = 0
  for i, name in enumerate(line.operands):
    size = _size(_in_memory(lines[name].shapes)) if name in lines else 0
    users = _users(inside, i) if inside else (
        [line] if i == 0 and line.op in _SLICES else [])
    if users and all(user.op in _SLICES for user in users):
      size = min(size, sum(_size(user.shapes) for user in users))
    read += size
  written = _size(_in_memory(line.shapes))
  if line.op.endswith('-done'):  # its operand names what goes in and out
    source = lines.get(lines[line.operands[0]].operands[0], line)
    return written + bool(_in_memory(source.shapes)) * _size(line.shapes)
  root = next((x for x in (inside or {}).values() if x.root), line)
  if root.op == 'dynamic-update-slice':  # in place
    update = (inside or lines).get(root.operands[1])
    return 2 * _size(update.shapes) if update else written
  return read + written


def _in_memory(shapes):
  """Leaves out what a TPU keeps on its core, in another space than 0."""
  return [shape for shape in shapes if 'S(' not in shape[2]]


def _users(inside, number):
  """Returns what uses a parameter in a fused computation."""
  names = {x.name for x in inside.values()
           if x.op == 'parameter' and x.number == number}
  return [x for x in inside.values() if names & set(x.operands)]


def _flops(line, lines, inside):
  """Returns the products and sums of an instruction."""
  if inside:
    return sum(_flops(x, inside, None) for x in inside.values())
  shape = lambda i: _dims(lines[line.operands[i]].shapes[0])
  result = _dims(line.shapes[0]) if line.shapes else []
  if line.op == 'dot':
    contracted = _CONTRACTED.search(line.text)
    dims = map(int, filter(None, contracted[1].split(',')))
    left = shape(0)
    return 2 * math.prod(result) * math.prod(left[i] for i in dims)
  labels = _LABELS.search(line.text)
  if not labels or line.op not in ('convolution', 'custom-call'):
    return 0
  output, kernel = result, shape(1)
  if 'convBackwardInput' in line.text:  # of (gradient, kernel)
    output = shape(0)
  elif 'convBackwardFilter' in line.text:  # of (images, gradient)
    output, kernel = shape(1), result
  products = math.prod(output) * math.prod(kernel) // kernel[
      labels[2].index('o')]
  if line.op == 'convolution':
    for axis in filter(str.isdigit, labels[1]):
      # Each two of a value, a weight and a pixel fix the third: a kernel as
      # wide as the images, over one pixel, meets padding everywhere else.
      value, weight, pixel = (
          dims[names.index(axis)] for dims, names in zip(
              (result, kernel, shape(0)), (labels[3], labels[2], labels[1]),
              strict=True))
      products = products // (value * weight) * min(
          value * weight, value * pixel, weight * pixel)
  return 2 * products
