"""What the gaps of a grid say about the bound: C, slopes, and a verdict.

For each cell of the grid, r = gap / (lambda tau + 1/L), gap the mean over
draws; C is the largest r, the smallest constant with which the bound holds on
the grid. Intervals are 95% bootstrap intervals over draws, all cells together,
and wider by `_stretch`. Four checks make the verdict:

  bounded   C grows by less than a tenth when L is doubled a last time, and
            when the smallest lambda tau above 0 is added.
  depth     at lambda tau = 0 the gap falls about like 1/L or faster: its
            log-log slope over L >= 2 is below -0.9.
  jointly   along a path with lambda tau about 1/L the gap falls like
            (lambda tau + 1/L) or faster: slope above 0.9.
  signal    at lambda tau = 0 the gap falls faster than what training adds:
            the slope of gap / |F_ANIL - A Y'|, with A Y' the new head alone,
            is below -0.2. Deep kernels forget their input, and in the end
            everything that training adds vanishes like 1/L. A gap that only
            follows this fall would satisfy the other three checks.

A check holds when the whole interval is on the right side; the bound is
confirmed when all four hold.
"""

from typing import NamedTuple

import numpy as np

from mtl_jax.evaluate.interval import t_quantile

RESAMPLES = 1_000
GROWTH, SLOPE, JOINT, SIGNAL = 1.1, -0.9, 0.9, -0.2
_INTERVAL = (2.5, 97.5)


class _Grid(NamedTuple):
  """Averages over draws; row 0 has all draws, the others R resamples."""

  stretch: float  # of intervals
  times: np.ndarray  # [J], values of lambda tau
  depths: np.ndarray  # [L]
  gap: np.ndarray  # [1 + R, J, L]
  trained: np.ndarray  # [1 + R, J, L], what training adds to ANIL
  relative: np.ndarray  # [1 + R, J, L], gap / trained
  ratio: np.ndarray  # [1 + R, J, L], gap / scale
  scale: np.ndarray  # [J, L], lambda tau + 1/L
  path: list  # cells (j, l) with lambda tau about 1/L


def judge(options, cells):
  """Returns the statistics of a grid and the verdict, as JSON's types.

  Args:
    options: of the check, as bound.settle returns them; times start with 0.
    cells: of each draw {depth: {time: numbers}}.
  """
  get = lambda name: np.array([
      [[draw[str(depth)][str(t)][name] for depth in options.depths]
       for t in options.times] for draw in cells], float)  # None is NaN
  gap, points = get('gap'), _num_points(options)
  grid = _grid(options, gap, get('trained'))
  checks = _checks(grid)
  return {
      'times': grid.times.tolist(), 'depths': grid.depths.tolist(),
      'draws': len(cells), 'gap_largest': gap.max(0).tolist(),
      'gap_rms_per_point':
          (np.sqrt((gap ** 2).mean(0)) / np.sqrt(points)).tolist(),
      **_statistics(grid), **_constant(grid, gap), **_quality(get),
      'checks': checks, 'holds': all(c['holds'] for c in checks.values())}


def _grid(options, gap, trained):
  times, depths = np.array(options.times), np.array(options.depths)
  resamples = _resample(len(gap), options.seed)
  gaps, parts = (_averages(resamples, each) for each in (gap, trained))
  scale = times[:, None] + 1 / depths
  return _Grid(_stretch(len(gap)), times, depths, gaps, parts, gaps / parts,
               gaps / scale, scale, _path(times, depths))


def _statistics(grid):
  """Returns averages with intervals, and slopes."""
  times, depths, gap = grid.times, grid.depths, grid.gap
  return {
      'gap': gap[0].tolist(),
      'gap_interval': _interval(gap, grid.stretch).tolist(),
      'trained': grid.trained[0].tolist(),
      'relative': grid.relative[0].tolist(),
      'relative_interval': _interval(grid.relative, grid.stretch).tolist(),
      'ratio': grid.ratio[0].tolist(),
      'slopes_in_depth': _slopes(gap, depths, 2, grid.stretch),
      'slopes_in_time': _slopes(gap.swapaxes(1, 2)[:, :, 1:], times[1:], 2,
                                grid.stretch),
      'path': [[float(times[i]), int(depths[j])] for i, j in grid.path]}


def _constant(grid, gap):
  """Returns C, where it is taken, and C of the parts of the grid."""
  times, depths, ratio = grid.times, grid.depths, grid.ratio
  of = lambda values: _with_interval(values, grid.stretch)

  def cell(which):
    i, j = np.unravel_index(which(ratio[0]), ratio[0].shape)
    return {'time': float(times[i]), 'depth': int(depths[j]),
            'ratio': float(ratio[0][i, j])}

  return {
      'C': {**of(ratio.max((1, 2))),
            'largest_draw': float((gap / grid.scale).max())},
      'tight': cell(np.argmax), 'slack': cell(np.argmin),
      'C_to_depth': [{'depth': int(depth), **of(
          ratio[:, :, :i + 1].max((1, 2)))} for i, depth in enumerate(depths)],
      'C_from_time': [{'time': float(t), **of(
          ratio[:, i:].max((1, 2)))} for i, t in enumerate(times)]}


def _quality(get):
  """Returns errors, condition numbers, and accuracies where there are any."""
  result = {}
  for name in ('anil_error', 'mtl_error'):
    result[name] = get(name).mean(0).tolist()
  for name in ('anil_condition', 'mtl_condition'):
    result[name] = np.median(get(name), 0).tolist()
  for name in ('anil_accuracy', 'mtl_accuracy'):
    if np.isfinite(get(name)).all():
      result[name] = get(name).mean(0).tolist()
  return result


def _checks(grid):
  """Returns {check: {'holds', 'text', numbers}}."""
  return {'bounded': _bounded(grid), 'depth': _depth(grid),
          'jointly': _jointly(grid), 'signal': _signal(grid)}


def _bounded(grid):
  depths, ratio = grid.depths, grid.ratio
  every = ratio.max((1, 2))
  shallow = depths * 2 <= depths[-1]
  deeper = _with_interval(every / ratio[:, :, shallow].max((1, 2)),
                          grid.stretch)
  smaller = _with_interval(every / np.delete(ratio, 1, 1).max((1, 2)),
                           grid.stretch)
  return {
      'holds': _below(deeper, GROWTH) and _below(smaller, GROWTH),
      'text': f'C grows by a factor of {_show(deeper)} from L <= '
              f'{depths[shallow][-1]} to L <= {depths[-1]}, and of '
              f'{_show(smaller)} by adding lambda tau = {grid.times[1]:g}; '
              f'below {GROWTH} is needed',
      'depth': deeper, 'time': smaller}


def _depth(grid):
  slope = _slope_in_depth(grid, grid.gap)
  return {
      'holds': _below(slope, SLOPE), 'slope': slope,
      'text': 'at lambda tau = 0 the gap falls like L to the power '
              f'{_show(slope)}; below {SLOPE} is needed'}


def _jointly(grid):
  rows, columns = np.array(grid.path).T
  slope = _with_interval(_fit(
      grid.scale[rows, columns], grid.gap[:, rows, columns]), grid.stretch)
  return {
      'holds': bool(slope['low'] > JOINT), 'slope': slope,
      'text': 'with lambda tau about 1/L it goes like (lambda tau + 1/L) to '
              f'the power {_show(slope)}; above {JOINT} is needed'}


def _signal(grid):
  relative = grid.relative
  slope = _slope_in_depth(grid, relative)
  return {
      'holds': _below(slope, SIGNAL), 'slope': slope,
      'text': "relative to what training adds to ANIL's predictions it falls "
              f'like L to the power {_show(slope)}, from '
              f'{relative[0, 0, 0]:.3g} to {relative[0, 0, -1]:.3g}; below '
              f'{SIGNAL} is needed'}


def _slope_in_depth(grid, values):
  """Returns the slope at lambda tau = 0 from two layers on."""
  deep = grid.depths >= min(2, grid.depths[-2])
  return _with_interval(_fit(grid.depths[deep], values[:, 0, deep]),
                        grid.stretch)


def _below(number, limit):
  return bool(number['high'] < limit)


def _num_points(options):
  """Returns m, the number of points on the test query."""
  return options.queries * (1 if options.dataset == 'random' else options.ways)


def verdict(result):
  """Returns the verdict in one line."""
  options = result['options']
  control, network = options['control'], options.get('network', 'dense')
  return (f'the bound is {"" if result["holds"] else "NOT "}confirmed'
          + (f' (control: {control})' if control != 'none' else '')
          + (f' (convolutional kernels, {network} pooling)'
             if network != 'dense' else ''))


def summary(result):
  """Returns the result as lines of text, the verdict first."""
  options, c = result['options'], result['C']
  control = options['control']
  lines = [
      f'verdict: {verdict(result)}',
      f'{result["source"]}; {result["draws"]} draws, lambda-hat tau-hat '
      f'{options["test_time"]:g}, {result["norm"]}',
      f'C = {_show(c)} on average over draws, {c["largest_draw"]:.3g} over all '
      f'of them; tight at lambda tau = {result["tight"]["time"]:g}, L = '
      f'{result["tight"]["depth"]}, slackest (ratio '
      f'{result["slack"]["ratio"]:.2g}) at {result["slack"]["time"]:g}, '
      f'{result["slack"]["depth"]}']
  for name, check in result['checks'].items():
    lines.append(f'  {"yes" if check["holds"] else "NO ":<4}{name:<9}'
                 f'{check["text"]}')
  if control != 'none' and result['checks']['bounded']['holds']:
    lines.append('  The inequality as such holds for this control too, with a '
                 'large C: everything that training adds vanishes with depth.')
  condition = lambda name: (f'{np.min(result[name]):.2g} to '
                            f'{np.max(result[name]):.2g}')
  lines.append(f'condition of Phi: ANIL {condition("anil_condition")}, MTL '
               f'{condition("mtl_condition")}')
  if 'anil_accuracy' in result:
    best = lambda name: np.max(result[name])
    lines.append(f'accuracy on unseen tasks, best of the grid: ANIL '
                 f'{best("anil_accuracy"):.1%}, MTL '
                 f'{best("mtl_accuracy"):.1%}')
  return '\n'.join(lines)


def table(result):
  """Returns (header, rows): one row per cell of the grid."""
  header = ('lambda tau', 'L', 'gap', '95% interval', 'RMS per point',
            'gap / (lambda tau + 1/L)', 'relative gap', 'cond Phi ANIL',
            'cond Phi MTL')
  rows = []
  for i, t in enumerate(result['times']):
    for j, depth in enumerate(result['depths']):
      low, high = (side[i][j] for side in result['gap_interval'])
      rows.append((
          f'{t:g}', str(depth), f'{result["gap"][i][j]:.4g}',
          f'{low:.4g} .. {high:.4g}',
          f'{result["gap_rms_per_point"][i][j]:.4g}',
          f'{result["ratio"][i][j]:.4g}', f'{result["relative"][i][j]:.4g}',
          f'{result["anil_condition"][i][j]:.3g}',
          f'{result["mtl_condition"][i][j]:.3g}'))
  return header, rows


def markdown(result):
  """Returns bound.md: the summary, and the table."""
  header, rows = table(result)
  line = lambda cells: '| ' + ' | '.join(cells) + ' |'
  return '\n'.join([*summary(result).splitlines(), '', line(header),
                    line(['---'] * len(header)), *map(line, rows), ''])


def _resample(draws, seed):
  """Returns weights [1 + RESAMPLES, draws]; row 0 has all draws once."""
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(draws, [1 / draws] * draws, RESAMPLES)
  return np.concatenate([np.ones((1, draws)), counts]) / draws


def _averages(resamples, values):
  """Returns [1 + RESAMPLES, ..], means of values [draws, ..]."""
  return np.tensordot(resamples, values, 1)


def _stretch(draws):
  """Returns how much wider a bootstrap interval of few draws must be.

  Resamples of n draws vary by (n - 1) / n of their variance, and the interval
  of a mean whose variance is estimated has quantiles of Student's t. A
  percentile interval of 5 draws holds 95% of normal means only if it is 1.58
  times as wide (Hesterberg, "What Teachers Should Know About the Bootstrap",
  2015, on its narrowness for small samples).
  """
  return t_quantile(draws - 1) / t_quantile(np.inf) * (
      draws / (draws - 1)) ** 0.5


def _interval(values, stretch):
  """Returns [2, ..], the ends of the intervals; of averages, row 0."""
  ends = np.percentile(values[1:], _INTERVAL, axis=0)
  ends = values[0] + stretch * (ends - values[0])
  # What cannot be negative stays so.
  return np.where(np.min(values, 0) >= 0, np.maximum(ends, 0), ends)


def _with_interval(values, stretch):
  low, high = _interval(values, stretch)
  return {'value': float(values[0]), 'low': float(low), 'high': float(high)}


def _show(number):
  return f'{number["value"]:.3g} ({number["low"]:.3g} .. {number["high"]:.3g})'


def _fit(x, y):
  """Returns the least-squares log-log slopes of y [.., n] over x [n]."""
  x = np.log(x) - np.log(x).mean()
  return np.log(y) @ x / (x @ x)


def _slopes(values, x, points, stretch):
  """Returns local log-log slopes for each row of values [B, rows, n]."""
  parts = [slice(i, i + points) for i in range(len(x) - points + 1)]
  return [[{'from': float(x[part][0]), 'to': float(x[part][-1]),
            **_with_interval(_fit(x[part], values[:, row, part]), stretch)}
           for part in parts] for row in range(values.shape[1])]


def _path(times, depths):
  """Returns cells (i, j) with times[i] the largest one up to 1 / depths[j]."""
  return [(int(np.searchsorted(times, 1 / depth * (1 + 1e-9), 'right')) - 1, j)
          for j, depth in enumerate(depths)]
