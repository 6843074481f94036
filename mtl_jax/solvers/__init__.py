"""Solvers that heads and implicit gradients need and no library gives."""
