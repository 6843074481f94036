"""Builds a wheel and an sdist as a user does, from a copy of the sources."""

import shutil
import subprocess
import sys
import tempfile

from conftest import ROOT

BUILD = '''
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools puts its own arguments there
build_meta.build_wheel(out)
build_meta.build_sdist(out)
'''


def build(out):
  """Writes both into a folder. A copy, as setuptools leaves files behind."""
  with tempfile.TemporaryDirectory() as copy:
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
      shutil.copy(ROOT / name, copy)
    for name in ('mtl_jax', 'configs'):
      shutil.copytree(ROOT / name, f'{copy}/{name}',
                      ignore=shutil.ignore_patterns('__pycache__'))
    done = subprocess.run([sys.executable, '-c', BUILD, out], cwd=copy,
                          text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
