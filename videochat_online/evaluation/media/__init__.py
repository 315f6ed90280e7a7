"""From a benchmark's videos to frames: found, chosen, decoded."""
