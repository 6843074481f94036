"""When is a bi-level gradient the gradient of joint training?

When the outer loss is the inner objective J on the same data (the envelope
theorem; Wang, Zhao & Li, ICML 2021, section 4). Measured on a conv4 and
few-shot tasks, with how far off it is where that does not hold.
"""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax import files
from mtl_jax.data import augment, episodes, store
from mtl_jax.models import conv4
from mtl_jax.ntk.checks import bilevel
from mtl_jax.ntk.checks.tasks import RANDOM
from mtl_jax.ntk.precision import precision

NAME = 'equivalence'
# Largest relative difference that counts as none.
LIMITS = {'float32': 1e-4, 'float64': 1e-9}
_PREDICTION = 1e-4  # of failure (a), relative, in float64


class Options(NamedTuple):
  """What is measured.

  Fields:
    dataset: of a training split, or random for images of noise
    tasks: T
    ways: N
    shots: support images a class
    queries: query images a class
    width: channels of conv4
    warm_up: Adam steps of joint training before measuring
    regulariser: of ridge
    C: of logistic regression, weight of the cross-entropy
    svm_C: of the SVM
    counts: numbers of inner gradient steps
    seed: of tasks and initial values
  """

  dataset: str = 'glyphs'
  tasks: int = 4
  ways: int = 5
  shots: int = 5
  queries: int = 5
  width: int = 16
  warm_up: int = 50
  regulariser: float = 10.
  C: float = 1.
  svm_C: float = 0.1
  counts: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
  seed: int = 0


def run(options, folder):
  """Measures both gradients in float32 and float64; returns the result.

  Args:
    options: Options.
    folder: epath.Path; equivalence.json and figures go there, and what is
      there from a run with the same options is not computed again.

  Raises:
    UserError: the data set is unknown or too small.
  """
  files.make(folder)
  path = folder / f'{NAME}.json'
  asked = json.loads(json.dumps(options._asdict()))
  result = json.loads(path.read_text()) if path.exists() else {}
  if result.get('options') != asked:
    result = {'options': asked}
  if 'verdict' not in result:
    draws = _tasks(options)
    variables = None
    for dtype in LIMITS:
      if dtype in result:
        continue
      if variables is None:
        variables = _warm_up(options, *draws)
      print(f'{NAME}: {dtype}, {options.tasks} tasks', flush=True)
      with precision(dtype):
        result[dtype] = _measure(options, variables, *draws, dtype)
      files.write(path, json.dumps(result, indent=1))
    result |= _verdict(result)
    files.write(path, json.dumps(result, indent=1))
  figures(result, folder)
  return result


def _tasks(o):
  """Returns images [T, B, h, w, c] and labels [B], support first."""
  key = episodes.stream_key(o.seed, episodes.Stream.TRAIN)
  per_class = o.shots + o.queries
  if o.dataset != RANDOM:
    data = store.load(o.dataset, 'train')
    episodes.check(data, ways=o.ways, images_per_class=per_class, field=NAME)
    ids = jax.vmap(lambda key: episodes.sample(
        key, jnp.asarray(data.offsets), ways=o.ways,
        images_per_class=per_class)[1])(episodes.task_keys(key, 0, o.tasks))
    images = np.asarray(data.images[np.asarray(ids)])
    images = np.asarray(augment.normalise(images, data.mean, data.std))
  else:
    images = np.asarray(jax.random.normal(
        key, (o.tasks, o.ways, per_class, 28, 28, 1)))
  parts = (images[:, :, :o.shots], images[:, :, o.shots:])
  images = np.concatenate(
      [p.reshape(o.tasks, -1, *p.shape[3:]) for p in parts], 1)
  labels = np.concatenate([episodes.labels(o.ways, o.shots),
                           episodes.labels(o.ways, o.queries)])
  return images, labels


def _warm_up(o, images, labels):
  """Returns conv4's variables after some joint training with ridge heads."""
  backbone = conv4.Conv4(width=o.width)
  key = episodes.stream_key(o.seed, episodes.Stream.INIT)
  variables = jax.jit(lambda: backbone.init(key, images[0], train=False))()
  inner = bilevel.inner_problems(o.ways, o.regulariser, o.C)['ridge']
  optimizer = optax.adam(2e-3)

  def loss(params, x):
    x = bilevel.features(backbone, {**variables, 'params': params}, x)
    return inner.objective(
        jax.lax.stop_gradient(inner.solve(x, labels)), x, labels)

  @jax.jit
  def step(params, state, x):
    updates, state = optimizer.update(jax.grad(loss)(params, x), state)
    return optax.apply_updates(params, updates), state

  params, state = variables['params'], None
  state = optimizer.init(params)
  for i in range(o.warm_up):
    params, state = step(params, state, images[i % o.tasks])
  return jax.tree.map(np.asarray, {**variables, 'params': params})


def _measure(o, variables, images, labels, dtype):
  """Returns all that is compared, means over the tasks and the largest."""
  cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
  backbone = bilevel.Conv4(width=o.width, dtype=dtype)
  variables = cast(variables)
  found = [_of_task(o, backbone, variables, cast(task), jnp.asarray(labels))
           for task in images]
  return jax.tree.map(lambda *values: {
      'mean': float(np.mean(values)), 'max': float(np.max(values))}, *found)


def _of_task(o, backbone, variables, images, labels):
  x = bilevel.features(backbone, variables, images)
  cotangents = _cotangents(o, x, labels)
  leaves, tree = jax.tree.flatten(cotangents)
  sizes = np.cumsum([len(leaf) for leaf in leaves])[:-1]
  gradients = bilevel.pull(backbone, variables, images,
                           jnp.concatenate(leaves))
  gradients = jax.tree.unflatten(
      tree, np.split(np.asarray(gradients, np.float64), sizes))

  result = {'cases': {}, 'steps': {}, 'prediction': {}}
  joint = {name: gradients['cases'][f'{name}, J'][1]
           for name in ('ridge', 'logistic')}
  for name, (bilevel_, plain) in gradients['cases'].items():
    squared = 'ridge' in name and 'cross-entropy' not in name
    mtl = joint['ridge' if squared else 'logistic']
    result['cases'][name] = {
        'difference': _difference(bilevel_, plain),
        'cosine': _cosine(bilevel_, plain),
        'cosine_to_joint': _cosine(bilevel_, mtl)}
  for name, (through, at_end, optimum) in gradients['steps'].items():
    result['steps'][name] = {
        'through': [_difference(g, optimum[0]) for g in through],
        'plain': [_difference(g, optimum[0]) for g in at_end]}
    bilevel_, plain = gradients['cases'][f'(a) {name}, no penalty']
    result['prediction'][name] = _difference(
        gradients['prediction'][name][0], bilevel_ - plain)
  return result


@functools.partial(jax.jit, static_argnums=0)
def _cotangents(o, x, labels):
  """Returns a tree of cotangents [n, B, D] of the features of a task."""
  inners = bilevel.inner_problems(o.ways, o.regulariser, o.C)
  cases = bilevel.both(
      bilevel.cases(inners), bilevel.solvers(o.ways, inners, o.svm_C), x,
      labels, o.ways * o.shots)
  steps, prediction = {}, {}
  for name, inner in inners.items():
    through, at_end, optimum = bilevel.after_steps(
        inner, o.ways, x, labels, o.counts)
    steps[name] = (through, at_end, optimum[None])
    prediction[name] = bilevel.predicted_failure(
        inner, o.ways, x, labels, max(o.counts))[None]
  return {'cases': cases, 'steps': steps, 'prediction': prediction}


def _difference(a, b):
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _cosine(a, b):
  return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _verdict(result):
  """Returns the checks {what: [largest value, limit]} and whether all hold."""
  checks = {}
  for dtype, limit in LIMITS.items():
    found = result[dtype]
    for name in ('ridge', 'logistic'):
      checks[f'{name}, implicit, {dtype}'] = [
          found['cases'][f'{name}, J']['difference']['max'], limit]
      checks[f'{name}, through all steps, {dtype}'] = [
          found['steps'][name]['through'][-1]['max'], limit]
  for name, value in result['float64']['prediction'].items():
    checks[f'{name}, predicted failure (a)'] = [value['max'], _PREDICTION]
  holds = all(value <= limit for value, limit in checks.values())
  return {'checks': checks, 'verdict': holds}


def summary(result):
  """Returns the result as lines of text."""
  o = Options(**result['options'])
  lines = [
      'Equivalence of objectives: bi-level against plain gradients of '
      f'conv4 ({o.width}),', f'{o.tasks} tasks of '
      f'{o.dataset} images, {o.ways} ways, {o.shots} + '
      f'{o.queries} images a class',
      '', f'{"largest relative difference":44} {"":>9} {"limit":>8}']
  lines += [f'  {name:42} {value:9.1e} {limit:8.0e}'
            f'{"" if value <= limit else "  ABOVE"}'
            for name, (value, limit) in result['checks'].items()]
  lines += ['', f'{"how it fails (float64, mean over tasks)":34} '
            f'{"difference":>11} {"cosine":>7} {"to joint":>9}']
  for name, case in result['float64']['cases'].items():
    if not name.endswith(', J'):
      lines.append(f'  {name:32} {case["difference"]["mean"]:11.3f} '
                   f'{case["cosine"]["mean"]:7.3f} '
                   f'{case["cosine_to_joint"]["mean"]:9.3f}')
  lines += ['', 'Verdict: with the outer loss equal to the inner objective '
            'the two gradients '
            + ('agree' if result['verdict'] else 'do NOT agree')
            + ' within the limits']
  return '\n'.join(lines)


def figures(result, folder):
  """Draws the figures; returns [(file name, caption)]."""
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
  figure.savefig(folder / f'{NAME}_steps.png', dpi=120)

  cases = result['float64']['cases']
  names = [name for name in cases if not name.endswith(', J')][::-1]
  figure = matplotlib.figure.Figure((9, 3.8), layout='constrained')
  left, right = figure.subplots(1, 2, sharey=True)
  for axes, kinds in ((left, ('difference',)),
                      (right, ('cosine', 'cosine_to_joint'))):
    for i, kind in enumerate(kinds):
      axes.barh(np.arange(len(names)) - 0.35 * i,
                [cases[name][kind]['mean'] for name in names],
                0.7 / len(kinds), color=f'C{i}', label=kind.replace('_', ' '))
    axes.grid(alpha=0.3, axis='x')
    axes.legend(fontsize=8, loc='lower center', ncols=2,
                bbox_to_anchor=(0.5, 1.))  # no corner is free of bars
  left.set_yticks(range(len(names)), names)
  left.set_xlabel('|bi-level - plain| / |plain|')
  right.set_xlabel('cosine')
  figure.savefig(folder / f'{NAME}_failures.png', dpi=120)
  return [
      (f'{NAME}_steps.png', 'Through the inner steps the gradient converges '
       'with the square of the rate at which the head does; the plain '
       'gradient with the rate itself.'),
      (f'{NAME}_failures.png', 'Where the outer loss is not the inner '
       'objective on the same data: difference and cosine of the bi-level '
       'gradient to the plain one, and its cosine to the gradient of joint '
       'training on all images of the task.')]
