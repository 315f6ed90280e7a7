"""A memory in the KV cache: what the language model computed of a frame stays as long as the frame is remembered.

`prefix` reuses what two prompts begin with, and computes all that follows the first change. Here a frame that
leaves is cut out of the cache, a frame that changes its size or is new is computed at its place, and what follows is
kept: only its keys are turned to the positions that it moves to. Experimental, since it is an approximation: what
follows a change was computed when the frames before it were others, and still knows of them. The frames themselves, and
so what a fresh prefill would read, remain in the memory bank.

VideoChat-Online (arXiv 2501.00584) announces such a memory and has released none; the rules here are our own. Tiers,
similarities and evictions are those of the memory bank, any of them.

Shapes: `L` tokens, `R` rows of positions, `E` dimensions of a head that the rope turns, `V` vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from videochat_online.errors import InputError
from videochat_online.model.rope import fixed_regime
from videochat_online.model.tokens import TokenKey, Tokens
from videochat_online.streaming.kv.cache import CachedSequence, DynamicKeyValueCache, why_not_croppable
from videochat_online.streaming.kv.kv_budget import KvBudget
from videochat_online.streaming.kv.prefix import PrefixCache, common_length

logger = logging.getLogger(__name__)

MOVABLE_ROPES = ("default", "linear", "llama3", "yarn", "longrope")
"""Kinds whose frequencies do not depend on the length, once the regime is fixed: a key can be turned on."""


def sources(kept: Sequence[TokenKey], wanted: Sequence[TokenKey]) -> list[int | None]:
    """For each wanted token the index of the kept one that it is taken from; None where it must be computed.

    Frames are known by their content. Text is kept where it begins like that after the same frame, or ends like that
    before the same frame. Indices ascend.
    """
    found: list[int | None] = [None] * len(wanted)
    kept_frames = {kept[start]: (start, stop) for start, stop in _frames(kept)}
    kept_done = wanted_done = 0
    follows = True  # whether the kept token before `kept_done` is the wanted one before `wanted_done`
    for start, stop in (*_frames(wanted), (len(wanted), len(wanted))):
        frame = kept_frames.get(wanted[start]) if start < stop else None
        if frame is not None and frame[0] < kept_done:
            frame = None  # two frames have changed places
        text = wanted[wanted_done:start]
        if follows:
            length = common_length(kept[kept_done:], text)
            found[wanted_done : wanted_done + length] = range(kept_done, kept_done + length)
            kept_done, text = kept_done + length, text[length:]
        if frame is not None:
            length = common_length(kept[kept_done : frame[0]][::-1], text[::-1])
            found[start - length : stop] = range(frame[0] - length, frame[1])
            kept_done = frame[1]
        wanted_done, follows = stop, frame is not None
    return found


def _frames(keys: Sequence[TokenKey]) -> Iterator[tuple[int, int]]:
    """[start, stop) of each frame's tokens."""
    stop = 0
    for key, run in groupby(keys):
        start, stop = stop, stop + len(list(run))
        if isinstance(key, tuple):
            yield start, stop


class MovableCache(DynamicKeyValueCache):
    """A cache whose tokens can be taken out and moved.

    A key that has moved is always turned from where it was computed, in fp32: moving it often costs no precision. So
    the keys are there twice, as computed and at their present positions.

    Args:
        language_model: language model without `why_not_movable`.
    """

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__(language_model)
        self._computed: list[Tensor] = []
        """Of each layer the keys as they were computed; tokens beyond their end have not moved."""
        self._origins_RL = torch.empty(1, 0, dtype=torch.long)
        """Where each token was computed."""

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return super().num_bytes + sum(tensor.untyped_storage().nbytes() for tensor in self._computed)

    def append(self, tokens: Tokens) -> Tensor:
        """Run the language model on the tokens that come next; logits [V] after the last of them."""
        logits_V = super().append(tokens)
        known = self._origins_RL.expand(len(tokens.positions_RL), -1)
        self._origins_RL = torch.cat((known, tokens.positions_RL), dim=1)
        return logits_V

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens`."""
        super().crop(num_tokens)
        self._computed = [keys[..., :num_tokens, :] for keys in self._computed]
        self._origins_RL = self._origins_RL[:, :num_tokens]

    @torch.inference_mode()
    def rearrange(self, parts: Sequence[tuple[Tokens, slice | None]]) -> None:
        """Become what is put together from parts: tokens, and which of those that are there they are taken from.

        None: the tokens are computed.
        """
        old, computed, origins_RL = self._cache, self._as_computed(), self._origins_RL
        self._cache, self._origins_RL = DynamicCache(config=self._model.config), origins_RL[:, :0]
        pieces: list[list[Tensor]] = [[] for _ in old.layers]
        for tokens, source in parts:
            start = self.num_tokens
            if source is None:
                self.append(tokens)
                for piece, layer in zip(pieces, self._cache.layers, strict=True):
                    piece.append(layer.keys[..., start:, :])
                continue
            shifts_RL = tokens.positions_RL - origins_RL[:, source]
            turn = self._turn(shifts_RL, computed[0]) if shifts_RL.any() else None
            for number, layer in enumerate(old.layers):
                keys = computed[number][..., source, :]
                pieces[number].append(keys)
                moved = keys if turn is None else turned(keys, *turn)
                self._cache.update(moved, layer.values[..., source, :], number)
            self._origins_RL = torch.cat((self._origins_RL, origins_RL[:, source]), dim=1)
        self._computed = [torch.cat(piece, dim=-2) for piece in pieces] if parts else []

    def _as_computed(self) -> list[Tensor]:
        """Of each layer the keys of all tokens, for the positions in `_origins_RL`."""
        if not self.num_tokens:
            return []
        keys = [layer.keys for layer in self._cache.layers]
        if not self._computed:
            return keys
        first = self._computed[0].shape[-2]
        return [torch.cat((old, new[..., first:, :]), dim=-2) for old, new in zip(self._computed, keys, strict=True)]

    def _turn(self, shifts_RL: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [1, L, E] that turn keys on by so many positions, fp32."""
        rope = self._model.model.rotary_emb
        positions = shifts_RL if len(shifts_RL) == 1 else shifts_RL[:, None]
        cosine, sine = rope(torch.empty(0, device=like.device), positions.to(like.device))
        # What is scaled has been so when it was computed.
        return cosine / rope.attention_scaling, sine / rope.attention_scaling


def turned(keys: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Keys [..., L, head dimensions] turned by the rope's angles [1, L, E], computed in fp32."""
    rope_dim = cosine.shape[-1]
    moving = keys[..., :rope_dim].float()
    moving = moving * cosine + rotate_half(moving) * sine
    return torch.cat((moving.to(keys.dtype), keys[..., rope_dim:]), dim=-1)


class BlockCache(PrefixCache):
    """What a session's frames left behind in the language model; used as `PrefixCache` is.

    Raises:
        InputError: the model's cache cannot be taken apart.
    """

    def __init__(self, language_model: PreTrainedModel, budget: KvBudget) -> None:
        reason = why_not_movable(language_model)
        if reason is not None:
            raise InputError(f"kv_memory: {type(language_model).__name__} cannot have one: {reason}")
        super().__init__(language_model, budget)

    def _new_cache(self, num_tokens: int) -> MovableCache:
        return MovableCache(self._model)

    def _bytes_of(self, num_tokens: int) -> int:
        return num_tokens * self._bytes_per_token * 3 // 2  # the keys are there twice

    def _adapt(self, kept: CachedSequence, tokens: Tokens, least_share: float) -> bool:
        """Move what a prompt has in common with a sequence, and compute what is new between; all shares will do."""
        assert isinstance(kept.cache, MovableCache)
        # The last token is always computed: its logits are what an answer begins with.
        found = [*sources(kept.keys, tokens.keys[:-1]), None]
        starts = [index for index in range(len(found)) if index == 0 or not _goes_on(*found[index - 1 : index + 1])]
        parts = [(tokens[start:stop], _source(found[start:stop])) for start, stop in pairwise(starts)]
        with fixed_regime(kept.long_regime):
            kept.cache.rearrange(parts)
        kept.keys = list(tokens.keys[: starts[-1]])
        kept.num_computed += found[: starts[-1]].count(None)
        return True


def _goes_on(first: int | None, second: int | None) -> bool:
    return second is None if first is None else second == first + 1


def _source(found: Sequence[int | None]) -> slice | None:
    return None if found[0] is None else slice(found[0], found[0] + len(found))


def why_not_movable(language_model: PreTrainedModel) -> str | None:
    """Why tokens cannot be taken out of a cache of this model; None where they can."""
    kind = (language_model.config.rope_parameters or {}).get("rope_type", "default")
    if kind not in MOVABLE_ROPES:
        return f"its rope is of type {kind!r}, expected one of {list(MOVABLE_ROPES)}"
    return why_not_croppable(language_model)
