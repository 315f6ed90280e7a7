"""Live streams and their turns at one model."""
