"""Every method in two and in four processes: the same step as in one."""

import jax
import numpy as np
import of_processes
import pytest
import test_step

WAYS = 'device-pmap', 'host-jit', 'host-pmap'


@pytest.fixture(scope='module', params=[2, 4])
def result(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp('processes')
  of_processes.start(folder, request.param, test_step.METHOD_NAMES, WAYS)
  return of_processes.read(folder)


@pytest.mark.parametrize('method', test_step.METHOD_NAMES)
def test_processes_do_what_one_does_for_every_method(method, result):
  """Fails if a process draws other tasks, or sums only its own."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(
      x, y, rtol=1e-9, atol=1e-10), test_step.one_in_float64(method).variables,
               result['steps'][method])


@pytest.mark.parametrize('way', WAYS)
def test_processes_compile_and_feed_in_every_way(way, result):
  """Fails if pmap, or pixels of the host, give another step."""
  config = test_step.small_config('mtl')
  state, _ = test_step.run(*test_step.make(config, 1), [None] * 3)
  test_step.assert_same(state.variables, result['ways'][way])
