"""What closeness.py compares: agreement, distance, and their yardstick.

  agreement  share of query images that both give the same class; it does not
             depend on how sure each is
  distance   total variation, half the sum over classes of |p - q|, averaged
             over query images. It is the smallest share of images on which two
             networks differ that draw their answers from p and q. Unlike a
             norm of logits it has one scale for all heads, 0 to 1. But it is
             small where both are unsure: compare it with its yardstick.
"""

import itertools

import numpy as np

from mtl_jax.evaluate import interval
from mtl_jax.ntk.checks.closeness_networks import NEW_HEAD, Cell

# How ANIL learns an unseen task; MTL always gets a new head.
HOWS = ('own', NEW_HEAD)
MEASURES = ('agreement', 'distance')


def compare(o, said, depth, inner_time, how):
  """Compares the networks of one depth and one lambda tau.

  Args:
    o: options.
    said: (Cell, how) -> probabilities [tasks, N Q, N].
    depth: blocks.
    inner_time: lambda tau.
    how: ANIL learns an unseen task, of HOWS.

  Returns:
    'accuracy': of 'anil', 'mtl' and 'untrained'; 'agreement' and 'distance':
    name of a comparison -> its mean over unseen tasks; 'excess': measure ->
    how much further apart the methods are than two seeds of one. All are
    {'mean', 'ci95'}; 'by_task' has the distances at the same start.
  """
  seeds = range(o.seeds)
  of = {'anil': [said[Cell('anil', depth, inner_time, s), how] for s in seeds]}
  for method in ('mtl', 'untrained'):
    of[method] = [said[Cell(method, depth, 0., s), NEW_HEAD] for s in seeds]
  # Labels are class-major, as episodes.labels has them.
  labels = np.arange(of['mtl'][0].shape[1]) // (
      of['mtl'][0].shape[1] // of['mtl'][0].shape[2])
  hits = {method: [np.mean(p.argmax(-1) == labels, -1) for p in values]
          for method, values in of.items()}
  by_task = {measure: {
      name: np.mean([measured(measure, of[a][i], of[b][j])
                     for a, i, b, j in pairs], 0)
      for name, pairs in _pairs(o.seeds).items()} for measure in MEASURES}
  by_task['agreement']['independent'] = np.mean([
      independent(hits[a][i], hits[b][j], o.ways)
      for a, i, b, j in _pairs(o.seeds)['other start']], 0)
  excess = {
      measure: values['other start'] - (
          values['two ANILs'] + values['two MTLs']) / 2
      for measure, values in by_task.items()}
  return {
      'accuracy': {m: _mean(np.mean(h, 0)) for m, h in hits.items()},
      **{measure: {name: _mean(v) for name, v in values.items()}
         for measure, values in by_task.items()},
      'excess': {measure: _mean(v) for measure, v in excess.items()},
      'by_task': by_task['distance']['same start'].tolist()}


def _pairs(seeds):
  """Returns comparison -> [(method, seed, method, seed)]."""
  each, both = range(seeds), list(itertools.combinations(range(seeds), 2))
  return {
      'same start': [('anil', s, 'mtl', s) for s in each],
      'other start': [('anil', s, 'mtl', t) for s in each for t in each
                      if s != t],
      'two ANILs': [('anil', s, 'anil', t) for s, t in both],
      'two MTLs': [('mtl', s, 'mtl', t) for s, t in both],
      'MTL, untrained': [('mtl', s, 'untrained', s) for s in each]}


def measured(measure, p, q):
  """Returns a measure of MEASURES for each task: [T].

  Args:
    measure: its name.
    p, q: probabilities [T, B, N].
  """
  if measure == 'agreement':
    return np.mean(p.argmax(-1) == q.argmax(-1), -1)
  return np.mean(np.abs(p - q).sum(-1) / 2, -1)


def independent(a, b, ways):
  """Returns the agreement of classifiers whose errors are independent.

  Wrong answers fall on the other classes alike.

  Args:
    a, b: their accuracies.
    ways: N.
  """
  return a * b + (1 - a) * (1 - b) / (ways - 1)


def _mean(values):
  summary = interval.summary(np.asarray(values, float))
  return {'mean': summary['accuracy'], 'ci95': summary['ci95']}


def trends(o, points):
  """Returns differences of the distance at the same start, paired over tasks.

  'depth': deepest less shallowest, for each lambda tau; 'time': largest less
  smallest lambda tau, for each depth. The bound falls with depth and rises
  with lambda tau.
  """
  by_task = {(p['depth'], p['time'], p['how']): np.array(p.pop('by_task'))
             for p in points}
  change = lambda last, first: _mean(by_task[last] - by_task[first])
  return {how: {
      'depth': {str(t): change((o.depths[-1], t, how), (o.depths[0], t, how))
                for t in o.times},
      'time': {str(d): change((d, o.times[-1], how), (d, o.times[0], how))
               for d in o.depths}} for how in HOWS}
