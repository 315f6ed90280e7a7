"""Rows of annotation files: read, checked, named by registries."""
