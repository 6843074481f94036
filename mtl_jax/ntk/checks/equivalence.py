"""When is a bi-level gradient the gradient of joint training?

It is where the outer loss is the inner objective J on the same data (the
envelope theorem; Wang, Zhao & Li, ICML 2021, section 4). The check measures the
difference on a conv4 and few-shot tasks, where this holds and where it fails.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax import files
from mtl_jax.data import augment, episodes, store
from mtl_jax.errors import UserError
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, Field
from mtl_jax.models import conv4
from mtl_jax.ntk.checks import bilevel, check, equivalence_figures
from mtl_jax.ntk.checks.tasks import RANDOM
from mtl_jax.ntk.precision import precision

NAME = 'equivalence'
# Largest relative difference that counts as none.
LIMITS = {'float32': 1e-4, 'float64': 1e-9}
_PREDICTION = 1e-9  # of failure (a), relative, in float64
_INNERS = ('ridge', 'logistic')  # solvers with a known objective J

OPTIONS = {
    'dataset': Field('glyphs', 'data set, whose training split is taken, or '
                     'random for images of noise'),
    'tasks': Field(4, 'T, tasks that are measured', COUNT),
    'ways': Field(5, 'N, classes per task', COUNT),
    'shots': Field(5, 'support images per class', COUNT),
    'queries': Field(5, 'query images per class', COUNT),
    'width': Field(16, 'channels of conv4', COUNT),
    'warm_up': Field(50, 'Adam steps of joint training before measuring',
                     NOT_NEGATIVE),
    'regulariser': Field(10., 'penalty of ridge', POSITIVE),
    'C': Field(1., 'weight of the cross-entropy in logistic regression',
               POSITIVE),
    'svm_C': Field(0.1, 'C of the SVM', POSITIVE),
    'counts': Field((1, 4, 16, 64, 256, 1024), 'numbers of inner gradient '
                    'steps', COUNT),
    'seed': Field(0, 'seed of tasks and initial values'),
}


def run(options, folder):
  """Measures both gradients in float32 and float64; returns the result.

  Args:
    options: dict of OPTIONS; those left out keep their defaults.
    folder: epath.Path, made if need be; equivalence.json and figures go
      there. A precision that was measured already is not measured again.

  Returns:
    The contents of equivalence.json.

  Raises:
    UserError: an option is wrong, the data set is unknown or too small, or
      `folder` belongs to other options.
  """
  o = settle(options)
  files.make(folder)
  path = folder / f'{NAME}.json'
  result = check.read(path, {})
  result['options'] = check.claim(
      folder, OPTIONS, o, result.get('options', {}))
  missing = [dtype for dtype in LIMITS if dtype not in result]
  if missing:
    draws = _tasks(o)
    variables = _warm_up(o, *draws)
  for dtype in missing:
    print(f'{NAME}: {dtype}, {o.tasks} tasks', flush=True)
    with precision(dtype):
      result[dtype] = _measure(o, variables, *draws, dtype)
    check.write(path, result)
  result.pop('verdict', None)  # the name of 'holds' in older folders
  result = check.write(path, {**result, **_judge(result)})
  equivalence_figures.draw(result, folder)
  return result


def settle(options):
  """Returns all options, with sorted counts; raises UserError."""
  o = check.settle(OPTIONS, options)
  if not o.counts:
    raise UserError('--counts: one number or more is needed')
  return o._replace(counts=tuple(sorted(set(o.counts))))


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

  params = variables['params']
  state = optimizer.init(params)
  for i in range(o.warm_up):
    params, state = step(params, state, images[i % o.tasks])
  return jax.tree.map(np.asarray, {**variables, 'params': params})


def _measure(o, variables, images, labels, dtype):
  """Returns all numbers of `_of_task`: their mean over tasks, and largest."""
  cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)
  backbone = bilevel.Conv4(width=o.width, dtype=dtype)
  variables = cast(variables)
  of_tasks = [
      _of_task(o, backbone, variables, cast(task), jnp.asarray(labels))
      for task in images]
  return jax.tree.map(lambda *values: {
      'mean': float(np.mean(values)), 'max': float(np.max(values))}, *of_tasks)


def _of_task(o, backbone, variables, images, labels):
  """Returns the comparisons of one task's gradients: a tree of numbers."""
  gradients = _gradients(o, backbone, variables, images, labels)
  of_case = lambda case: gradients['cases'][case.label]
  result = {'cases': {}, 'steps': {}, 'prediction': {}}
  for case in bilevel.CASES:
    through, plain = of_case(case)
    joint = of_case(bilevel.Case('identity', case.joint))[1]
    result['cases'][case.label] = {
        'difference': _difference(through, plain),
        'cosine': _cosine(through, plain),
        'cosine_to_joint': _cosine(through, joint)}
  for name, (through, at_end, optimum) in gradients['steps'].items():
    result['steps'][name] = {
        'through': [_difference(g, optimum[0]) for g in through],
        'plain': [_difference(g, optimum[0]) for g in at_end]}
    through, plain = of_case(bilevel.Case('penalty', name))
    result['prediction'][name] = _difference(
        gradients['prediction'][name][0], through - plain)
  return result


def _gradients(o, backbone, variables, images, labels):
  """Returns the tree of `_cotangents` as gradients [n, P], in float64."""
  x = bilevel.features(backbone, variables, images)
  leaves, tree = jax.tree.flatten(_cotangents(o, x, labels))
  sizes = np.cumsum([len(leaf) for leaf in leaves])[:-1]
  gradients = bilevel.pull(backbone, variables, images,
                           jnp.concatenate(leaves))
  return jax.tree.unflatten(
      tree, np.split(np.asarray(gradients, np.float64), sizes))


@functools.partial(jax.jit, static_argnums=0)
def _cotangents(o, x, labels):
  """Returns a tree of cotangents [n, B, D] of the features of a task."""
  inners = bilevel.inner_problems(o.ways, o.regulariser, o.C)
  cases = bilevel.both(
      inners, bilevel.solvers(o.ways, inners, o.svm_C), x, labels,
      o.ways * o.shots)
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


def _judge(result):
  """Returns the checks {what: [largest value, limit]} and whether all hold."""
  checks = {}
  for dtype, limit in LIMITS.items():
    measured = result[dtype]
    for name in _INNERS:
      label = bilevel.Case('identity', name).label
      checks[f'{name}, implicit, {dtype}'] = [
          measured['cases'][label]['difference']['max'], limit]
      checks[f'{name}, through all steps, {dtype}'] = [
          measured['steps'][name]['through'][-1]['max'], limit]
  for name, value in result['float64']['prediction'].items():
    checks[f'{name}, predicted failure (a)'] = [value['max'], _PREDICTION]
  holds = all(value <= limit for value, limit in checks.values())
  return {'checks': checks, 'holds': holds}


def verdict(result):
  """Returns the verdict in one line."""
  return ('with the outer loss equal to the inner objective the two gradients '
          + ('agree' if result['holds'] else 'do NOT agree')
          + ' within the limits')


def summary(result):
  """Returns the result as lines of text."""
  o = result['options']
  lines = [
      'Equivalence of objectives: bi-level against plain gradients of '
      f'conv4 ({o["width"]}),', f'{o["tasks"]} tasks of '
      f'{o["dataset"]} images, {o["ways"]} ways, {o["shots"]} + '
      f'{o["queries"]} images per class',
      '', f'{"largest relative difference":44} {"":>9} {"limit":>8}']
  lines += [f'  {name:42} {value:9.1e} {limit:8.0e}'
            f'{"" if value <= limit else "  ABOVE"}'
            for name, (value, limit) in result['checks'].items()]
  lines += ['', f'{"how it fails (float64, mean over tasks)":34} '
            f'{"difference":>11} {"cosine":>7} {"to joint":>9}']
  for case in bilevel.CASES:
    if case.fails:
      numbers = result['float64']['cases'][case.label]
      lines.append(f'  {case.label:32} {numbers["difference"]["mean"]:11.3f} '
                   f'{numbers["cosine"]["mean"]:7.3f} '
                   f'{numbers["cosine_to_joint"]["mean"]:9.3f}')
  return '\n'.join([*lines, '', f'Verdict: {verdict(result)}'])


CHECK = check.Check(OPTIONS, run, verdict, summary, equivalence_figures.draw,
                    table=lambda result: None)
