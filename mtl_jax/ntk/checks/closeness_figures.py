"""Figures of closeness.py."""

import numpy as np

from mtl_jax.ntk.checks.check import write_figures


def draw(result, folder):
  """Draws the figures of closeness.json; returns [(file name, caption)]."""
  return write_figures(folder, [
      ('closeness_depth.png', _by_depth(result), 'ANIL and MTL from the same '
       'start (solid), two seeds of ANIL (dotted) and two seeds of MTL '
       '(dashed), on the same unseen tasks. Left: ANIL adapts by its own inner '
       'steps; right: both get a new head.'),
      ('closeness_excess.png', _excess(result), 'How much further apart ANIL '
       'and MTL are than two seeds of one method, with 95% intervals over '
       'unseen tasks. At or below 0 they are as close as two seeds.')])


def _by_depth(result):
  import matplotlib.figure

  o = result['options']
  hows = list(dict.fromkeys(p['how'] for p in result['points']))
  figure = matplotlib.figure.Figure((9, 6.4), layout='constrained')
  grid = figure.subplots(2, len(hows), sharex=True, sharey='row',
                         squeeze=False)
  for row, measure in zip(grid, ('agreement', 'distance'), strict=True):
    for axes, how in zip(row, hows, strict=True):
      for i, t in enumerate(o['times']):
        for name, style in (('same start', '.-'), ('two ANILs', ':')):
          axes.plot(o['depths'], _values(result, how, t, measure, name), style,
                    color=f'C{i}', label=f'{t:g}' if style == '.-' else None)
      axes.plot(o['depths'], _values(result, how, o['times'][0], measure,
                                     'two MTLs'), 'k--')
      axes.set_xticks(o['depths'])
      axes.grid(alpha=0.3)
    row[0].set_ylabel(f'{measure}'
                      + (' (total variation)' if measure != 'agreement'
                         else ' of predicted classes'))
  for axes, how in zip(grid[0], hows, strict=True):
    axes.set_title(f'ANIL: {how}; MTL: new head')
  for axes in grid[1]:
    axes.set_xlabel('blocks')
  small = {'fontsize': 8, 'title_fontsize': 8, 'loc': 'upper left'}
  grid[1][0].legend(title='lambda tau', **small)
  grid[1][-1].legend([
      grid[1][-1].plot([], [], style, color='k')[0] for style in
      ('.-', ':', '--')], ['ANIL and MTL', 'two ANILs', 'two MTLs'], **small)
  return figure


def _values(result, how, inner_time, measure, name):
  return [p[measure][name]['mean'] for p in result['points']
          if (p['how'], p['time']) == (how, inner_time)]


def _excess(result):
  import matplotlib.figure

  o = result['options']
  hows = list(dict.fromkeys(p['how'] for p in result['points']))
  figure = matplotlib.figure.Figure((9, 3.6), layout='constrained')
  grid = figure.subplots(1, len(hows), sharey=True, squeeze=False)[0]
  for axes, how in zip(grid, hows, strict=True):
    for i, t in enumerate(o['times']):
      of = [p['excess']['distance'] for p in result['points']
            if (p['how'], p['time']) == (how, t)]
      axes.errorbar(
          np.array(o['depths']) + 0.06 * (i - (len(o['times']) - 1) / 2),
          [v['mean'] for v in of], [v['ci95'] for v in of], fmt='.-',
          capsize=2, color=f'C{i}', label=f'{t:g}')
    axes.axhline(0, color='k', linewidth=0.8)
    axes.set(title=f'ANIL: {how}; MTL: new head', xlabel='blocks')
    axes.set_xticks(o['depths'])
    axes.grid(alpha=0.3)
  grid[0].set_ylabel('distance less that of two seeds')
  grid[0].legend(title='lambda tau', fontsize=8, title_fontsize=8,
                 loc='upper left')
  return figure
