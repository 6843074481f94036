"""Figures of finite_width.py."""

import numpy as np

from mtl_jax.ntk.checks.check import write_figures

_LABELS = {'anil': 'ANIL', 'mtl': 'MTL', 'difference': 'ANIL - MTL',
           'kernel': 'tangent kernel at the start'}


def draw(result, folder):
  """Draws the figures; returns [(file name, caption)]."""
  return write_figures(folder, [
      ('finite_width_distance.png', _distance(result), 'Distance of trained '
       'networks to the closed form, root mean square over draws of the '
       'initial values; dotted: 1/sqrt(m) through the widest.'),
      ('finite_width_gap.png', _gap(result), 'The gap of networks of finite '
       'width, mean and two standard errors over draws; dotted: the closed '
       'form.')])


def _distance(result):
  import matplotlib.figure

  widths = np.array(result['options']['widths'])
  depths = result['depths']
  figure = matplotlib.figure.Figure(
      (4.5 * len(depths), 4.2), layout='constrained')
  for axes, (depth, at_depth) in zip(
      np.ravel(figure.subplots(1, len(depths), sharey=True)), depths.items(),
      strict=True):
    for i, (name, label) in enumerate(_LABELS.items()):
      values = np.array(at_depth['rms'][name])
      slope = at_depth['slopes'][name]['slope']
      axes.loglog(widths, values, '.-', color=f'C{i}',
                  label=f'{label}: {slope:.2f}')
      axes.loglog(widths, values[-1] * np.sqrt(widths[-1] / widths), ':',
                  color=f'C{i}', linewidth=0.8)
    axes.set(title=f'{depth} hidden layers', xlabel='width m')
    axes.legend(fontsize=8, title='exponent from 256 on', title_fontsize=8,
                loc='lower center', bbox_to_anchor=(0.5, 1.08), ncols=2)
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('root mean square distance\nto the closed form')
  return figure


def _gap(result):
  import matplotlib.figure

  widths = np.array(result['options']['widths'])
  figure = matplotlib.figure.Figure((5.5, 3.6), layout='constrained')
  axes = figure.subplots()
  for i, (depth, at_depth) in enumerate(result['depths'].items()):
    gap = at_depth['gap']
    axes.errorbar(widths, gap['mean'], 2 * np.array(gap['error']), fmt='.-',
                  color=f'C{i}', capsize=2, label=f'{depth} hidden layers')
    axes.axhline(gap['closed'], color=f'C{i}', linestyle=':')
  axes.set(xscale='log', xlabel='width m', ylabel='|ANIL - MTL|',
           ylim=(0, None))
  axes.legend(fontsize=8)
  axes.grid(alpha=0.3)
  return figure
