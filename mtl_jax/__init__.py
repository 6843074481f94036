"""Few-shot representation learning: multi-task against meta-learning.

The public face. Each name is loaded when it is first asked for:

  train_and_evaluate, load               make a run; load what it has learned
  load_config                            a config by name: 'mini_5shot:maml'
  base_config, set_method                configs of your own
  METHODS, HEADS, MODELS, SOURCES        what is registered
  Algorithm, Recipe, Field, DataSource   contracts for files of your own
  UserError                              what a user can mend

Other modules may be imported too, but may change.
"""

import importlib

_PUBLIC = {
    'train_and_evaluate': 'mtl_jax.run.loop',
    'load': 'mtl_jax.run.trained',
    'load_config': 'mtl_jax.config',
    'base_config': 'mtl_jax.config',
    'set_method': 'mtl_jax.config',
    'METHODS': 'mtl_jax.algorithms',
    'HEADS': 'mtl_jax.heads',
    'MODELS': 'mtl_jax.models',
    'SOURCES': 'mtl_jax.data.sources',
    'Algorithm': 'mtl_jax.algorithms.base',
    'Recipe': 'mtl_jax.algorithms.base',
    'Field': 'mtl_jax.fields',
    'DataSource': 'mtl_jax.data.source',
    'UserError': 'mtl_jax.errors',
}
__all__ = list(_PUBLIC)


def __getattr__(name):
  """Loads a public name; `import mtl_jax` alone loads nothing."""
  if name not in _PUBLIC:
    raise AttributeError(f'mtl_jax has no {name}: it has {", ".join(__all__)}')
  return getattr(importlib.import_module(_PUBLIC[name]), name)
