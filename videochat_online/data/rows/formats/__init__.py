"""Forms in which rows are annotated, one a file; `rows/row_formats.py` finds them by name."""
