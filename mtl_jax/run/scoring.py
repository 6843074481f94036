"""The meta-test of a run: protocols from its config, scores into its files.

    test.json            accuracies with 95% intervals, and what was measured
    tasks.npz            the accuracy of each task, label by label
    test_episodes.json   the tasks themselves, where the config asks for them
"""

import io
import json

import numpy as np

from mtl_jax import devices, files, heads
from mtl_jax.config.check import validate
from mtl_jax.data import episode_files, episodes
from mtl_jax.data import store as stores
from mtl_jax.errors import UserError
from mtl_jax.evaluate import interval, measure, tune_all
from mtl_jax.run import build, report, trained, workdir


def head_options(config, head):
  """Returns the keywords of a head's `fit`."""
  if head == tune_all.NAME:
    return dict(config.tune_all)
  return {} if head == measure.OWN else dict(config.heads[head])


def validation_protocol(config):
  """Returns the Protocol of config.validation."""
  return _protocol(config, config.validation, config.validation.shots,
                   episodes.stream_key(config.seed,
                                       episodes.Stream.VALIDATION))


def test_protocols(config):
  """Returns a Protocol for each of config.eval's shots, the run's first."""
  c = config.eval
  key = episodes.stream_key(c.seed, episodes.Stream.TEST)
  return [_protocol(config, c, shots, key)._replace(
      support_copies=c.support_copies, augmentation=dict(config.augment))
          for shots in dict.fromkeys((c.shots, *c.also_shots))]


def _protocol(config, section, shots, key):
  return measure.Protocol(
      key=key, num_tasks=section.tasks, ways=section.ways, shots=shots,
      queries=section.queries, normalise_features=section.normalise_features,
      batch_size=config.eval.batch_size,
      tasks_at_once=config.eval.tasks_at_once)


def tested_store(config, data, splits=None):
  """Loads the split that config.eval names, and checks that it can be used.

  Args:
    config: read for `eval` and `data`.
    data: what was trained on, of build.describe_data.
    splits: split -> Store of the trained data set, those that are loaded.

  Returns:
    Store; its images are normalised as the training images were.

  Raises:
    UserError: too small for the tasks, images of another shape, or classes
      that were trained on.
  """
  c = config.eval
  name = c.data or config.data.name
  if name == config.data.name and c.split in (splits or {}):
    store = splits[c.split]
  else:
    store = stores.load(name, c.split, config.data.dir,
                        config.data.manual_dir)
  store = as_trained(store, data)
  for shots in (c.shots, *c.also_shots):
    episodes.check(store, ways=c.ways, images_per_class=shots + c.queries,
                   field='eval')
  seen = sorted(set(store.class_names) & set(data['classes']))
  if seen and name != config.data.name and not c.allow_seen_classes:
    raise UserError(
        f'config.eval.data is {name!r}, of whose {c.split} classes '
        f'{len(seen)} were trained on in {config.data.name} ({seen[0]}, ..): '
        'these scores would mean little; set config.eval.allow_seen_classes '
        'to have them nevertheless')
  return store


def as_trained(store, data):
  """Returns a store whose images are normalised as the training images were.

  Raises:
    UserError: images of another shape.
  """
  shape = tuple(data['image_shape'])
  if store.images.shape[1:] != shape:
    raise UserError(
        f'config.eval.data is {store.name!r}, whose images are '
        f'{store.images.shape[1:]}: this run is trained on {shape}')
  return store._replace(mean=np.array(data['mean'], np.float32),
                        std=np.array(data['std'], np.float32))


def test_tasks(config, store):
  """Returns (protocols, their images or None) of a test.

  Raises:
    UserError: `eval.read_episodes` does not fit.
  """
  protocols, file = test_protocols(config), config.eval.read_episodes
  if not file:
    return protocols, None
  image_ids = episode_files.read(file, store, protocols, config.data.dir)
  return [p._replace(num_tasks=len(ids)) for p, ids in zip(
      protocols, image_ids, strict=True)], image_ids


def test(config, path, algorithm, state, splits, untrained=None):
  """Tests a state; writes the files of this module.

  Args:
    config: read for `eval`, `heads` and names.
    path: folder for the files.
    algorithm: the method.
    state: the best epoch: `variables`, `step` and `best_score`.
    splits: 'test' -> Store, and 'validation' where C is chosen.
    untrained: variables before training, to score beside; None: no baselines.

  Returns:
    The contents of test.json.
  """
  c = config.eval
  options = {head: head_options(config, head) for head in c.heads}
  chosen = {}
  if c.choose_C:
    chosen = choose_C(config, algorithm, state.variables, splits['validation'])
    options['logistic']['C'] = chosen['C']
  store = splits['test']
  protocols, image_ids = test_tasks(config, store)
  scored = {head: (head, options[head]) for head in c.heads}
  measured = lambda algorithm, variables, scored: dict(zip(
      (p.shots for p in protocols), measure.make_meta_test(
          algorithm, store, protocols, scored, image_ids)(variables),
      strict=True))
  by_shots = measured(algorithm, state.variables, scored)
  if untrained is not None:
    # Pixels have no layers to adapt: a head on them.
    head = next((head for head in c.heads if head in heads.HEADS), 'logistic')
    for label, features, how in (
        ('untrained', algorithm, scored[c.heads[0]]),
        ('raw_pixels', measure.pixels(algorithm),
         (head, head_options(config, head)))):
      for shots, found in measured(features, untrained,
                                   {label: how}).items():
        by_shots[shots].update(found)
  scores = {label if shots == c.shots else f'{label} {shots}-shot': values
            for shots, found in by_shots.items()
            for label, values in found.items()}
  result = {
      'head': c.heads[0], **interval.summary(scores[c.heads[0]]),
      'num_tasks': protocols[0].num_tasks, 'ways': c.ways, 'shots': c.shots,
      'queries': c.queries, 'split': c.split, 'data': store.name,
      'trained_on': config.data.name, 'method': config.method.name,
      'batch_norm': config.method.batch_norm, 'seed': c.seed,
      'heads': options, 'normalise_features': c.normalise_features,
      'support_copies': c.support_copies, 'episodes': c.read_episodes,
      'checkpoint_step': int(state.step),
      'validation_accuracy': float(state.best_score), **chosen,
      'scores': {name: interval.summary(x) for name, x in scores.items()}}
  packed = io.BytesIO()
  np.savez(packed, **scores)
  files.write(path / 'tasks.npz', packed.getvalue())
  if c.write_episodes:
    ids = image_ids or [measure.task_images(p, store.offsets)
                        for p in protocols]
    files.write(path / 'test_episodes.json', episode_files.to_json(
        store, protocols, ids, config.data.dir))
  files.write(path / 'test.json', json.dumps(result, indent=2))
  return result


def choose_C(config, algorithm, variables, store):
  """Measures config.eval.choose_C on validation tasks.

  The tasks are config.validation's with the test's ways, first shots, and
  copies of the support.

  Returns:
    'C', the best one, and 'validation_by_C', accuracy by C.
  """
  c = config.eval
  protocol = validation_protocol(config)._replace(
      ways=c.ways, shots=c.shots, queries=c.queries,
      normalise_features=c.normalise_features,
      support_copies=c.support_copies, augmentation=dict(config.augment))
  episodes.check(store, ways=c.ways, images_per_class=c.shots + c.queries,
                 field='eval')
  fixed = head_options(config, 'logistic')
  found = measure.meta_test(
      algorithm, variables, store, protocol,
      {str(C): ('logistic', {**fixed, 'C': C}) for C in c.choose_C})
  means = {C: float(np.mean(found[str(C)])) for C in c.choose_C}
  return {'C': max(means, key=means.get),
          'validation_by_C': {str(C): mean for C, mean in means.items()}}


def evaluate_run(config, checkpoint, path):
  """Tests a run that has been trained; the run's folder is only read.

  Args:
    config: the run's, with other `eval`, `heads` or `data` folders.
    checkpoint: workdir of the run.
    path: folder for the files.

  Returns:
    The contents of test.json.
  """
  validate(config)
  path = _folder(path)
  devices.split_cpu(config.parallel.cpu_devices)
  model = trained.load(checkpoint, config)
  splits = {}
  if config.eval.choose_C:
    splits['validation'] = stores.load(
        config.data.name, 'validation', config.data.dir,
        config.data.manual_dir)
  splits['test'] = tested_store(config, model.data, splits)
  untrained = None
  if config.eval.baselines:
    untrained = build.initial_state(
        config, model.algorithm, model.data['image_shape']).variables
  files.make(path)
  result = test(config, path, model.algorithm, model, splits, untrained)
  if config.log.progress:
    print(report.scores(result))
    print(f'Everything is in {path}')
  return result


def _folder(path):
  """Returns a folder for results, which is not that of a run."""
  path = files.at(path)
  if (path / workdir.CONFIG).exists():
    raise UserError(f'{path} is the workdir of a run, whose own results stay: '
                    'choose another --workdir')
  return path


def write_features(config, checkpoint, path):
  """Writes the features of config.eval's split to features.npz.

  `features` float32 [I, D], `labels` int32 [I], `class_names` [M], `names`
  [I] of the images; unit length where config.eval.normalise_features.
  """
  validate(config)
  path = _folder(path)
  model = trained.load(checkpoint, config)
  c = config.eval
  store = as_trained(stores.load(
      c.data or config.data.name, c.split, config.data.dir,
      config.data.manual_dir), model.data)
  features = measure.split_features(
      model.algorithm, model.variables, store, c.normalise_features,
      c.batch_size)
  packed = io.BytesIO()
  np.savez(packed, features=features, class_names=np.array(store.class_names),
           labels=np.repeat(np.arange(store.num_classes, dtype=np.int32),
                            np.diff(store.offsets)),
           names=np.array(stores.image_names(store, config.data.dir)))
  files.make(path)
  files.write(path / 'features.npz', packed.getvalue())
  if config.log.progress:
    print(f'{len(features)} features of {features.shape[1]} numbers are in '
          f'{path / "features.npz"}')
