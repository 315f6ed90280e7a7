"""The keys of a run: from files and flags to values, DeepSpeed's plans among them."""
