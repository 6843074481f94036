"""Set the method of a config and the recipe that it is trained by."""

import ml_collections

from mtl_jax import algorithms, fields, models


def set_method(config, name, *, benchmark, shots, scale='published'):
  """Sets `config.method` and the settings of one of the method's recipes.

  A published recipe also sets the network, the augmentation, and how it is
  validated and tested. What a config file sets afterwards differs from the
  source, and a run says so.

  Args:
    config: of base_config, changed in place.
    name: a key of algorithms.METHODS, or the path of a user's file.
    benchmark: data set whose settings are wanted.
    shots: K of the test.
    scale: 'published', 'cpu' or 'fast'; see algorithms.base.Recipe.

  Raises:
    UserError: there is no such method, or it has no such recipe; the line
      lists those it has.
  """
  method = algorithms.find(name, 'the method after the config file')
  recipe = algorithms.recipe(name, benchmark, shots, scale)
  config.method = ml_collections.ConfigDict(
      {**fields.defaults(method.OPTIONS), 'name': name})
  network = recipe.overrides.get('model.name')
  if network:
    config.model = ml_collections.ConfigDict(
        {**models.defaults(network), 'name': network})
  config.update_from_flattened_dict(recipe.overrides)
  config.source = str(recipe)
  config.recipe.update(benchmark=benchmark, shots=shots, scale=scale)
