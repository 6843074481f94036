"""Figures of equivalence.py."""

import numpy as np

from mtl_jax.ntk.checks import bilevel
from mtl_jax.ntk.checks.check import write_figures


def draw(result, folder):
  """Draws the figures of equivalence.json; returns [(file name, caption)]."""
  return write_figures(folder, [
      ('equivalence_steps.png', _steps(result), 'Through the inner steps the '
       'gradient converges with the square of the rate at which the head '
       'does; the plain gradient with the rate itself.'),
      ('equivalence_failures.png', _failures(result), 'Where the outer loss '
       'is not the inner objective on the same data: difference and cosine '
       'of the bi-level gradient to the plain one, and its cosine to the '
       'gradient of joint training on all images of the task.')])


def _steps(result):
  import matplotlib.figure

  counts = result['options']['counts']
  figure = matplotlib.figure.Figure((9, 3.6), layout='constrained')
  for axes, name in zip(figure.subplots(1, 2, sharey=True),
                        ('ridge', 'logistic'), strict=True):
    for dtype, style in (('float32', '--'), ('float64', '-')):
      for kind, colour, label in (
          ('plain', 'C1', 'plain, at the head so far'),
          ('through', 'C0', 'bi-level, through the steps')):
        values = [v['mean'] for v in result[dtype]['steps'][name][kind]]
        axes.loglog(counts, values, style, color=colour, marker='.',
                    label=f'{label}, {dtype}')
    axes.set(title=name, xlabel='inner steps')
    axes.grid(alpha=0.3)
  figure.axes[0].set_ylabel('relative difference to\nthe plain gradient at w*')
  figure.axes[0].legend(fontsize=7)
  return figure


def _failures(result):
  import matplotlib.figure

  cases = result['float64']['cases']
  labels = [case.label for case in bilevel.CASES if case.fails][::-1]
  figure = matplotlib.figure.Figure((9, 3.8), layout='constrained')
  left, right = figure.subplots(1, 2, sharey=True)
  for axes, kinds in ((left, ('difference',)),
                      (right, ('cosine', 'cosine_to_joint'))):
    for i, kind in enumerate(kinds):
      axes.barh(np.arange(len(labels)) - 0.35 * i,
                [cases[label][kind]['mean'] for label in labels],
                0.7 / len(kinds), color=f'C{i}', label=kind.replace('_', ' '))
    axes.grid(alpha=0.3, axis='x')
    axes.legend(fontsize=8, loc='lower center', ncols=2,
                bbox_to_anchor=(0.5, 1.))  # no corner is free of bars
  left.set_yticks(range(len(labels)), labels)
  left.set_xlabel('|bi-level - plain| / |plain|')
  right.set_xlabel('cosine')
  return figure
