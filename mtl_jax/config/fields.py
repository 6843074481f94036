"""The fields of a config, each declared once.

Defaults, checks (check.py), what a resumed run may change (run/workdir.py)
and docs/fields.md follow from FIELDS. A config file in configs/ starts from
`base_config()`, names data and network, and takes the recipe of a method with
`set_method`. No value in a config is derived from another.
"""

import ml_collections

from mtl_jax import fields, files, heads, writers
from mtl_jax.data import augment, feed
from mtl_jax.data.source import SPLITS
from mtl_jax.evaluate import tune_all
from mtl_jax.fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Field, Range
from mtl_jax.train import optimizer

ConfigDict = ml_collections.ConfigDict
SEED = Range(0, high=2**32)
WAYS = Range(2)
# The images of all tasks of a test are drawn at once, on the host.
TASKS = Range(1, high=10**6)
COPIES = Range(0, high=1000)  # those of a task are held at once
# XLA aborts the process where it has no threads for so many.
CPU_DEVICES = Range(0, high=257)


def _each(section, **marks):
  """Marks all fields of a section."""
  return {name: field._replace(**marks) for name, field in section.items()}


# The name chooses what other fields these sections have: OPTIONS in
# mtl_jax/algorithms/*.py, attributes of the networks in mtl_jax/models/*.py.
NAMED = {
    'method': {'name': Field('', 'The method; `:name` after the config file '
                             'chooses it')},
    'model': {
        'name': Field('conv4', 'The backbone'),
        'width': Field(64, 'Channels of conv4'),
        'pool': Field('flat', 'What conv4 makes of its last map'),
        'dtype': Field('float32', 'Precision of the computation'),
    },
}

# What set_method and the command line leave behind, for config/settings.py.
RECIPE = {
    'benchmark': Field('', "Data set of the method's recipe; empty: none was "
                       'taken'),
    'shots': Field(0, 'K of the recipe', NOT_NEGATIVE),
    'scale': Field('', 'Scale of the recipe'),
    'command_line': Field((), 'Fields that the command line has set'),
}

DATA = {
    'name': Field('', 'A data set of `python -m mtl_jax.data list`, a .py file '
                  'that declares a source, or a folder of images'),
    'dir': Field('', 'Folder of built data sets; empty: $MTL_JAX_DATA, then '
                 "TFDS's default", free=True),
    'manual_dir': Field('', 'Folder of the published files, read when the data '
                        'set is built; empty: $MTL_JAX_MANUAL', free=True),
    'normalise': Field(True, 'Whether pixels / 255 are normalised by the mean '
                       'and standard deviation of the training images'),
    'mean': Field((), 'Mean of pixels / 255 per channel that is taken in place '
                  "of the training images', such as that of published weights",
                  NOT_NEGATIVE),
    'std': Field((), 'Standard deviation that belongs to `mean`', POSITIVE),
    'store': Field('auto', "Where the training pixels are: all on the "
                   "'device', or on the 'host', with a thread that gathers "
                   "those of the next steps; 'auto' takes the host if they "
                   'need more than half of the free memory of a device; the '
                   'episodes are the same',
                   feed.PLACES, free=True),
}

AUGMENT = {
    'operations': Field((), 'Applied to training images in this order, drawn '
                        'afresh whenever an image is seen',
                        tuple(augment.OPERATIONS)),
    'padding': Field(8, 'crop: zero pixels on every side', NOT_NEGATIVE),
    'brightness': Field(0.4, 'jitter: x of the factor U[1 - x, 1 + x]',
                        NOT_NEGATIVE),
    'contrast': Field(0.4, 'jitter: the same of the contrast', NOT_NEGATIVE),
    'saturation': Field(0.4, 'jitter: the same of the saturation',
                        NOT_NEGATIVE),
}

# What is trained on, by splits joined as TFDS joins them.
CLASSES = ('train', 'train+validation')

TRAIN = {
    'classes': Field('train', 'Splits whose classes are trained on; with '
                     "'train+validation' nothing is validated, and the last "
                     'step is tested', CLASSES),
    'ways': Field(5, 'N, classes per task', WAYS),
    'shots': Field(5, 'K, support images per class', COUNT),
    'queries': Field(5, 'Q, query images per class', NOT_NEGATIVE),
    'turn_classes': Field(False, 'Whether each class of a task is turned by a '
                          'random multiple of 90 degrees, drawn for each task, '
                          'all its images alike'),
    'meta_batch': Field(2, 'T, tasks per step', COUNT),
    'epoch_tasks': Field(1600, 'Tasks between two validations', COUNT),
    'max_epochs': Field(1000, 'Training ends after this many epochs', COUNT,
                        free=True),
    'stop_patience': Field(15, 'Training ends after this many epochs without '
                           'gain; 0: never', NOT_NEGATIVE),
    'save_minutes': Field(10., 'Minutes between two saved states within an '
                          'epoch; 0: only at validations', NOT_NEGATIVE,
                          free=True),
}

OPTIMIZER = {
    'name': Field('radam', 'The optimizer', optimizer.OPTIMIZERS),
    'learning_rate': Field(1e-3, 'Rate before the schedule', POSITIVE),
    'beta1': Field(0.9, 'radam, adam: decay of the first moment', SHARE),
    'beta2': Field(0.999, 'radam, adam: decay of the second moment', SHARE),
    'epsilon': Field(1e-8, 'radam, adam: added to the root of the second '
                     'moment', POSITIVE),
    'momentum': Field(0.9, 'sgd: momentum', SHARE),
    'nesterov': Field(False, "sgd: whether the momentum is Nesterov's"),
    'weight_decay': Field(0., 'radam, adam: decoupled, times the rate; sgd: '
                          'added to the gradient', NOT_NEGATIVE),
    'clip': Field(0., 'Each number of the gradient is clipped to +- this; 0: '
                  'not clipped', NOT_NEGATIVE),
    'schedule': Field('plateau', 'Schedule of the rate; plateau: of the '
                      'validation accuracy', optimizer.SCHEDULES),
    'step_epochs': Field((), 'step: from these epochs on the rate is scaled',
                         NOT_NEGATIVE),
    'step_scales': Field((), 'step: learning_rate is multiplied by these',
                         POSITIVE),
    'decay_epochs': Field(100, 'cosine, linear: the rate is zero after these '
                          'epochs', POSITIVE),
    'warmup_epochs': Field(0, 'cosine: linear warm-up, part of decay_epochs',
                           NOT_NEGATIVE),
    'plateau_factor': Field(0.1, 'plateau: the rate is multiplied by this',
                            Range(0, above=True, high=1)),
    'plateau_patience': Field(4, 'plateau: the rate falls after more '
                              'epochs without gain than this', NOT_NEGATIVE),
    'plateau_threshold': Field(1e-4, 'plateau: relative gain that counts',
                               NOT_NEGATIVE),
}

VALIDATION = {
    'tasks': Field(400, 'Validation tasks, the same after every epoch; the '
                   'best epoch is tested', TASKS),
    'ways': Field(5, 'N, classes per task', WAYS),
    'shots': Field(5, 'K, support images per class', COUNT),
    'queries': Field(15, 'Q, query images per class', COUNT),
    'head': Field('logistic', "New head on frozen features, or 'own': the "
                  "method's adaptation"),
    'normalise_features': Field(True, 'Whether features have unit length'),
}

EVAL = {
    'data': Field('', 'Data set of the test; empty: the one trained on'),
    'split': Field('test', 'Split that the tasks are drawn from',
                   SPLITS),
    'invert': Field(False, 'Whether black and white of the tested images are '
                    'exchanged'),
    'tasks': Field(2000, 'Test tasks, the same for every method and run',
                   TASKS),
    'ways': Field(5, 'N, classes per task', WAYS),
    'shots': Field(5, 'K, support images per class', COUNT),
    'queries': Field(15, 'Q, query images per class', COUNT),
    'seed': Field(0, 'Seed of the test tasks', SEED),
    'also_shots': Field((), 'Further numbers of shots to test, with the same '
                        'pass over the images', COUNT._replace(whole=True)),
    'heads': Field(('logistic',), 'New heads on frozen features, by name; '
                   "'own': the method's adaptation; 'tune_all': adapts every "
                   "layer; the first one's accuracy is the run's"),
    'normalise_features': Field(True, 'Whether features have unit length'),
    'support_copies': Field(0, 'Heads are fitted on so many augmented copies '
                            '(config.augment) of each support image in place '
                            'of the image (RFS: 5); 0: on the image',
                            COPIES),
    'choose_C': Field((), "Values among which validation tasks choose the "
                      "logistic head's C", POSITIVE),
    'read_episodes': Field('', 'A test_episodes.json whose tasks are tested; '
                           'empty: tasks are drawn'),
    'write_episodes': Field(False, 'Whether test_episodes.json is written'),
    'allow_seen_classes': Field(False, 'Whether classes of another data set '
                                'may be tested that were trained on'),
    'baselines': Field(False, 'Whether the untrained backbone and raw pixels '
                       'are scored too'),
    'batch_size': Field(100, 'Images per forward pass on a device', COUNT),
    'tasks_at_once': Field(200, 'Tasks whose heads are fitted together; on a '
                           'CPU about 200 stay in the cache', COUNT),
}

PARALLEL = {
    'devices': Field(0, 'Devices of each process; 0: all, or in one process '
                     'alone as many as divide the meta-batch', NOT_NEGATIVE,
                     free=True),
    'cpu_devices': Field(0, 'Devices that a CPU is counted as, best one per '
                         'core; 0 leaves the default of JAX', CPU_DEVICES,
                         free=True),
    'compile': Field('jit', 'How the step is compiled; the step is the same',
                     ('jit', 'pmap'), free=True),
    'tasks_per_device': Field(
        None, 'None: the devices share train.meta_batch; a number n: the '
        'meta-batch is n times the devices of all processes, and a run that '
        'resumes must have the same product', COUNT, kind=int, free=True),
    'tasks_at_once': Field(0, 'Tasks of a device in one pass; the gradients of '
                           'several passes are averaged, with the same result '
                           'and less memory; 0: all', NOT_NEGATIVE),
    'seeds': Field('in_turn', "Whether config.seeds train one after another, "
                   "'in_turn', or side by side in one compiled step, "
                   "'together', which is equal to round-off and takes memory "
                   'for each', ('in_turn', 'together'), free=True),
    'unroll_passes': Field(
        False, 'Whether those passes are unrolled; a loop compiles faster and '
        'suits an accelerator, but a CPU runs convolutions in a loop several '
        'times slower'),
}

LOG = {
    'every_steps': Field(50, 'Steps between two records of losses', COUNT),
    'progress': Field(True, 'Whether progress is shown: a bar on a terminal, '
                      'plain lines elsewhere'),
    'writers': Field((), 'Where the numbers go beside metrics.jsonl; each '
                     'needs the extra of its name', tuple(writers.PACKAGES)),
}

FIELDS = {
    'seed': Field(0, 'Seed of the initial values and of training and '
                  'validation tasks', SEED),
    'seeds': Field((), 'Seeds of several runs of this config, each in '
                   'WORKDIR/seed_N; empty: one run, of `seed`',
                   SEED._replace(whole=True)),
    'source': Field('', 'Where the settings come from, printed at the start',
                    free=True),
    'recipe': _each(RECIPE, free=True),
    'init_from': Field('', 'Workdir of a run whose weights training starts '
                       'from, set by --init_from; empty: random weights'),
    'weights': Field('', 'File of weights (npz, safetensors, PyTorch) that '
                     'training starts from, set by --weights; empty: random '
                     'weights'),
    **NAMED,
    'data': DATA,
    'augment': _each(AUGMENT, free_to_test=True),
    'train': TRAIN,
    'optimizer': OPTIMIZER,
    'validation': _each(VALIDATION, free_to_test=True),
    'eval': _each(EVAL, free=True),
    'heads': {name: _each(module.OPTIONS, free_to_test=True)
              for name, module in heads.HEADS.items()},
    'tune_all': tune_all.OPTIONS,
    'parallel': PARALLEL,
    'log': _each(LOG, free=True),
}


def base_config():
  """Returns the ConfigDict of all common fields with their defaults."""
  config = ConfigDict(fields.defaults(FIELDS))
  for name, field in fields.flat(FIELDS):
    if field.default is None:
      section, _, last = name.rpartition('.')
      config[section][last] = ml_collections.config_dict.placeholder(
          field.kind)
  return config


def to_json(config):
  """Returns the config as text, every field once, for config.json."""
  return files.json_text(config.to_dict(), indent=2, sort_keys=True)
