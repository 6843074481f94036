"""Reads hostile files one after another, in a process of their own."""

import json
import resource
import sys


def run(read, file, harmless, cases):
  """Prints case -> result of all cases, and the memory all took, in MiB.

  Args:
    read: (path) -> result that JSON can hold.
    file: path that each case is written to.
    harmless: bytes that are read first, so that imports do not count.
    cases: name -> bytes.
  """
  file.write_bytes(harmless)
  read(file)
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  results, before = {}, peak()
  for case, content in cases.items():
    file.write_bytes(content)
    print(case, file=sys.stderr, flush=True)  # the last one before a crash
    results[case] = read(file)
  print(json.dumps({'results': results, 'memory': peak() - before}))
