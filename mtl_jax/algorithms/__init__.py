"""The methods: each is one file of pure functions over ONE task.

A method's file, one of METHODS or a file of the user's own, has

  OPTIONS: name -> mtl_jax.fields.Field, the method's own fields of a config.
    The value of `batch_norm` is printed beside every score, see network.py.
  RECIPES: (benchmark, shots, scale) -> base.Recipe, see there.
  ANY_WAYS: whether `adapt` takes other numbers of ways than training had.
  build(backbone, num_classes, ways, **options) -> base.Algorithm. `backbone`
    is a Flax module (see mtl_jax.models), `num_classes` M, `ways` the N of
    training, `options` a value for each of OPTIONS.
  check(options, train), which may be missing: raises UserError where options
    contradict each other or the section `train` of a config. It is called
    before any data is read.

A new method is one file and one line in METHODS. Nothing here knows about
devices, meta-batches or files: `train/step.py` maps `loss` over tasks.
"""

from mtl_jax import fields, registry
from mtl_jax.algorithms import (
  anil,
  base,
  imaml,
  maml,
  meta_sgd,
  metaoptnet,
  minibatch_prox,
  mtl,
  protonet,
  r2d2,
  whole_class,
)
from mtl_jax.errors import UserError, check_choice

METHODS = {
    'mtl': mtl,
    # Inner loop on the last layer.
    'anil': anil,
    'metaoptnet': metaoptnet,
    'r2d2': r2d2,
    # Inner loop on all layers.
    'maml': maml,
    'meta_sgd': meta_sgd,
    'imaml': imaml,
    'minibatch_prox': minibatch_prox,
    # Baselines.
    'protonet': protonet,
    'whole_class': whole_class,
}
_NEEDED = ('OPTIONS', 'RECIPES', 'ANY_WAYS', 'build')


def find(name, field='config.method.name'):
  """Returns the module of a method.

  Args:
    name: a key of METHODS, or the path of a user's file, which ends in .py.
    field: what holds the name, for messages.

  Raises:
    UserError: there is no such method, or the file is not a method's.
  """
  return registry.find(field, name, METHODS, _NEEDED)


def check(name, options, train):
  """Raises UserError for options of a method that cannot be used.

  Args:
    name: as of `find`.
    options: name -> value, all of the method's OPTIONS.
    train: section `train` of a config, whose own values are valid.
  """
  method = find(name)
  fields.check(method.OPTIONS, options, 'config.method.')
  if hasattr(method, 'check'):
    method.check(options, train)


def create(name, backbone, num_classes, ways, **options):
  """Builds a method over a backbone.

  Args:
    name: as of `find`.
    backbone: Flax module, of models.create.
    num_classes: M, classes of the training split.
    ways: N of a training task.
    **options: of the method's OPTIONS; the defaults hold for missing ones.

  Returns:
    base.Algorithm.

  Raises:
    UserError: unknown name, unknown option, or a value that is not allowed.
  """
  method = find(name)
  options = fields.defaults(method.OPTIONS) | options
  fields.check(method.OPTIONS, options, 'config.method.')
  return method.build(backbone, num_classes, ways, **options)


def recipe(name, benchmark, shots, scale='published'):
  """Returns a method's Recipe: the most specific one that covers the case.

  Args:
    name: as of `find`.
    benchmark: data set whose settings are wanted.
    shots: K of the test.
    scale: one of base.SCALES.

  Raises:
    UserError: the method has no such recipe; the line lists those it has.
  """
  recipes = find(name).RECIPES
  check_choice('the scale of a recipe', scale, base.SCALES)
  for key in ((benchmark, shots, scale), (benchmark, None, scale),
              (None, shots, scale), (None, None, scale)):
    if key in recipes:
      return recipes[key]
  wanted = f'{name} has no recipe {_label(shots, scale)} for {benchmark}'
  of_benchmark = [_label(*key[1:]) for key in recipes
                  if key[0] in (benchmark, None)]
  if of_benchmark:
    raise UserError(f'{wanted}: it has ' + ', '.join(of_benchmark))
  names = sorted({key[0] for key in recipes})
  raise UserError(f'{wanted}: it has recipes for ' + (
      ', '.join(names) or 'no benchmark'))


def _label(shots, scale):
  count = 'any shots' if shots is None else (
      f'{shots} shot' + 's' * (shots != 1))
  return f'({scale}, {count})'
