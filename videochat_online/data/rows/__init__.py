"""Rows of annotation files: read and checked."""
