"""The bound between ANIL's and MTL's predictions, as measured and judged."""

import json

import numpy as np
import pytest
from etils import epath

from mtl_jax import ntk
from mtl_jax.errors import UserError
from mtl_jax.ntk import __main__ as cli
from mtl_jax.ntk.checks import CHECKS, bound, bound_verdict, report, tasks
from mtl_jax.ntk.precision import precision

OPTIONS = {'times': (0., 0.01, 0.03, 0.1, 1.), 'depths': (1, 2, 4, 8, 16),
           'draws': 4, 'tasks': 4, 'queries': 6, 'support': 5}
GRID = bound.settle(OPTIONS)
CHECK = CHECKS['bound']


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  return epath.Path(tmp_path_factory.mktemp('bound'))


def result_of(folders, control):
  return CHECK.run({**OPTIONS, 'control': control}, folders / control)


def checks(result):
  return {name: check['holds'] for name, check in result['checks'].items()}


def test_the_bound_is_confirmed_on_random_tasks(folders):
  """Fails if the paper's claim is not confirmed on its own ground."""
  result = result_of(folders, 'none')
  assert checks(result) == dict.fromkeys(
      ('bounded', 'depth', 'jointly', 'signal'), True)
  assert result['holds'] and 'is confirmed' in CHECK.summary(result)
  assert result['C']['value'] == np.max(result['ratio'])
  assert len(CHECK.table(result)[1]) == 25
  for name, caption in CHECK.figures(result, folders / 'none'):
    assert (folders / 'none' / name).read_bytes()[1:4] == b'PNG' and caption
  assert json.loads((folders / 'none' / 'bound.json').read_text())['holds']
  assert '| 0.03 | 16 |' in (folders / 'none' / 'bound.md').read_text()


@pytest.mark.parametrize('control', ['independent_heads', 'union'])
def test_the_bound_is_not_confirmed_for_a_wrong_mtl(folders, control):
  """Fails if the verdict cannot be negative."""
  result = result_of(folders, control)
  assert not result['holds'] and not checks(result)['signal']
  assert 'NOT confirmed' in CHECK.summary(result)
  assert CHECK.verdict(result) == (
      f'the bound is NOT confirmed (control: {control})')
  if control == 'independent_heads':  # nothing of the body is shared
    np.testing.assert_allclose(result['relative'], 1, rtol=1e-9)


def numbers(drawn):
  drawn = drawn._asdict()
  drawn.pop('test_query_y')
  return drawn


def test_gaps_are_those_of_the_predictors(folders):
  """Fails if an index into the shared kernels is wrong."""
  result_of(folders, 'none')
  cells = json.loads((folders / 'none/cells/draw_0001.json').read_text())
  drawn = bound.make_source(GRID).draw(1)
  for depth, time in ((2, 0.1), (2, 0.)):
    same = {**numbers(drawn), 'depth': depth, 'test_time': GRID.test_time,
            'dtype': 'float64'}
    anil = ntk.predict('anil', inner_time=time, **same)
    mtl = ntk.predict('mtl', **same)
    cell = cells[str(depth)][str(time)]
    np.testing.assert_allclose(
        cell['gap'], np.linalg.norm(
            np.asarray(anil.values) - np.asarray(mtl.values)), rtol=1e-8)
    np.testing.assert_allclose(cell['anil_condition'], anil.condition)
    np.testing.assert_allclose(cell['mtl_condition'], mtl.condition)


def test_gaps_of_convolutional_kernels_are_those_of_the_predictors():
  """Fails if images are reshaped wrongly, or K(x, x) is not 1 on average."""
  o = GRID._replace(dims=9, tasks=2, queries=3, support=2)
  drawn = bound.make_source(o).draw(0)
  kernel = bound.make_kernel('flat', (3, 3, 1))
  with precision('float64'):
    gap = bound.predictions(drawn, 2, (0.1,), 1., 'none', kernel)
    everything = np.asarray(bound._inputs(drawn))
    size = np.mean(np.diag(ntk.convolutional(
        3 * everything.reshape(-1, 3, 3, 1), depth=2, pool='flat').nngp))

  def scaled(x, z=None):
    images = [a if a is None else 3 * a.reshape(-1, 3, 3, 1) for a in (x, z)]
    return ntk.Kernels(*(k / size for k in ntk.convolutional(
        *images, depth=2, pool='flat')))

  same = {**numbers(drawn), 'test_time': 1., 'dtype': 'float64',
          'kernel': scaled}
  for got, method, extra in ((gap.anil[0], 'anil', {'inner_time': 0.1}),
                             (gap.mtl, 'mtl', {})):
    np.testing.assert_allclose(
        np.asarray(got), ntk.predict(method, **same, **extra).values,
        atol=1e-9)


def test_images_are_averaged_over_squares():
  """Fails if pixels of other rows, columns or channels are averaged."""
  x = np.random.default_rng(0).normal(size=(2, 3, 4 * 4 * 2))
  got = tasks._averaged(x, (4, 4, 2), tasks._shape((4, 4, 2), 2))
  images = x.reshape(2, 3, 4, 4, 2)
  expected = np.stack([
      images[:, :, i:i + 2, j:j + 2].mean((2, 3)) for i in (0, 2)
      for j in (0, 2)], 2).reshape(2, 3, -1)
  expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
  np.testing.assert_allclose(got, expected)
  np.testing.assert_allclose(  # only scaled
      tasks._averaged(x, (4, 4, 2), tasks._shape((4, 4, 2), 0)),
      x / np.linalg.norm(x, axis=-1, keepdims=True))
  with pytest.raises(UserError, match='--side: 3 does not divide images of 4'):
    tasks._shape((4, 4, 2), 3)


def test_union_control_is_mtl_on_query_and_support():
  """Fails if the control's query is not query and support together."""
  drawn = bound.make_source(GRID).draw(0)
  with precision('float64'):
    gap = bound.predictions(drawn, 2, GRID.times[:1], 1., 'union')
  both = {f'query_{part}': np.concatenate(
      [getattr(drawn, f'query_{part}'), getattr(drawn, f'support_{part}')], 1)
      for part in 'xy'}
  expected = ntk.predict(
      'mtl', **{**numbers(drawn), **both}, depth=2, test_time=1.,
      dtype='float64').values
  np.testing.assert_allclose(np.asarray(gap.mtl), expected, atol=1e-10)


def test_independent_heads_share_no_gradient_in_the_body():
  """Fails if the control removes what wide networks do not lose."""
  rng = np.random.default_rng(0)
  m, d = 20_000, 4
  x, z = (tasks._unit(rng.normal(size=(3, d))) for _ in range(2))
  weights, v, w = rng.normal(size=(m, d)), *rng.normal(size=(2, m))
  on = lambda x: (x @ weights.T > 0) * np.sqrt(2 / m)
  # <df/dW, dg/dW> of f = v . relu(W x) sqrt(2 / m), g with w in place of v
  product = lambda v, w: (on(x) * v) @ (on(z) * w).T * (x @ z.T)
  shared = np.asarray(ntk.fully_connected(x, z, depth=1).body)
  np.testing.assert_allclose(product(v, v), shared, atol=0.03)
  np.testing.assert_allclose(product(v, w), 0, atol=0.03)


def test_a_stopped_run_resumes_from_its_cells(folders, tmp_path):
  """Fails if stored cells are computed again, or missing ones left out."""
  whole = result_of(folders, 'none')
  folder = epath.Path(tmp_path)
  for file in (folders / 'none').iterdir():
    if file.is_dir():
      (folder / 'cells').mkdir()
      for cell in file.iterdir():
        (folder / 'cells' / cell.name).write_text(cell.read_text())
    else:
      (folder / file.name).write_bytes(file.read_bytes())
  file = folder / 'cells' / 'draw_0002.json'
  cells = json.loads(file.read_text())
  cells['8']['0.1']['gap'] += 4.
  del cells['2']['0.0'], cells['16']
  file.write_text(json.dumps(cells))
  resumed = CHECK.run(OPTIONS, folder)
  expected = np.array(whole['gap'])
  expected[3, 3] += 1.  # mean over four draws
  np.testing.assert_allclose(resumed['gap'], expected, rtol=1e-9)
  with pytest.raises(UserError, match='--out: .* holds --test_time=1.0'):
    CHECK.run({**OPTIONS, 'test_time': 2.}, folder)
  file.write_text('{')
  with pytest.raises(UserError, match='draw_0002.json is damaged'):
    CHECK.run(OPTIONS, folder)


def synthetic(law, noise=0.05, draws=20):
  """Returns cells whose gap follows `law`(time, depth) up to noise."""
  rng = np.random.default_rng(0)
  rest = dict.fromkeys(
      ('anil_error', 'mtl_error', 'anil_condition', 'mtl_condition'), 1.)
  rest |= {'anil_accuracy': None, 'mtl_accuracy': None, 'trained': 1.}
  return [{str(depth): {str(t): {
      **rest, 'gap': law(t, depth) * np.exp(noise * rng.normal())}
      for t in GRID.times} for depth in GRID.depths} for _ in range(draws)]


@pytest.mark.parametrize('draws', [3, 5, 20])
def test_intervals_of_few_draws_hold_what_they_say(draws):
  """Fails if an interval over 5 draws holds the mean 84 times in 100."""
  rng = np.random.default_rng(draws)
  held = 0
  for seed in range(500):
    values = bound_verdict._averages(
        bound_verdict._resample(draws, seed), rng.normal(2., 0.5, draws))
    found = bound_verdict._with_interval(values, bound_verdict._stretch(draws))
    held += found['low'] < 2 < found['high']
  assert 0.92 < held / 500 < 0.98


@pytest.mark.parametrize('law, failing', [
    (lambda t, depth: 3 * (t + 1 / depth), set()),
    (lambda t, depth: t + depth ** -0.5, {'bounded', 'depth', 'jointly'}),
    (lambda t, depth: t ** 0.5 + 1 / depth, {'bounded', 'jointly'}),
    (lambda t, depth: 1., {'bounded', 'depth', 'jointly', 'signal'})])
def test_verdict_finds_a_law_that_breaks_the_bound(law, failing):
  """Fails if a gap of another law in depth or time is confirmed."""
  result = bound_verdict.judge(GRID, synthetic(law))
  assert {name for name, good in checks(result).items() if not good} == failing
  if not failing:
    assert result['C']['low'] < 3.2 and result['C']['value'] > 3
    assert result['slopes_in_depth'][0][-1]['low'] < -1 < (
        result['slopes_in_depth'][0][-1]['high'])


def test_draws_are_tasks_of_their_own_and_come_again():
  """Fails if a resumed run sees other tasks, or all draws are the same."""
  source = bound.make_source(GRID)
  first, again, other = (source.draw(i) for i in (0, 0, 1))
  np.testing.assert_array_equal(first.query_x, again.query_x)
  assert np.abs(first.query_x - other.query_x).max() > 0.1
  np.testing.assert_allclose(np.linalg.norm(first.support_x, axis=-1), 1)


def test_points_in_their_span_have_the_same_inner_products():
  """Fails if the few coordinates of images have other kernels."""
  x = np.random.default_rng(0).normal(size=(2, 3, 50))
  few = tasks._in_their_span(x)
  assert few.shape == (2, 3, 6)
  products = lambda x: np.einsum('aid,bjd->aibj', x, x)
  np.testing.assert_allclose(products(few), products(x), atol=1e-12)


@pytest.mark.parametrize('flags, message', [
    (['bound', '--times=0.1,1'], '--times: 0 and two larger'),
    (['bound', '--times=a'], "--times: invalid float,.. value: 'a'"),
    (['bound', '--depths=1,2,3'], '--depths: three or more'),
    (['bound', '--control=no'], "--control is 'no': allowed are none"),
    (['bound', '--dataset=no'], "--dataset is 'no': allowed are random"),
    (['bound', '--times=-1,0,1'], '--times has -1.0: must be at least 0'),
    (['bound', '--network=flat'], '--network: flat needs images'),
    (['bound', '--side=7'], '--side is 7: only --network=flat'),
    (['bound', '--side=7', '--dataset=glyphs'], '--side is 7: only'),
    (['bound', '--shared=2'], '--shared: 2.0 is not between 0 and 1'),
    (['bound', '--draws=1'], '--draws is 1: must be at least 3'),
    (['bound', '--test_time=-1'], '--test_time is -1.0: must be at least 0'),
    (['finite_width', '--long=no'], "--long: invalid true|false value: 'no'"),
    (['equivalence', '--shots=0'], '--shots is 0: must be at least 1'),
    (['bound', '--nothing=1'], 'unrecognized arguments: --nothing=1'),
    (['report', '--checks=x'], "--checks is 'x': allowed are bound"),
    (['nothing'], "the command is 'nothing': allowed are bound")])
def test_command_line_says_what_is_wrong(flags, message, capsys, tmp_path):
  """Fails if a wrong flag ends in a traceback or leaves a folder."""
  if flags != ['nothing']:
    flags = [*flags, f'--out={tmp_path / "made"}']
  assert cli.main(flags) == 2
  error = capsys.readouterr().err
  assert error.startswith('mtl_jax.ntk: error: ' + message)
  assert error.count('\n') == 1
  assert not (tmp_path / 'made').exists()


def test_report_is_one_page_and_leaves_out_what_is_not_there(
    folders, tmp_path, monkeypatch):
  """Fails if figures are missing, or a missing data set is an error."""
  result_of(folders, 'none')
  monkeypatch.setenv('MTL_JAX_DATA', str(tmp_path))
  monkeypatch.delenv('MTL_JAX_MANUAL', raising=False)
  parts = [report.Part('Random', 'bound', 'none', OPTIONS),
           report.Part('Images', 'bound', 'b', {'dataset': 'omniglot'})]
  monkeypatch.setattr(report, 'parts', lambda options: parts)
  results = report.run({'checks': ('bound',)}, folders)
  page = (folders / 'report.html').read_text()
  assert page.count('<img ') == 4 == page.count('data:image/png;base64')
  assert 'http' not in page.replace('https://github.com/brendenlake', '')
  assert 'verdict: the bound is confirmed' in page
  assert 'Random</a>: the bound is confirmed</li>' in page
  assert results['Images']['summary'].startswith('left out: ')
  assert results['Images']['holds'] is None and results['Random']['holds']
  lines = report.summary(results)
  assert 'Images: left out' in lines
  assert 'Random: the bound is confirmed' in lines
