"""Few-shot representation learning: multi-task against meta-learning."""
