"""Samples in order: epochs, packs, batches."""
