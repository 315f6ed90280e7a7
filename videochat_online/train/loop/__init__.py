"""transformers' training loop, and all that is hooked into it."""
