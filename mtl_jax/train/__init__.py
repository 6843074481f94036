"""Training: the step, the optimizers and their schedules, pure."""
