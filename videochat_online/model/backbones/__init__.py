"""Families of models by name: what each has of its own. One file a family."""
