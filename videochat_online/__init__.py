"""VideoChat-Online: online video language models with bounded memory."""

__version__ = "0.1.0"
