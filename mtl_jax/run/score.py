"""Test a state of a run, and write the scores.

    test.json            accuracies with 95% intervals, and what was measured
    tasks.npz            the accuracy of each task, label by label
    test_episodes.json   the tasks themselves, where the config asks for them
"""

import hashlib
import io
import re

import numpy as np

from mtl_jax import files, processes
from mtl_jax.data import episode_files
from mtl_jax.data import store as stores
from mtl_jax.evaluate import adapters, features, interval, measure
from mtl_jax.evaluate import protocol as drawing
from mtl_jax.run import protocols, tested_split

EPISODES = 'test_episodes.json'


def test(config, path, algorithm, state, splits, training, untrained=None):
  """Tests a state; writes the files of this module.

  Args:
    config: read for `eval`, `heads` and names.
    path: folder for the files.
    algorithm: the method.
    state: the best epoch: `variables`, `step` and `best_score`; or the
      Trained of a file of weights, where the last two are None.
    splits: 'test' -> Store, of tested_split.load, and 'validation' where C is
      chosen.
    training: of workdir.of_training.
    untrained: variables before training, for the baselines; None: no
      baselines.

  Returns:
    The contents of test.json.
  """
  c = config.eval
  store = splits['test']
  rules, image_ids = tested_split.given_tasks(config, store)
  image_ids = image_ids or [drawing.draw(p, store.offsets) for p in rules]
  options = {head: protocols.options(config, head) for head in c.heads}
  chosen = {}
  if c.choose_C:
    chosen = choose_C(config, algorithm, state.variables, splits['validation'])
    options['logistic']['C'] = chosen['C']
  measured = _measured(config, algorithm, state.variables, store, rules,
                       image_ids, options, untrained)
  scores = {label: m.accuracies for label, (_, m) in measured.items()}
  result = {
      'head': c.heads[0], **interval.summary(scores[c.heads[0]]),
      'num_tasks': rules[0].num_tasks, 'ways': c.ways, 'shots': c.shots,
      'queries': c.queries, 'split': c.split, 'data': store.name,
      'trained_on': config.data.name, 'method': config.method.name,
      'training': training,
      'batch_norm': config.method.get('batch_norm', 'not stated'),
      'seed': c.seed,
      'heads': options, 'normalise_features': c.normalise_features,
      'support_copies': c.support_copies, 'episodes': c.read_episodes,
      'tasks_sha256': hashes(store, rules, image_ids, config.data.dir),
      'seen_classes': len(store.tested['seen']),
      'images': store.tested['images'],
      **_origin(state), **chosen,
      'scores': {name: interval.summary(x) for name, x in scores.items()},
      'convergence': _convergence(algorithm, measured)}
  if processes.leads():
    tasks = episode_files.to_json(
        store, rules, image_ids, config.data.dir) if c.write_episodes else None
    _write(path, result, scores, tasks)
  return result


def _write(path, result, scores, tasks):
  """Writes the files of this module; `tasks` is a text, or None."""
  if tasks is not None:
    files.write(path / EPISODES, tasks)
  else:  # those of an earlier test would look like this one's
    (path / EPISODES).unlink(missing_ok=True)
  # A process that ends here leaves no accuracies beside another test's tasks.
  (path / 'test.json').unlink(missing_ok=True)
  packed = io.BytesIO()
  np.savez(packed, **scores)
  files.write(path / 'tasks.npz', packed.getvalue())
  files.write(path / 'test.json', files.json_text(result, indent=2))


def _origin(state):
  """Returns what says which weights were tested."""
  if state.step is None:
    return {'checkpoint_step': None, 'validation_accuracy': None,
            'weights': state.weights}
  score = float(state.best_score)
  return {'checkpoint_step': int(state.step),
          'validation_accuracy': score if np.isfinite(score) else None}


def split_label(label):
  """Returns the head, or baseline, and the shots of a label, as `test` has it.

  'logistic 1-shot' has 1; without shots in it they are those of the run: None.
  """
  # The path of a user's head may have spaces.
  name, shots = re.fullmatch(r'(.+?)(?: (\d+)-shot)?', label).groups()
  return name, shots and int(shots)


def head_of_pixels(heads):
  """Returns the head, of those tested, that is fitted to raw pixels.

  They have no layers to adapt: where the method alone is tested, it is
  logistic regression.
  """
  return next(filter(adapters.is_head, heads), 'logistic')


def _measured(config, algorithm, variables, store, rules, image_ids, options,
              untrained):
  """Returns label -> (head, Measured), for all shots and baselines.

  Shots other than the run's are part of a label: 'logistic 1-shot'.
  """
  c = config.eval

  def measured(algorithm, variables, scored):
    results = measure.make_meta_test(
        algorithm, store, rules, scored, image_ids)(variables)
    return [{label: (scored[label][0], m) for label, m in result.items()}
            for result in results]

  scored = {head: (head, options[head]) for head in c.heads}
  by_protocol = measured(algorithm, variables, scored)
  if untrained is not None:
    head = head_of_pixels(c.heads)
    baselines = (
        ('untrained', algorithm, scored[c.heads[0]]),
        ('raw_pixels', features.pixels(algorithm),
         (head, options.get(head, protocols.options(config, head)))))
    for label, other, how in baselines:
      for scores, more in zip(by_protocol, measured(
          other, untrained, {label: how}), strict=True):
        scores.update(more)
  return {label if p.shots == c.shots else f'{label} {p.shots}-shot': values
          for p, scores in zip(rules, by_protocol, strict=True)
          for label, values in scores.items()}


def _convergence(algorithm, measured):
  """Returns label -> the share not converged and the largest residual.

  None as residual: one is not finite. Where a task has not converged, `remedy`
  says which fields to change. Labels that solve nothing are left out.
  """
  result = {}
  for label, (head, m) in measured.items():
    if m.convergence:
      largest = float(np.max(m.convergence['residual']))
      share = float(np.mean(m.convergence['not_converged']))
      result[label] = {'not_converged': share,
                       'residual': largest if np.isfinite(largest) else None}
      if share:
        result[label]['remedy'] = measure.remedy(algorithm, head)
  return result


def hashes(store, rules, image_ids, directory=None):
  """Returns shots -> SHA-256 of the tasks, by their classes and images.

  Two tests have the same hash only if their tasks have the same images, by
  name, in the same places; wherever the tasks came from.

  Args:
    store: the split.
    rules: Protocols of different shots.
    image_ids: for each the images of its tasks, int [T, N, K + Q].
    directory: TFDS data_dir of the store.
  """
  class_names = np.repeat(store.class_names, np.diff(store.offsets))
  digests = np.array([
      np.frombuffer(hashlib.sha256(
          f'{of_class}\0{name}'.encode(errors='surrogateescape')).digest(),
                    np.uint8)
      for of_class, name in zip(
          class_names, stores.image_names(store, directory), strict=True)])
  result = {}
  for p, ids in zip(rules, image_ids, strict=True):
    tasks = hashlib.sha256(repr((*ids.shape, p.shots)).encode())
    for task in ids:
      tasks.update(digests[task].tobytes())
    result[str(p.shots)] = tasks.hexdigest()
  return result


def choose_C(config, algorithm, variables, store):
  """Measures config.eval.choose_C on validation tasks.

  Args:
    config: read for `eval`, `validation` and `heads`.
    algorithm, variables: what is tested.
    store: the validation split.

  Returns:
    'C', the best one, and 'validation_by_C', accuracy by C.
  """
  values = config.eval.choose_C
  fixed = protocols.options(config, 'logistic')
  accuracies = measure.meta_test(
      algorithm, variables, store, protocols.choice(config),
      {str(C): ('logistic', {**fixed, 'C': C}) for C in values})
  means = {C: float(np.mean(accuracies[str(C)])) for C in values}
  return {'C': max(means, key=means.get),
          'validation_by_C': {str(C): mean for C, mean in means.items()}}
