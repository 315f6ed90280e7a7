"""A row as what is shown and said: frames, turns, tokens, and how many of them."""
