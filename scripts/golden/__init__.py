"""Checks of the package against recorded numbers of the reference (see `scripts/check_golden.py`)."""
