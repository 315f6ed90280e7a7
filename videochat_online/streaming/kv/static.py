"""A KV cache whose memory is there from the start.

transformers' growing cache copies all keys and values for every token that is added. Here a token is written to its
slot; passes of any length see the tokens so far, and compute what they would with the growing cache. Where the model
is to be compiled (`model.compiling`), a pass of one token sees all slots, those to come hidden by a mask: its shapes
never change, so that it is compiled once for each capacity, and a GPU can record it.

Knows nothing of prompts, sessions or budgets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from videochat_online.model.tokens import Tokens, run_language_model
from videochat_online.streaming.kv.cache import DynamicKeyValueCache, KeyValueCache, run_in_pieces, why_not_croppable

SMALLEST_CAPACITY = 512


def capacity_for(num_tokens: int) -> int:
    """Tokens that memory is taken for: 512, 768, 1024, 1536, ... at least `num_tokens`.

    Few sizes, since a step is compiled for each, and none is more than half as large again as it needs to be.
    """
    power, size = SMALLEST_CAPACITY, SMALLEST_CAPACITY
    while size < num_tokens:
        size = power * 3 // 2 if size == power else power * 2
        power = size if size == 2 * power else power
    return size


class _TokensSoFar(DynamicLayer):
    """One layer of a static cache, as a growing one would look."""

    def __init__(self, slots: StaticLayer) -> None:
        super().__init__()
        self.slots, self.num_tokens = slots, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [1, heads, L, head_dim] after the tokens so far; all of them, without a copy."""
        if not self.slots.is_initialized:
            self.slots.lazy_initialization(key_states, value_states)
        start, end = self.num_tokens, self.num_tokens + key_states.shape[-2]
        self.slots.keys[:, :, start:end] = key_states
        self.slots.values[:, :, start:end] = value_states
        self.num_tokens = end
        return self.slots.keys[:, :, :end], self.slots.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.num_tokens


class StaticKeyValueCache:
    """See the module's docstring, and `KeyValueCache`. It asks for a model without `why_not_croppable`.

    Args:
        language_model: language model in evaluation mode.
        num_tokens: tokens that are expected; for more, all is copied to a larger one.
    """

    def __init__(self, language_model: PreTrainedModel, num_tokens: int) -> None:
        self._model = language_model
        self._compile_config = getattr(language_model.generation_config, "compile_config", None)
        self._num_tokens = 0
        self._allocate(num_tokens)

    def _allocate(self, num_tokens: int) -> None:
        self._capacity = capacity_for(num_tokens)
        self._fixed = StaticCache(config=self._model.config, max_cache_len=self._capacity)
        self._growing = Cache(layers=[_TokensSoFar(slots) for slots in self._fixed.layers])
        self._is_fixed_counted = False

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are there."""
        return self._num_tokens

    @property
    def num_bytes(self) -> int:
        """Memory that it holds, slots of tokens to come too."""
        layers = [layer for layer in self._fixed.layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    @torch.inference_mode()
    def append(self, tokens: Tokens) -> Tensor:
        """Run the language model on the tokens that come next; logits [V] after the last of them."""
        end = self._num_tokens + len(tokens)
        if end > self._capacity:
            self._grow(end)
        if self._compile_config is not None and len(tokens) == 1 and self._num_tokens:
            logits_V = self._step(tokens)
        else:
            for layer in self._growing.layers:
                layer.num_tokens = self._num_tokens
            logits_V = run_in_pieces(self._model, tokens, self._growing)
            self._is_fixed_counted = False
        self._num_tokens = end
        return logits_V

    def _step(self, token: Tokens) -> Tensor:
        if not self._is_fixed_counted:  # from here on, the passes themselves count
            for layer in self._fixed.layers:
                layer.cumulative_length.fill_(self._num_tokens)
            self._is_fixed_counted = True
        compiled = self._model.get_compiled_call(self._compile_config)
        options = {"past_key_values": self._fixed, "use_cache": True, "logits_to_keep": 1}
        logits_BLV = run_language_model(compiled, [token], **options)
        return logits_BLV[0, -1].clone()  # a recorded graph writes the logits of the next token to the same memory

    def _grow(self, num_tokens: int) -> None:
        held, count = self._fixed.layers, self._num_tokens
        self._allocate(num_tokens)
        for old, new in zip(held, self._fixed.layers, strict=True):
            if old.is_initialized:
                new.lazy_initialization(old.keys, old.values)
                new.keys[:, :, :count] = old.keys[:, :, :count]
                new.values[:, :, :count] = old.values[:, :, :count]
                old.keys = old.values = None  # not two of all layers at once

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens`."""
        if num_tokens < self._num_tokens:
            self._num_tokens = num_tokens
            self._is_fixed_counted = False


def is_static(language_model: PreTrainedModel) -> bool:
    """Whether the model is to have static caches (`load_model(cache="static")`), and can."""
    is_wanted = language_model.generation_config.cache_implementation == "static"
    return is_wanted and why_not_croppable(language_model) is None


def new_cache(language_model: PreTrainedModel, num_tokens: int) -> KeyValueCache:
    """An empty cache of the kind that the model is to have, for about `num_tokens`."""
    if is_static(language_model):
        return StaticKeyValueCache(language_model, num_tokens)
    return DynamicKeyValueCache(language_model)


def allocated_tokens(language_model: PreTrainedModel, num_tokens: int) -> int:
    """Tokens that `new_cache` takes memory for when it holds `num_tokens`."""
    return capacity_for(num_tokens) if is_static(language_model) else num_tokens
