"""Numbers are right as XLA compiles by default, too, as it does for users.

`make test` tells XLA to compile quickly instead (tests/conftest.py).
"""

import os
import subprocess
import sys

import pytest
from conftest import COMPILER, ROOT


@pytest.mark.parametrize('name', [
    'evaluate', 'heads', 'heads_all', 'heads_closed', 'heads_svm',
    'inner_loop', 'methods', 'models', 'mtl', 'ntk_equivalence', 'ntk_kernels',
    'ntk_predictors', 'resnet12', 'step', 'two_floats'])
def test_numbers_are_right_without_flags_of_the_compiler(name):
  done = subprocess.run(
      [sys.executable, '-m', 'pytest', f'tests/test_{name}.py'], cwd=ROOT,
      env={**os.environ, 'XLA_FLAGS': '', COMPILER: ''}, text=True,
      capture_output=True)
  assert done.returncode == 0, done.stdout
