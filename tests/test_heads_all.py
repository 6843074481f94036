"""What every head in HEADS must do beyond the numerics of its own."""

import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAST_COMPILES, ROOT
from head_tasks import diagnose, draw_task, fit, products

from mtl_jax import config, fields
from mtl_jax.errors import UserError
from mtl_jax.heads import HEADS, balance, find
from mtl_jax.solvers import positive

heads = pytest.mark.parametrize('head', HEADS.values(), ids=HEADS.keys())


def test_all_names_are_there():
  """Fails if a name in configs and result files is lost."""
  assert set(HEADS) == {'centroid', 'gradient', 'logistic', 'ridge', 'svm'}


@pytest.mark.parametrize('size', [1, 25, 256, 257])
def test_inverses_of_many_matrices_are_numpys(size):
  """Fails if a form of the inverse is wrong, or mixes tasks up."""
  x = np.random.default_rng(size).normal(size=(3, size, 40))
  matrices = 10 * x @ x.swapaxes(1, 2) + np.eye(size)
  got = jax.jit(jax.vmap(positive.inverse))(jnp.asarray(matrices, jnp.float32))
  np.testing.assert_allclose(got, np.linalg.inv(matrices), atol=2e-3)


# Two threads, as on two cores, whatever this machine has.
@pytest.mark.parametrize('devices', [1, 2])
def test_heads_of_many_tasks_do_not_wait_for_each_other(devices):
  """Fails if the threads of one head's program can wait for another's."""
  program = subprocess.run(
      [sys.executable, '-c', ALL_AT_ONCE, str(devices)], env={
          **os.environ, 'PJRT_NPROC': '2', 'PYTHONPATH': str(ROOT),
          'XLA_FLAGS': FAST_COMPILES}, timeout=240)
  assert program.returncode == 0


ALL_AT_ONCE = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from mtl_jax import devices, fields
from mtl_jax.heads import HEADS
from mtl_jax.solvers import positive

devices.split_cpu(int(sys.argv[1]))
mesh = devices.mesh_of_tasks(None)
along = jax.sharding.PartitionSpec(devices.AXIS)
labels = np.repeat(np.arange(5), 5)

def fit(support):
  return [head.fit(support, labels, 5, **fields.defaults(head.OPTIONS))
          for head in (*HEADS.values(), *HEADS.values())]

for swept in (256, 0):
  positive._SWEPT = swept
  step = jax.jit(jax.shard_map(
      lambda support, swept=swept: jax.vmap(fit)(support), mesh=mesh,
      in_specs=along, out_specs=along, check_vma=False))
  for seed in range(5):
    jax.block_until_ready(step(jnp.asarray(
        np.random.default_rng(seed).normal(size=(200, 25, 64)), jnp.float32)))
"""


def test_a_head_of_the_users_own_is_found_by_its_path(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text('from mtl_jax.heads.ridge import *\n')
  assert find(str(path)).OPTIONS == HEADS['ridge'].OPTIONS


def test_a_file_without_what_a_head_needs_is_refused(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text('OPTIONS = {}\n')
  with pytest.raises(UserError, match='has no fit: it must define OPTIONS'):
    find(str(path))


@heads
def test_options_are_those_of_fit(head):
  """Fails if a second default differs from a config's value."""
  given = inspect.signature(head.fit).parameters
  name = head.__name__.split('.')[-1]
  in_config = config.base_config().heads[name].to_dict()
  defaults = fields.defaults(head.OPTIONS)
  assert defaults == in_config
  for option, default in defaults.items():
    assert given[option].kind == inspect.Parameter.KEYWORD_ONLY
    assert given[option].default == default


@heads
def test_diagnostics_takes_what_fit_takes(head):
  """Fails if residuals are those of other options than the fitted ones."""
  x, y, _ = draw_task(3, 4, dim=16, scale=5.0)
  defaults = fields.defaults(head.OPTIONS)
  for option, value in defaults.items():
    if isinstance(value, (bool, str)) or option == 'steps':
      continue
    options = {**defaults, option: 1.5 * value}
    params = fit(head, x, y, 3, **options)
    for residual in diagnose(head, params, x, y, **options).values():
      assert abs(residual) < 1e-3


@heads
def test_half_precision_features_are_computed_in_float32(head):
  """Fails if a Gram matrix is computed in bfloat16."""
  x, y, query = draw_task(3, 4, dim=16)
  x = jnp.asarray(x, 'bfloat16')
  options = fields.defaults(head.OPTIONS)
  half = fit(head, x, y, 3, **options)
  whole = fit(head, x.astype('float32'), y, 3, **options)
  for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
    assert a.dtype == 'float32'
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert head.logits(half, query).shape == (12, 3)


@heads
def test_gradient_in_features_is_finite_and_not_zero(head):
  """Fails if no backbone can be trained through the head."""
  x, y, query = draw_task(3, 4, dim=32)

  def loss(x):
    out = head.logits(head.fit(x, y, 3), query)
    return -jnp.sum(jax.nn.log_softmax(out)[:, 0])

  cases = jnp.stack([x, 0 * x, 0 * x + 3.7, jnp.repeat(x[::4], 4, 0)])
  slopes = jax.jit(jax.vmap(jax.grad(loss)))(cases)
  assert np.isfinite(slopes).all() and np.abs(slopes[0]).max() > 1e-4


@heads
def test_clusters_are_learned(head):
  """Fails if a head is at chance on well separated classes."""
  x, y, query = draw_task(5, 5, queries=20)
  out = head.logits(fit(head, x, y, 5), query)
  assert np.mean(np.argmax(out, 1) == np.repeat(np.arange(5), 20)) > 0.9


@heads
def test_more_images_of_some_classes_do_not_lower_the_accuracy(head):
  """Fails if a class is never predicted because others have more images."""
  tasks, queries = 40, 5
  x, y, query = (np.stack(part) for part in zip(*(
    draw_task(5, 8, dim=64, queries=queries, seed=seed)
    for seed in range(tasks)), strict=True))
  rows = np.r_[:16, 16, 24, 32]  # 8, 8, 1, 1 and 1 images
  y = y[0, rows]

  @jax.jit
  @jax.vmap
  def logits(x, query):
    params = head.fit(x, y, 5, example_weights=balance(y, 5))
    return head.logits(params, query)

  def accuracy(rows):
    right = logits(x[:, rows], query).argmax(-1) == np.repeat(range(5), queries)
    return np.mean(right, 1)

  # One image that is repeated tells no more than one: no second compilation.
  change = accuracy(rows) - accuracy(8 * y)
  assert change.mean() > -1.96 * change.std(ddof=1) / tasks**0.5


def test_weights_of_equal_classes_are_exactly_one():
  for ways, shots in [(5, 1), (1623, 19)]:
    labels = np.repeat(np.arange(ways), shots)
    assert (balance(labels, ways) == 1).all()


@heads
def test_all_products_have_the_highest_precision(head):
  """Fails if units with short products make a head or its gradient wrong."""
  x, y, query = draw_task(3, 2, dim=8)
  params = jax.eval_shape(lambda: head.fit(x, y, 3))
  alike = {'example_weights': balance(y, 3)}
  total = jax.jit(lambda x: sum(map(jnp.sum, jax.tree.leaves(
    head.fit(x, y, 3, **alike)))))
  found = [p for function, at in (
    (jax.grad(total), x), (jax.grad(jax.checkpoint(total)), x),
    (lambda p: head.logits(p, query), params),
    (lambda p: head.diagnostics(p, x, y, **alike), params),
  ) for p in products(jax.make_jaxpr(function)(at).jaxpr)]
  assert len(found) > 4
  assert set(found) == {(jax.lax.Precision.HIGHEST,) * 2}
