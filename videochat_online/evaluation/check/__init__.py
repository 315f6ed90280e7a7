"""A benchmark before it is run: annotations, videos, archives."""
