"""Solvers for heads and for implicit gradients, which no library provides."""
