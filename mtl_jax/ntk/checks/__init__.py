"""Checks of the theory, each behind one contract."""
