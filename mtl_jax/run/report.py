"""What a run shows: at its start, and at its end its scores and curves."""

import io
import json

import jax

from mtl_jax import files
from mtl_jax.config import settings
from mtl_jax.evaluate import adapters, interval
from mtl_jax.run import metrics, parts
from mtl_jax.run.score import head_of_pixels, split_label

_LABELS = {'untrained': 'untrained backbone', 'raw_pixels': 'raw pixels'}


def describe(config, run, state, weights=''):
  """Returns the lines that a run prints at its start."""
  c, test = config.train, run.splits['test']
  count = sum(x.size for x in jax.tree.leaves(state.variables['params']))
  names = {'train': c.classes}  # of the splits that are used so
  sizes = ', '.join(
      f'{names.get(use, use)} {s.num_classes} classes, {len(s.images)} images'
      for use, s in run.splits.items())
  device = run.mesh.devices.flat[0].device_kind
  to_come = c.max_epochs * run.epoch_steps - int(state.step)
  images = run.meta_batch * c.ways * (c.shots + c.queries)
  return '\n'.join((
      f'{config.method.name} with {config.model.name} on '
      f'{config.data.name}: {count:,} parameters, {run.mesh.size} x {device}',
      f'data: {sizes}' + (', pixels on the host' if parts.place_of_pixels(
          config, run) == 'host' else ''),
      *tested_images({'data': test.name, **test.tested}),
      *['no validation: the last step is tested'] * (
          'validation' not in run.splits),
      f'a step: {run.meta_batch} tasks of {c.ways} ways, {c.shots} + '
      f'{c.queries} images per class; an epoch: {run.epoch_steps} steps; at '
      f'most {c.max_epochs} epochs',
      f'to come: {"at most " * bool(c.stop_patience)}{to_come:,} steps, '
      f'{to_come * images:,} images',
      settings.summary(config), *([weights] if weights else ()),
      starting(state)))


def starting(state):
  """Says at which step a run starts."""
  return f'Resuming at step {int(state.step)}.' if int(
      state.step) else 'Starting.'


def tested_images(result):
  """Returns lines on images that are not tested as those trained on.

  Args:
    result: contents of test.json.
  """
  how = result.get('images')
  if not how or (result['data'] == how['normalised_by']
                 and not how['inverted']):
    return []
  shape, trained = tuple(how['shape']), tuple(how['trained_shape'])
  text = f'  images of {result["data"]}: {shape}'
  if shape != trained:
    text += (f' brought to {trained}, the largest centred part of each '
             'resized by LANCZOS')
  text += ', black and white exchanged' * how['inverted']
  lines = [f'{text}; normalised as those of {how["normalised_by"]}; classes '
           f'compared by {how["classes_compared_by"]}']
  if how['white_background']:
    lines.append(
        '  note: most have a white background, and this run was trained on '
        f'white ink on black: try --config.eval.invert={not how["inverted"]}')
  return lines


def scores(result):
  """Returns the lines that a run prints at its end, from test.json's contents.

  The protocol comes first, then one line per score, baselines included.
  """
  data = result['data']
  if result['trained_on'] != data:
    data += f' (trained on {result["trained_on"]})'
  lines = [
      f'{result["ways"]}-way {result["shots"]}-shot, {result["queries"]} '
      f'queries per class, {result["num_tasks"]} tasks of the '
      f'{result["split"]} classes of {data}; BatchNorm: '
      f'{result["batch_norm"]}; ' + origin(result), *tested_images(result)]
  if result.get('seen_classes'):
    lines.append(f'  {result["seen_classes"]} of these classes were trained '
                 'on: this is no test on unseen classes')
  elif result['split'] == 'validation' and result['trained_on'] == result[
      'data']:
    lines.append('  the best epoch was chosen on these classes: this is no '
                 'test on unseen classes')
  if result.get('training', {}).get('classes', 'train') != 'train':
    lines.append('  trained on training and validation classes, without '
                 'validation')
  if 'C' in result:
    lines.append(f'  C of the logistic head: {result["C"]}, chosen on '
                 'validation tasks')
  if result['support_copies']:
    lines.append(f'  {result["support_copies"]} augmented copies of each '
                 'support image')
  for name, score in result['scores'].items():
    label, shots = split_label(name)
    label = _LABELS.get(label, ('these weights, ' if result.get(
        'weights') else f'{result["method"]}, trained, ') + f'{label} head')
    if name.startswith('raw_pixels') and not adapters.is_head(
        result.get('head')):
      # Another one than that of the other lines.
      label += f', {head_of_pixels(result["heads"])} head'
    label += f' {shots}-shot' if shots else ''
    lines.append(f'  {label:<34} '
                 f'{score["accuracy"]:7.2%} '
                 + interval.text(score['ci95'], '{:.2%}'))
  return '\n'.join(lines + _not_converged(result.get('convergence', {})))


def origin(result):
  """Returns which weights were tested, from test.json's contents."""
  weights = result.get('weights')
  return (f'weights {weights["file"]}, sha256 {weights["sha256"][:12]}..'
          if weights else f'step {result["checkpoint_step"]}')


def _not_converged(convergence):
  """Returns a line on scores that are not exact, or none."""
  bad = {name: c for name, c in convergence.items() if c['not_converged']}
  if not bad:
    return []
  of = lambda c: 'not finite' if c['residual'] is None else (
      f'largest residual {c["residual"]:.1e}')
  names = ', '.join(f'{name} in {c["not_converged"]:.1%} of its tasks ({of(c)})'
                    for name, c in bad.items())
  remedies = '; '.join(dict.fromkeys(c['remedy'] for c in bad.values()))
  return [f'  Not converged: {names}; such an accuracy is that of '
          f'approximate solutions: {remedies}']


def curves(path):
  """Draws curves.png of a run: loss and accuracies over the steps."""
  # Imported late: it takes a second and is needed here only.
  import matplotlib.figure

  records = metrics.read(path)
  training = [r for r in records if 'loss' in r]
  validated = [r for r in records if 'validation_accuracy' in r]
  figure = matplotlib.figure.Figure(figsize=(9, 3.5), layout='constrained')
  left, right = figure.subplots(1, 2)
  hits = [r for r in training if 'accuracy' in r]
  left.plot([r['step'] for r in training], [r['loss'] for r in training])
  left.set(xlabel='step', ylabel='training loss')
  right.plot([r['step'] for r in hits], [100 * r['accuracy'] for r in hits],
             label='training tasks')
  if validated:
    right.errorbar([r['step'] for r in validated],
                   [100 * r['validation_accuracy'] for r in validated],
                   [100 * (r['validation_ci95'] or 0) for r in validated],
                   marker='.', label='validation tasks, new head')
  test = path / 'test.json'
  if test.exists():
    result = json.loads(test.read_text())
    right.errorbar([result['checkpoint_step']], [100 * result['accuracy']],
                   [100 * (result['ci95'] or 0)], fmt='*', markersize=10,
                   color='black', label='test tasks, '
                   + ('best epoch' if validated else 'last step'))
  right.set(xlabel='step', ylabel='accuracy, %')
  right.legend(fontsize='small')
  for axes in (left, right):
    axes.grid(alpha=0.3)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=120)
  files.write(path / 'curves.png', buffer.getvalue())
