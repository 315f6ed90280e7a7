"""Checkpoints of every known layout, read and written."""
