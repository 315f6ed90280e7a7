"""The network of a run before its first step: loaded, frozen in parts, with adapters."""
