"""Video files by their packets: clocks, tables of frames, readers."""
