"""What the language model has computed of a stream: caches, what is reused of them, how much they may take."""
