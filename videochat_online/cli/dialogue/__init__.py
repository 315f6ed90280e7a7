"""Conversations on the command line."""
