"""Writers that show a run's numbers in other programs: config.log.writers.

Each needs a package, which the extra of its name installs.
"""

import contextlib
import importlib.util
import os
import uuid
from collections.abc import Callable
from typing import NamedTuple

from mtl_jax import files
from mtl_jax.errors import UserError, first_line

PACKAGES = {'tensorboard': 'tensorboardX', 'wandb': 'wandb'}
WANDB_ID = 'wandb_id.txt'  # in the workdir


class Writer(NamedTuple):
  """Where a run's numbers go.

  scalars(step, values) adds numbers by name; close() ends the writer.
  """

  scalars: Callable
  close: Callable


def check(names):
  """Raises UserError where the package of a writer is missing."""
  for name in names:
    if importlib.util.find_spec(PACKAGES[name]) is None:
      raise UserError(
          f'config.log.writers names {name}, whose package {PACKAGES[name]} '
          f"is not installed: pip install 'mtl_jax[{name}]', or leave it out")


@contextlib.contextmanager
def opened(names, path, settings, resumed):
  """Yields (step, values) -> None, which hands numbers to all writers.

  Values that are no numbers, such as None, are left out.

  Args:
    names: of PACKAGES.
    path: the workdir.
    settings: mapping of all fields, for writers that show it.
    resumed: whether the run goes on from a saved state.
  """
  with contextlib.ExitStack() as stack:
    kept = []
    for name in dict.fromkeys(names):
      kept.append(WRITERS[name](path, settings, resumed))
      stack.callback(kept[-1].close)

    def scalars(step, values):
      numbers = {name: value for name, value in values.items()
                 if isinstance(value, int | float)}
      for writer in kept:
        writer.scalars(step, numbers)

    yield scalars


def tensorboard(path, settings, resumed):
  """Returns the Writer of events in PATH/tensorboard."""
  import tensorboardX

  del settings, resumed
  events = tensorboardX.SummaryWriter(str(path / 'tensorboard'))

  def scalars(step, values):
    for name, value in values.items():
      events.add_scalar(name, value, step)

  return Writer(scalars, events.close)


def wandb(path, settings, resumed):
  """Returns the Writer of a run of Weights & Biases.

  Its project is $WANDB_PROJECT or mtl_jax; WANDB_MODE=offline keeps all in
  PATH/wandb. The id of the run is kept, so that a resumed run goes on in it.

  Raises:
    UserError: it cannot be started, such as without a key or a network.
  """
  import wandb as package

  file = path / WANDB_ID
  if not (resumed and file.exists()):
    files.write(file, uuid.uuid4().hex[:8])
  try:
    run = package.init(
        project=os.environ.get('WANDB_PROJECT', 'mtl_jax'),
        id=file.read_text(), resume='allow', name='/'.join(path.parts[-2:]),
        dir=str(path) if files.can_append(path) else None, config=settings,
        settings=package.Settings(silent=True, console='off'),
        reinit='create_new')
  except package.errors.Error as error:
    raise UserError(f'config.log.writers: wandb cannot start '
                    f'({first_line(error)}): run `wandb login`, or set '
                    'WANDB_MODE=offline') from error

  def scalars(step, values):
    # Steps never go back there: a resumed run repeats some, and the test is of
    # an earlier state.
    run.log(values, step=max(step, run.step))

  return Writer(scalars, run.finish)


WRITERS = {'tensorboard': tensorboard, 'wandb': wandb}
