"""Meta-test: adapt to unseen tasks and measure."""
