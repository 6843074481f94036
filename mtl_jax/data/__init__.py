"""Data: builders (files to TFDS), stores (a split in memory), episodes."""
