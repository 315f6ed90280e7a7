"""Worlds as files: videos, annotations, training rows."""
