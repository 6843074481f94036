"""The one place that documents every common field.

A config file in configs/ starts from `base_config()`, sets what its
benchmark needs and takes the fields of a method with `set_method`. There is
no second default anywhere, and no value that is derived from another.
"""

import json

import ml_collections

from mtl_jax import fields, heads
from mtl_jax.algorithms import METHODS
from mtl_jax.errors import check_choice
from mtl_jax.evaluate import tune_all

ConfigDict = ml_collections.ConfigDict


def base_config():
  """Returns all common fields with their defaults."""
  c = ConfigDict()
  c.seed = 0  # initial values, order of the training tasks, validation tasks
  c.source = ''  # where the settings stand, printed at the start

  # The method and its own fields: see `options` in mtl_jax/algorithms/*.py.
  # `:name` behind the config file chooses it.
  c.method = ConfigDict({'name': ''})

  # The backbone and its own fields: see mtl_jax/models/*.py.
  c.model = ConfigDict({'name': 'conv4', 'width': 64, 'pool': 'flat',
                        'dtype': 'float32'})

  c.data = ConfigDict()
  c.data.name = ''  # a data set of `python -m mtl_jax.data list`
  c.data.dir = ''  # TFDS data_dir; '': $MTL_JAX_DATA, then TFDS's default
  # Folder of the published files, read when the data set is built; '':
  # $MTL_JAX_MANUAL.
  c.data.manual_dir = ''
  # Where training pixels are: all on the 'device', or on the 'host', with a
  # thread that gathers the next steps' ones. The same episodes either way.
  c.data.store = 'device'

  # Of training images, in the order of `operations` (names in
  # data/augment.py), each image drawn afresh whenever it is seen.
  c.augment = ConfigDict()
  c.augment.operations = ()
  c.augment.padding = 8  # crop: pixels on every side, zero
  c.augment.brightness = 0.4  # jitter: factors U[1 - x, 1 + x]
  c.augment.contrast = 0.4
  c.augment.saturation = 0.4

  c.train = ConfigDict()
  c.train.ways = 5  # N, classes of a task
  c.train.shots = 5  # K, support images a class
  c.train.queries = 5  # Q, query images a class
  c.train.meta_batch = 2  # T, tasks of a step
  c.train.epoch_tasks = 1600  # tasks between two validations
  c.train.max_epochs = 1000
  c.train.stop_patience = 15  # epochs without gain before the end; 0: never

  c.optimizer = ConfigDict()
  c.optimizer.name = 'radam'  # radam, adam, sgd
  c.optimizer.learning_rate = 1e-3
  c.optimizer.beta1 = 0.9  # radam, adam
  c.optimizer.beta2 = 0.999
  c.optimizer.epsilon = 1e-8
  c.optimizer.momentum = 0.9  # sgd
  c.optimizer.nesterov = False
  # radam, adam: decoupled (times the rate); sgd: added to the gradient.
  c.optimizer.weight_decay = 0.
  c.optimizer.clip = 0.  # each number of the gradient to +- this; 0: not
  # constant, step, cosine, linear, or plateau (of the validation accuracy).
  c.optimizer.schedule = 'plateau'
  c.optimizer.step_epochs = ()  # step: from these epochs on ...
  c.optimizer.step_scales = ()  # ... the rate is learning_rate times these
  c.optimizer.decay_epochs = 100  # cosine, linear: until the rate is zero
  c.optimizer.warmup_epochs = 0  # cosine: linear warm-up, part of the above
  c.optimizer.plateau_factor = 0.1
  c.optimizer.plateau_patience = 4  # epochs without gain that are forgiven
  c.optimizer.plateau_threshold = 1e-4  # relative gain that counts

  # Validation tasks, the same after every epoch; the best epoch is tested.
  c.validation = ConfigDict()
  c.validation.tasks = 400
  c.validation.ways = 5
  c.validation.shots = 5
  c.validation.queries = 15
  c.validation.head = 'logistic'
  c.validation.normalise_features = True  # unit length

  # The test: the same tasks for every method and every run.
  c.eval = ConfigDict()
  c.eval.data = ''  # the data set; '': the one trained on
  c.eval.split = 'test'
  c.eval.tasks = 2000
  c.eval.ways = 5
  c.eval.shots = 5
  c.eval.queries = 15
  c.eval.seed = 0
  c.eval.also_shots = ()  # more shots, from the same pass over the images
  # New heads on frozen features, by name; 'own' is the method's adaptation,
  # 'tune_all' adapts every layer.
  # The first one's accuracy is the run's.
  c.eval.heads = ('logistic',)
  c.eval.normalise_features = True  # unit length
  # Fit heads on so many augmented copies (config.augment) of each support
  # image in place of the image; RFS has 5. 0: the image itself.
  c.eval.support_copies = 0
  # Values of C among which validation tasks choose the logistic head's.
  c.eval.choose_C = ()
  # test_episodes.json of tasks to take; '': drawn. And whether to write it.
  c.eval.read_episodes = ''
  c.eval.write_episodes = False
  # Another data set's test classes may stand in the training split: refused
  # unless this is set.
  c.eval.allow_seen_classes = False
  # Scores of the untrained backbone and of raw pixels beside the run's.
  c.eval.baselines = False
  c.eval.batch_size = 250  # images of a forward pass
  # Tasks whose heads are fitted together; on a CPU about 200 stay in cache.
  c.eval.tasks_at_once = 200

  # Options of each head: see mtl_jax/heads/*.py.
  c.heads = ConfigDict({name: dict(module.OPTIONS)
                        for name, module in heads.HEADS.items()})

  c.tune_all = ConfigDict(fields.defaults(tune_all.OPTIONS))

  c.parallel = ConfigDict()
  c.parallel.devices = 0  # 0: as many local ones as divide the meta-batch
  # Devices that a CPU is counted as, best one a core; 0: as jax finds it.
  c.parallel.cpu_devices = 0
  c.parallel.compile = 'jit'  # jit or pmap, the same step
  # None: train.meta_batch must divide; a number n: the meta-batch becomes n
  # times `devices`, which must be stated, and train.meta_batch is not read.
  c.parallel.tasks_per_device = ml_collections.config_dict.placeholder(int)
  # Tasks of a device in one pass; gradients of several passes are averaged,
  # with the same result and less memory. 0: all.
  c.parallel.tasks_at_once = 0
  # Whether those passes are compiled one behind the other. A loop compiles
  # faster and is what an accelerator wants; a CPU runs convolutions in a loop
  # several times as long.
  c.parallel.unroll_passes = False

  c.log = ConfigDict()
  c.log.every_steps = 50  # how often losses are fetched from the device
  c.log.progress = True  # a bar on a terminal, plain lines elsewhere
  c.log.tensorboard = True  # events, where the extra is installed
  return c


def set_method(config, name, *, benchmark, shots):
  """Sets `config.method` and the method's published settings.

  Args:
    config: from base_config, changed in place.
    name: of algorithms.METHODS.
    benchmark: data set whose published settings are wanted.
    shots: K of the test.
  """
  check_choice('the method behind the config file', name, METHODS)
  config.method = METHODS[name].options()
  config.method.name = name
  published = METHODS[name].published(benchmark, shots)
  config.update_from_flattened_dict(published.overrides)
  config.source = ('ours; nearest: ' * published.ours) + published.source


def method_options(config):
  """Returns the keywords of the method's `build`."""
  return {k: v for k, v in config.method.items() if k != 'name'}


def model_options(config):
  """Returns the keywords of `models.create`."""
  return {k: v for k, v in config.model.items() if k != 'name'}


def to_json(config):
  """Returns the config as text, every field once, for config.json."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)
