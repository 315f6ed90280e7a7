"""Tiny models and tokenizers, made on the spot: for tests, for trying the commands, and to measure with.

    from videochat_online.testing import make_tiny_model
    make_tiny_model("outputs/tiny_model")   # or: python -m videochat_online.testing outputs/tiny_model

They have learned nothing: their answers are noise, but the same for a seed.
"""

from videochat_online.testing.random_model import SIZES, published_config, random_model
from videochat_online.testing.tiny_backbones import FAMILIES, byte_tokenizer, make_tiny_backbone
from videochat_online.testing.tiny_model import LLMS, make_tiny_model, tiny_config
from videochat_online.testing.tiny_tokenizer import build_tiny_tokenizer, build_word_tokenizer

__all__ = [
    "FAMILIES",
    "LLMS",
    "SIZES",
    "build_tiny_tokenizer",
    "build_word_tokenizer",
    "byte_tokenizer",
    "make_tiny_backbone",
    "make_tiny_model",
    "published_config",
    "random_model",
    "tiny_config",
]
