"""The folder of a run: what it is a run of, checkpoints, result, report."""
