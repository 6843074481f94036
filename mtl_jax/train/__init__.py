"""Training: the step and the optimizers, as pure functions."""
