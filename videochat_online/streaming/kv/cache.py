"""Keys and values of a sequence's tokens, and what those tokens are.

Owns the forward pass of the language model that fills the cache, so that another kind of cache, of fixed size and
with recorded graphs, can take its place. Knows nothing of prompts, sessions or budgets.

Shapes: `L` and `N` tokens, `V` vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from videochat_online.model.rope import fixed_regime
from videochat_online.model.tokens import TokenKey, Tokens, run_language_model

PIECE_TOKENS = 1024
"""Tokens that are computed at once where others stand before them. Attention then goes by a mask and computes what the
mask hides, too: in one piece that would be up to half of it."""


class KeyValueCache(Protocol):
    """A cache that can be cut off at any token."""

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are there."""

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""

    def append(self, tokens: Tokens) -> Tensor:
        """Run the language model on the tokens that come next; logits [V] after the last of them."""

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens`."""


class DynamicKeyValueCache:
    """transformers' growing cache; see `KeyValueCache`. `crop` asks for a model without `why_not_croppable`.

    Args:
        language_model: language model in evaluation mode.
    """

    def __init__(self, language_model: PreTrainedModel) -> None:
        self._model = language_model
        self._cache = DynamicCache(config=language_model.config)

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are there."""
        return int(self._cache.get_seq_length())

    @property
    def num_bytes(self) -> int:
        """Memory that it holds; after `crop`, until the next `append`, that of what was cut off too."""
        layers = [layer for layer in self._cache.layers if layer.is_initialized]
        return sum(each.untyped_storage().nbytes() for layer in layers for each in (layer.keys, layer.values))

    @torch.inference_mode()
    def append(self, tokens: Tokens) -> Tensor:
        """Run the language model on the tokens that come next; logits [V] after the last of them."""
        return run_in_pieces(self._model, tokens, self._cache)

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens`."""
        surplus = self.num_tokens - num_tokens
        if surplus > 0:
            self._cache.crop(-surplus)


def run_in_pieces(language_model: PreTrainedModel, tokens: Tokens, cache: Cache) -> Tensor:
    """Run the language model on what comes after a cache's tokens, and add it there; logits [V] after the last one."""
    size = PIECE_TOKENS if cache.get_seq_length() else len(tokens)
    for start in range(0, len(tokens), size):
        piece = tokens[start : start + size]
        logits_BLV = run_language_model(
            language_model, [piece], past_key_values=cache, use_cache=True, logits_to_keep=1
        )
    return logits_BLV[0, -1]


def why_not_croppable(language_model: PreTrainedModel) -> str | None:
    """Why a cache of this model cannot be cut off at a token; None where it can.

    Sliding windows and linear attention forget what came before, or mix it into one state. A kind of layer that
    is not known counts as one of them.
    """
    kinds = {type(layer) for layer in DynamicCache(config=language_model.config).layers}
    unknown = sorted(kind.__name__ for kind in kinds if kind is not DynamicLayer)
    return f"its cache has layers that cannot be cropped ({', '.join(unknown)})" if unknown else None


def kv_bytes_per_token(language_model: PreTrainedModel) -> int:
    """Bytes that keys and values of one token take in all layers of full attention."""
    config = language_model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * language_model.dtype.itemsize


class CachedSequence:
    """A cache together with what its tokens are and in which regime of the rope they were made.

    Args:
        cache: empty cache.
        long_regime: whether LongRoPE's long regime is used; None where the model has none.
    """

    def __init__(self, cache: KeyValueCache, long_regime: bool | None) -> None:
        self.cache = cache
        self.long_regime = long_regime
        self.keys: list[TokenKey] = []
        self.num_computed = 0
        """Tokens that went through the language model since it was taken into use."""

    @property
    def num_tokens(self) -> int:
        """Tokens that need not be computed again."""
        return self.cache.num_tokens

    def append(self, tokens: Tokens) -> Tensor:
        """Compute the tokens that come next; logits [V] after the last of them. After an error it is not whole."""
        with fixed_regime(self.long_regime):
            logits_V = self.cache.append(tokens)
        self.keys.extend(tokens.keys)
        self.num_computed += len(tokens)
        return logits_V

    def logits_of(self, tokens: Tokens) -> Tensor:
        """Logits [N, V] after each of the tokens that might come next; they are not kept."""
        length = self.num_tokens
        logits_NV = torch.stack([self.append(tokens[n : n + 1]) for n in range(len(tokens))])
        self.crop(length)
        return logits_NV

    def crop(self, num_tokens: int) -> None:
        """Forget what comes after the first `num_tokens`."""
        self.cache.crop(num_tokens)
        del self.keys[num_tokens:]
