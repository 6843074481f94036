"""The tables of costs: training, and the factors of the efficiency study.

The study of Wang, Zhao & Li (ICML 2021) explains why gradient-based
meta-learning takes longer than MTL by three factors: the cost of an image, the
images of an epoch, and the epochs. Each is marked 'measured', or 'published'
where it is that of the source of a method's recipe.
"""

from typing import NamedTuple

import numpy as np

from mtl_jax import algorithms
from mtl_jax.errors import UserError
from mtl_jax.report import page, records

REFERENCE = 'mtl'
# GPU hours of a training in the paper: (benchmark, shots) -> method -> hours.
# They are on its authors' machine, with ResNet-12.
PAPER_HOURS = {('mini_imagenet', 5): {'mtl': 3.7, 'metaoptnet': 85.6}}
# How the last layer is learned in training.
_HEADS = {
    'mtl': 'linear, joint', 'whole_class': 'linear, joint',
    'anil': 'gradient steps', 'metaoptnet': 'SVM', 'r2d2': 'ridge',
    'maml': 'steps of all layers', 'meta_sgd': 'steps of all layers',
    'imaml': 'proximal, all layers', 'minibatch_prox': 'proximal, all layers',
    'protonet': 'class means'}
_TRAINING = (
    'Means over the seeds. Seconds are those of training alone; validation '
    'has its own column. They are the steps at their median pace, without '
    'compilation. FLOPs are those of the compiled step times the steps; a loop '
    'whose passes the program does not say, as in the solver of an SVM, counts '
    'once.')
_MEASURED = (
    'Product: seconds per image × images per epoch × epochs. "× MTL" is the '
    'factor over the same column of MTL, on the same benchmark, device and '
    'number of shots: for the cost of an image it is the price of second '
    'order, or of the solver of the head. "-": not known, or measured on '
    'another device than MTL.')
_PUBLISHED = (
    'The same product for the schedule of the source of the recipe: the cost '
    'of an image is measured here, on this device and with the network that '
    'was trained here; images per epoch and epochs are published. "(ours)": '
    'the source states only the product of the two, and the epoch is ours. '
    '"until": the source trains until validation has not risen for so many '
    'epochs, so that the number of epochs is not published. "(nearest)": '
    'nobody published a schedule of this method for this benchmark and these '
    'shots, so that it is the one of the nearest recipe: of another benchmark, '
    'other shots or another method. Hours in the paper are GPU hours on '
    'its machine with ResNet-12.')


class Schedule(NamedTuple):
  """What the source of a method's recipe trains.

  epoch_is_published: whether the source has this epoch, and not only its
    product with the number of epochs.
  epochs: None where validation decides.
  patience: epochs without gain after which a training ends, or 0.
  nearest: whether the source has another benchmark, shots or method.
  """

  images_per_epoch: int
  epoch_is_published: bool
  epochs: int | None
  patience: int
  nearest: bool

  @property
  def images(self):
    """Images of the whole training, None where validation decides."""
    return product(self.images_per_epoch, self.epochs)

  def images_text(self):
    """Returns the images of the whole training, or what decides about them."""
    if self.epochs is None:
      return self.epochs_text()
    return count(self.images) + ' (nearest)' * self.nearest

  def epochs_text(self):
    """Returns the number of epochs, or what decides about it."""
    if self.epochs is None:
      return (f'until {self.patience} epochs without gain'
              + ' (nearest)' * self.nearest)
    return f'{self.epochs:,} {self.mark()}'

  def mark(self):
    """Returns whose the factors are."""
    return ('(nearest)' if self.nearest else
            '(published)' if self.epoch_is_published else '(ours)')


class Cost(NamedTuple):
  """Of a group: means over its seeds; None where a record has no number."""

  seeds: int
  seconds: float | None
  validation_seconds: float | None
  steps: float | None
  images: float | None
  images_per_epoch: float | None
  epochs: float | None
  images_per_step: float | None
  flops_per_step: float | None
  parameters: float | None
  machine: tuple | None  # None: of several

  @property
  def per_image(self):
    """Seconds of training per image."""
    return ratio(self.seconds, self.images)

  @property
  def flops(self):
    """FLOPs of all steps."""
    return product(self.flops_per_step, self.steps)

  @property
  def flops_per_image(self):
    """FLOPs of a step per image."""
    return ratio(self.flops_per_step, self.images_per_step)

  @property
  def hours(self):
    """The product of the three factors."""
    return ratio(product(
        self.per_image, self.images_per_epoch, self.epochs), 3600)


def of_group(cells):
  """Returns the Cost of the cells of a group."""
  def mean(name):
    values = [cell.get(f'training.{name}') for cell in cells]
    return None if None in values else float(np.mean(values))
  machines = {_machine(cell) for cell in cells}
  return Cost(len(cells), *map(mean, Cost._fields[1:-1]),
              machines.pop() if len(machines) == 1 else None)


def training(methods):
  """Returns the page.Table of what the trainings of a column took.

  Args:
    methods: of accuracy.groups.
  """
  rows = []
  for name, cells in methods.items():
    c = of_group(cells)
    rows.append((
        name, str(c.seeds), count(c.steps), count(c.images), count(c.seconds),
        number(ratio(product(c.seconds, 1000), c.steps)),
        number(ratio(c.images, c.seconds)), count(c.validation_seconds),
        number(c.flops_per_step), number(c.flops), count(c.parameters)))
  return _known(page.Table(
      ('method', 'seeds', 'steps', 'images', 'seconds', 'ms per step',
       'images per s', 'validation, s', 'FLOPs per step', 'FLOPs',
       'parameters'), rows, note=_TRAINING))


def measured(methods):
  """Returns the page.Table of the factors as they were run in a column."""
  costs = {name: of_group(cells) for name, cells in methods.items()}
  rows = []
  for name, c in costs.items():
    mtl = _reference(costs, c)
    rows.append((
        name, head(methods[name]),
        number(product(c.per_image, 1000)),
        _times(c.per_image, mtl and mtl.per_image),
        _times(c.flops_per_image, costs[REFERENCE].flops_per_image
               if REFERENCE in costs else None),
        count(c.images_per_epoch), number(c.epochs), number(c.hours),
        _times(c.hours, mtl and mtl.hours)))
  how = '(measured)'
  return _known(page.Table(
      ('method', ('head', 'in training'), ('ms per image', how),
       ('× MTL', 'price, time'), ('× MTL', 'price, FLOPs'),
       ('images per epoch', how), ('epochs', how), ('hours', 'product'),
       ('× MTL', 'hours')), rows, 2, _MEASURED))


def at_published(column, methods):
  """Returns the page.Table of the published schedules, or None.

  Args:
    column: an accuracy.Column.
    methods: of accuracy.groups.
  """
  rows = []
  paper = PAPER_HOURS.get((column.benchmark, column.shots), {})
  for name, cells in methods.items():
    found = schedule(records.base(name), column.benchmark, column.shots)
    if not found:
      continue
    c = of_group(cells)
    row = (
        name, number(product(c.per_image, 1000)),
        f'{found.images_per_epoch:,} {found.mark()}', found.epochs_text(),
        found.images_text() if found.epochs else '-',
        number(ratio(product(c.per_image, found.images), 3600)))
    given = paper.get(records.base(name))
    rows.append((*row, number(given), _times(given, paper.get(REFERENCE)))
                if paper else row)
  header = ('method', ('ms per image', '(measured)'), 'images per epoch',
            'epochs', ('images', '(published)'), ('hours', 'product'))
  if paper:
    header += (('hours in the paper', '(published)'), ('× MTL', '(published)'))
  return page.Table(header, rows, note=_PUBLISHED) if rows else None


def schedule(method, benchmark, shots):
  """Returns the Schedule of the source of a method's recipe, or None."""
  if method not in algorithms.METHODS:  # a file of a user's is not run
    return None
  try:
    recipe = algorithms.recipe(method, benchmark, shots, 'published')
  except UserError:
    return None
  stated = recipe.stated()
  get = lambda name: stated.get(f'train.{name}')
  tasks = get('epoch_tasks') or recipe.overrides.get('train.epoch_tasks')
  numbers = tasks, get('ways'), get('shots'), get('queries')
  if not all(isinstance(value, int) for value in numbers):
    return None
  until, epochs = get('stop_patience') or 0, get('max_epochs')
  if not until and not isinstance(epochs, int):
    return None
  return Schedule(
      tasks * numbers[1] * (numbers[2] + numbers[3]),
      'train.epoch_tasks' in stated, None if until else epochs, until,
      recipe.ours)


def head(cells):
  """Returns how a group learns its last layer in training."""
  name = records.base(cells[0].method)
  chosen = cells[0].get('config.method.head')
  if name == 'metaoptnet' and isinstance(chosen, str):
    return 'SVM' if chosen == 'svm' else chosen
  return _HEADS.get(name, '-')


def ratio(value, by):
  """Returns value / by, None where one is not known or `by` is zero."""
  return None if value is None or not by else value / by


def product(*values):
  """Returns the product of numbers, None where one is not known."""
  return None if None in values else float(np.prod(values))


def number(value):
  """Returns three significant digits, such as '0.0123' or '1.23e+15'."""
  if value is None:
    return '-'
  if value and not 1e-3 <= abs(value) < 1e6:
    return f'{value:.2e}'
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def count(value):
  """Returns a number without its fraction, such as '307,200'."""
  return '-' if value is None else f'{value:,.0f}'


def _known(table):
  """Returns a table without the columns of which nothing is known."""
  keep = [i for i in range(len(table.header))
          if {row[i] for row in table.rows} != {'-'}]
  return table._replace(header=tuple(table.header[i] for i in keep), rows=[
      tuple(row[i] for i in keep) for row in table.rows])


def _machine(cell):
  """Returns what times are of; devices of a CPU are shares of its cores."""
  device = cell.get('provenance.device')
  return (device, cell.get('provenance.processor'),
          None if device == 'cpu' else cell.get('provenance.devices'))


def _times(value, by):
  found = ratio(value, by)
  return '-' if found is None else f'{found:.2f}'


def _reference(costs, cost):
  """Returns MTL's Cost where it is of the same machine, or None."""
  mtl = costs.get(REFERENCE)
  return mtl if mtl and mtl.machine and mtl.machine == cost.machine else None
