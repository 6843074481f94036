"""Data: sources (files to TFDS), stores (a split in memory), episodes."""
