"""Figures of the bound between ANIL's and MTL's predictions."""

import numpy as np

from mtl_jax.ntk.checks.check import write_figures

_SHOWN = 5  # curves in a figure at most


def draw(result, folder):
  """Draws the figures of bound.json; returns [(file name, caption)]."""
  return write_figures(folder, [
      ('bound_depth.png', _figure(_depth, result),
       'Gap against depth L; dashed: 1/L.'),
      ('bound_time.png', _figure(_time, result),
       'Gap against lambda tau, the rate times time of the inner loop; '
       'dashed: linear. The left-most points are lambda tau = 0.'),
      ('bound_surface.png', _figure(_surface, result),
       'gap / (lambda tau + 1/L): its largest value is C, the smallest '
       'constant with which the bound holds on the grid.'),
      ('bound_growth.png', _figure(_growth, result),
       'C as the grid is enlarged, towards deep networks and towards small '
       'lambda tau; and the gap relative to what training adds to '
       "ANIL's predictions.")], dpi=110)


def _figure(function, result):
  # Imported late: it takes a second and is needed here only.
  import matplotlib.figure

  figure = matplotlib.figure.Figure(layout='constrained')
  function(figure, result)
  options = result['options']
  control, network = options['control'], options.get('network', 'dense')
  figure.suptitle(options['dataset'] + (
      f', control: {control}' if control != 'none' else '') + (
          f', convolutional, {network} pooling' if network != 'dense' else ''))
  return figure


def _depth(figure, result):
  figure.set_size_inches(6.5, 4.5)
  axes = figure.subplots()
  depths = np.array(result['depths'])
  for i in _spread(len(result['times'])):
    _curve(axes, depths, result, (i, slice(None)),
           rf'$\lambda\tau$ = {result["times"][i]:g}')
  axes.plot(depths, result['gap'][0][0] / depths * depths[0], 'k--', lw=1)
  axes.set(xlabel='hidden layers L', ylabel='gap', xscale='log', yscale='log')
  axes.set_xticks(depths, depths)
  axes.minorticks_off()
  _finish(axes)


def _time(figure, result):
  figure.set_size_inches(6.5, 4.5)
  axes = figure.subplots()
  times = np.array(result['times'])
  # A log axis has no 0: it is drawn at a third of the smallest time above 0.
  places = np.where(times > 0, times, times[1] / 3)
  for j in _spread(len(result['depths'])):
    _curve(axes, places, result, (slice(None), j),
           f'L = {result["depths"][j]}')
  deepest = np.array(result['gap'])[:, -1]
  middle = len(times) // 2
  guide = deepest[middle] * times[1:] / times[middle]
  seen = guide > deepest.min() / 2
  axes.plot(times[1:][seen], guide[seen], 'k--', lw=1)
  axes.set(xlabel=r'$\lambda\tau$', ylabel='gap', xscale='log', yscale='log')
  axes.set_xticks(places, [f'{t:g}' for t in times])
  axes.minorticks_off()
  _finish(axes)


def _surface(figure, result):
  ratio = np.array(result['ratio'])
  figure.set_size_inches(1.6 + 0.75 * ratio.shape[1],
                         1.4 + 0.5 * ratio.shape[0])
  axes = figure.subplots()
  shown = axes.imshow(ratio, cmap='viridis', origin='lower', aspect='auto',
                      vmin=0)
  for (i, j), value in np.ndenumerate(ratio):
    axes.text(j, i, f'{value:.2g}', ha='center', va='center',
              color='black' if value > 0.6 * ratio.max() else 'white')
  axes.set_xticks(range(ratio.shape[1]), result['depths'])
  axes.set_yticks(range(ratio.shape[0]), [f'{t:g}' for t in result['times']])
  axes.set(xlabel='hidden layers L', ylabel=r'$\lambda\tau$')
  figure.colorbar(shown, label=r'gap / ($\lambda\tau$ + 1/L)')


def _growth(figure, result):
  figure.set_size_inches(11, 3.6)
  left, middle, right = figure.subplots(1, 3)
  places = [t if t > 0 else result['times'][1] / 3 for t in result['times']]
  for axes, name, x in ((left, 'C_to_depth', result['depths']),
                        (middle, 'C_from_time', places)):
    value, low, high = (np.array([row[field] for row in result[name]])
                        for field in ('value', 'low', 'high'))
    axes.plot(x, value, 'o-', ms=3)
    axes.fill_between(x, low, high, alpha=0.2)
    axes.set(xscale='log', ylim=(0, None), ylabel='C')
    axes.grid(alpha=0.3)
  left.set(xlabel='largest L on the grid')
  middle.set(xlabel=r'smallest $\lambda\tau$ on the grid (right-most: 0)')
  middle.invert_xaxis()
  relative = np.array(result['relative'])
  for i in _spread(len(result['times'])):
    right.plot(result['depths'], relative[i], 'o-', ms=3,
               label=rf'$\lambda\tau$ = {result["times"][i]:g}')
  right.set(xlabel='hidden layers L', ylabel='gap / trained part of ANIL',
            xscale='log', yscale='log')
  for axes in (left, right):
    axes.set_xticks(result['depths'], result['depths'])
    axes.tick_params(axis='x', which='minor', bottom=False)
  _finish(right)


def _curve(axes, x, result, part, label):
  gap = np.array(result['gap'])[part]
  low, high = np.array(result['gap_interval'])[(slice(None), *part)]
  line, = axes.plot(x, gap, 'o-', ms=3, label=label)
  axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)


def _spread(size):
  """Returns at most _SHOWN indices, ends included."""
  return sorted(set(np.linspace(0, size - 1, min(size, _SHOWN)).round()
                    .astype(int).tolist()))


def _finish(axes):
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
