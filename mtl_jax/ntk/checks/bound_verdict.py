"""What the gaps of a grid say about the bound: C, slopes, and a verdict.

For each cell of the grid, r = gap / (lambda tau + 1/L), gap the mean over
draws; C is the largest r, the smallest constant with which the bound holds on
the grid. Intervals are 95% bootstrap intervals over draws, all cells together.
Four checks make the verdict:

  bounded   C grows by less than a tenth when L is doubled a last time, and
            when the smallest lambda tau above 0 is added.
  depth     at lambda tau = 0 the gap falls about like 1/L or faster: its
            log-log slope over L >= 2 is below -0.9.
  jointly   along a path with lambda tau about 1/L the gap falls like
            (lambda tau + 1/L) or faster: slope above 0.9.
  signal    at lambda tau = 0 the gap falls faster than what it is a gap
            between: the slope of gap / |F_ANIL - A Y'|, with A Y' the new head
            alone, is below -0.2. Deep kernels forget their input, and in the
            end everything that training adds vanishes like 1/L: a gap that
            only shares in this would satisfy the other three.

A check holds when the whole interval is on the right side; the bound is
confirmed when all four hold.
"""

import numpy as np

RESAMPLES = 1_000
GROWTH, SLOPE, JOINT, SIGNAL = 1.1, -0.9, 0.9, -0.2
_INTERVAL = (2.5, 97.5)


def judge(options, cells):
  """Returns the statistics of a grid and the verdict, as JSON's types.

  Args:
    options: bound.Options; its times start with 0.
    cells: of each draw {depth: {time: numbers}}.
  """
  times, depths = np.array(options.times), np.array(options.depths)
  get = lambda name: np.array([
      [[draw[str(depth)][str(t)][name] for depth in options.depths]
       for t in options.times] for draw in cells], float)  # None is NaN
  gap, trained = get('gap'), get('trained')
  resamples = _resample(len(cells), options.seed)
  gaps, parts = (_averages(resamples, each) for each in (gap, trained))
  scale = times[:, None] + 1 / depths
  ratio, relative = gaps / scale, gaps / parts
  path = _path(times, depths)
  checks = _checks(times, depths, ratio, gaps, relative, scale, path)
  smallest, highest = (np.unravel_index(f(ratio[0]), ratio[0].shape)
                       for f in (np.argmin, np.argmax))
  at = lambda where: {'time': float(times[where[0]]),
                      'depth': int(depths[where[1]]),
                      'ratio': float(ratio[0][where])}
  per_point = np.sqrt((gap ** 2).mean(0)) / np.sqrt(cells_points(options))
  mean = lambda name: get(name).mean(0).tolist()
  result = {
      'times': times.tolist(), 'depths': depths.tolist(), 'draws': len(cells),
      'gap': gaps[0].tolist(), 'gap_interval': _interval(gaps).tolist(),
      'gap_largest': gap.max(0).tolist(),
      'gap_rms_per_point': per_point.tolist(),
      'trained': parts[0].tolist(), 'relative': relative[0].tolist(),
      'relative_interval': _interval(relative).tolist(),
      'ratio': ratio[0].tolist(),
      'C': {**_with_interval(ratio.max((1, 2))),
            'largest_draw': float((gap / scale).max())},
      'tight': at(highest), 'slack': at(smallest),
      'C_to_depth': [{'depth': int(depth), **_with_interval(
          ratio[:, :, :i + 1].max((1, 2)))} for i, depth in enumerate(depths)],
      'C_from_time': [{'time': float(t), **_with_interval(
          ratio[:, i:].max((1, 2)))} for i, t in enumerate(times)],
      'slopes_in_depth': _slopes(gaps, depths, 2),
      'slopes_in_time': _slopes(gaps.swapaxes(1, 2)[:, :, 1:], times[1:], 2),
      'path': [[float(times[i]), int(depths[j])] for i, j in path],
      'checks': checks, 'holds': all(c['holds'] for c in checks.values())}
  for name in ('anil_error', 'mtl_error'):
    result[name] = mean(name)
  for name in ('anil_condition', 'mtl_condition'):
    result[name] = np.median(get(name), 0).tolist()
  for name in ('anil_accuracy', 'mtl_accuracy'):
    if np.isfinite(get(name)).all():
      result[name] = mean(name)
  return result


def _checks(times, depths, ratio, gaps, relative, scale, path):
  """Returns {check: {holds, text, numbers}}; row 0 is the sample itself."""
  every = ratio.max((1, 2))
  shallow = ratio[:, :, depths * 2 <= depths[-1]].max((1, 2))
  deeper = _with_interval(every / shallow)
  without = np.delete(ratio, 1, 1).max((1, 2))
  smaller = _with_interval(every / without)
  from_two = depths >= min(2, depths[-2])
  depth = _with_interval(_fit(depths[from_two], gaps[:, 0, from_two]))
  signal = _with_interval(_fit(depths[from_two], relative[:, 0, from_two]))
  rows, columns = np.array(path).T
  joint = _with_interval(_fit(scale[rows, columns], gaps[:, rows, columns]))
  below = lambda number, limit: bool(number['high'] < limit)
  grown = (f'C grows by a factor of {_show(deeper)} from L <= '
           f'{depths[depths * 2 <= depths[-1]][-1]} to L <= {depths[-1]}, and '
           f'of {_show(smaller)} by adding lambda tau = {times[1]:g}')
  return {
      'bounded': {
          'holds': below(deeper, GROWTH) and below(smaller, GROWTH),
          'text': f'{grown}; below {GROWTH} is needed',
          'depth': deeper, 'time': smaller},
      'depth': {
          'holds': below(depth, SLOPE), 'slope': depth,
          'text': f'at lambda tau = 0 the gap falls like L to the power '
                  f'{_show(depth)}; below {SLOPE} is needed'},
      'jointly': {
          'holds': bool(joint['low'] > JOINT), 'slope': joint,
          'text': 'with lambda tau about 1/L it goes like (lambda tau + 1/L) '
                  f'to the power {_show(joint)}; above {JOINT} is needed'},
      'signal': {
          'holds': below(signal, SIGNAL), 'slope': signal,
          'text': "relative to what training adds to ANIL's predictions it "
                  f'falls like L to the power {_show(signal)}, from '
                  f'{relative[0, 0, 0]:.3g} to {relative[0, 0, -1]:.3g}; below '
                  f'{SIGNAL} is needed'}}


def cells_points(options):
  """Returns m, the number of points on the test query."""
  return options.queries * (1 if options.dataset == 'random' else options.ways)


def text(result):
  """Returns the lines of a summary, the verdict first."""
  options, c = result['options'], result['C']
  control = options['control']
  lines = [
      f'verdict: the bound is {"" if result["holds"] else "NOT "}confirmed'
      + (f' (control: {control})' if control != 'none' else ''),
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
  """Returns (header, rows): one row a cell of the grid."""
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
  return '\n'.join([*text(result).splitlines(), '', line(header),
                    line(['---'] * len(header)), *map(line, rows), ''])


def _resample(draws, seed):
  """Returns weights [1 + RESAMPLES, draws]; row 0 has all draws once."""
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(draws, [1 / draws] * draws, RESAMPLES)
  return np.concatenate([np.ones((1, draws)), counts]) / draws


def _averages(resamples, values):
  """Returns [1 + RESAMPLES, ..], means of values [draws, ..]."""
  return np.tensordot(resamples, values, 1)


def _interval(values):
  """Returns [2, ..], the ends of the intervals."""
  return np.percentile(values[1:], _INTERVAL, axis=0)


def _with_interval(values):
  low, high = _interval(values)
  return {'value': float(values[0]), 'low': float(low), 'high': float(high)}


def _show(number):
  return f'{number["value"]:.3g} ({number["low"]:.3g} .. {number["high"]:.3g})'


def _fit(x, y):
  """Returns the least-squares log-log slopes of y [.., n] over x [n]."""
  x = np.log(x) - np.log(x).mean()
  return np.log(y) @ x / (x @ x)


def _slopes(values, x, points):
  """Returns local log-log slopes: for each row of values [B, rows, n]."""
  found = []
  for row in range(values.shape[1]):
    found.append([])
    for i in range(len(x) - points + 1):
      part = slice(i, i + points)
      found[-1].append({
          'from': float(x[part][0]), 'to': float(x[part][-1]),
          **_with_interval(_fit(x[part], values[:, row, part]))})
  return found


def _path(times, depths):
  """Returns cells (i, j) with times[i] the largest one up to 1 / depths[j]."""
  return [(int(np.searchsorted(times, 1 / depth * (1 + 1e-9), 'right')) - 1, j)
          for j, depth in enumerate(depths)]
