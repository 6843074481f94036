"""Set the method of a config and the recipe that it is trained by."""

import ml_collections

from mtl_jax import algorithms, fields


def set_method(config, name, *, benchmark, shots, scale='published'):
  """Sets `config.method` and the settings of one of the method's recipes.

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
  config.update_from_flattened_dict(recipe.overrides)
  config.source = str(recipe)
