"""Sets by their registries, and their samples in order: epochs, packs, batches."""
