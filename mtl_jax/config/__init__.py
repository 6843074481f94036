"""The config of a run: its fields, and what is checked of them."""

from mtl_jax.config.fields import FIELDS, ConfigDict, base_config, to_json
from mtl_jax.config.named import load as load_config
from mtl_jax.config.recipes import set_method

__all__ = ['FIELDS', 'ConfigDict', 'base_config', 'load_config', 'set_method',
           'to_json']
