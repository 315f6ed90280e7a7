"""Folders that runs write to, the files in them, and how far a run is: training and evaluation share it."""
