"""Checks of the theory, by name; check.py has their contract.

A new check is a file here that ends in its Check, and a line below.
"""

from mtl_jax.ntk.checks import bound, closeness, equivalence, finite_width

CHECKS = {
    'bound': bound.CHECK,
    'finite_width': finite_width.CHECK,
    'equivalence': equivalence.CHECK,
    'closeness': closeness.CHECK,
}
