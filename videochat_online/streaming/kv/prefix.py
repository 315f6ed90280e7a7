"""Exact reuse of what the language model has computed: the longest common prefix of two prompts is read once.

Attention is causal, so keys and values of a token depend on the tokens before it and on nothing else. Two prompts
that begin alike share them: the cache of the earlier one is cut off where they part, and only the rest is computed.
A visual token is known by its frame's content id, which changes when the memory changes the frame.

Computed in two pieces, sums are rounded differently than in one: logits of tiny models differ by up to 1e-6 in fp32
and 8e-3 in bf16 (of a spread of 0.4). Another token is chosen only where two are as likely up to that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel

from videochat_online.model.tokens import TokenKey, Tokens
from videochat_online.streaming.kv.cache import (
    CachedSequence,
    KeyValueCache,
    kv_bytes_per_token,
    why_not_croppable,
)
from videochat_online.streaming.kv.kv_budget import KvBudget
from videochat_online.streaming.kv.static import allocated_tokens, new_cache

logger = logging.getLogger(__name__)

LEAST_SHARE = 1 / 8
"""Part of a prompt: less in common is not reused for a question. Attention over what is kept goes by a mask, which took
1.6 times as long as without one (sdpa on a CPU, 4,000 tokens): to reuse little of a long prompt would cost time."""


def common_length(first: Sequence[TokenKey], second: Sequence[TokenKey]) -> int:
    """Tokens that two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


class PrefixCache:
    """What a session's last prompt and answer left behind, as long as the budget allows.

    Used by one answer at a time: the session's answer lock sees to it.

    Args:
        language_model: language model without `why_not_croppable`.
        budget: budget that other sessions share.
    """

    def __init__(self, language_model: PreTrainedModel, budget: KvBudget) -> None:
        self._model = language_model
        self.budget = budget
        """Budget it shares with other sessions."""
        self._bytes_per_token = kv_bytes_per_token(language_model)

    @property
    def num_tokens(self) -> int:
        """Tokens that are kept now."""
        kept = self.budget.peek(self)
        return 0 if kept is None else kept.num_tokens

    def drop(self) -> None:
        """Keep nothing."""
        self.budget.release(self)

    @contextmanager
    def set_aside(self, num_tokens: int) -> Iterator[None]:
        """Keep nothing, and count so many tokens, which are computed elsewhere, as in use."""
        self.budget.take(self, num_tokens * self._bytes_per_token)
        try:
            yield
        finally:
            self.budget.give_back(self, None)

    @contextmanager
    def borrowed(
        self,
        tokens: Tokens,
        long_regime: bool | None,
        max_tokens: int,
        least_share: float = LEAST_SHARE,
    ) -> Iterator[CachedSequence]:
        """A sequence that begins as a prompt does and lacks at least its last token; kept again afterwards.

        After an error it is not kept: a forward pass that broke off may have left some layers longer than others.
        An answer that is stopped (GeneratorExit) is no error.

        Args:
            tokens: the prompt.
            long_regime: whether the rope is in its long regime. What was kept from the other regime is forgotten.
            max_tokens: tokens that the sequence may come to have.
            least_share: smallest part of the prompt to be taken over; what begins alike for less is forgotten.
        """
        num_bytes = self._bytes_of(max_tokens)
        sequence, is_whole = self.budget.take(self, num_bytes), False
        try:
            if sequence is not None and sequence.long_regime != long_regime:
                sequence = None
            if sequence is not None and self._adapt(sequence, tokens, least_share):
                # One of fixed size stays as large as the longest prompt before has made it.
                self.budget.take(self, max(num_bytes, sequence.cache.num_bytes))
            else:
                sequence = None  # what is forgotten is freed before anything is computed
                sequence = CachedSequence(self._new_cache(max_tokens), long_regime)
            yield sequence
            is_whole = True
        except GeneratorExit:
            is_whole = True
            raise
        finally:
            if sequence is not None:
                sequence.num_computed = 0
            self.budget.give_back(self, sequence if is_whole else None)

    def _adapt(self, kept: CachedSequence, tokens: Tokens, least_share: float) -> bool:
        """Leave of a sequence what a prompt has in common with it, but for its last token; False: it is too little."""
        length = min(common_length(kept.keys, tokens.keys), len(tokens) - 1)
        if not length or length < least_share * len(tokens):
            return False
        kept.crop(length)
        return True

    def _new_cache(self, num_tokens: int) -> KeyValueCache:
        return new_cache(self._model, num_tokens)

    def _bytes_of(self, num_tokens: int) -> int:
        return allocated_tokens(self._model, num_tokens) * self._bytes_per_token

    def fill(
        self,
        tokens: Tokens,
        long_regime: bool | None,
        next_size: Callable[[], int] | None = None,
    ) -> int:
        """Compute a prefix before it is asked for; returns how many tokens were not there already.

        Args:
            tokens: the prefix.
            long_regime: whether the prompt that is going to begin with it has the rope in its long regime.
            next_size: function that gives the number of tokens to compute at once, asked before each piece; 0 stops.
                None: all.
        """
        if self._bytes_of(len(tokens)) > self.budget.max_bytes:
            logger.debug("a prefix of %d tokens is not computed ahead: the KV budget is too small", len(tokens))
            return 0
        kept = self.budget.peek(self)
        if (
            kept is not None
            and kept.long_regime == long_regime
            and common_length(kept.keys, tokens.keys) == len(tokens)
        ):
            return 0
        # In pieces it may be interrupted again and again: then nothing of what is done is given up.
        least_share = LEAST_SHARE if next_size is None else 0.0
        with self.borrowed(tokens, long_regime, len(tokens), least_share) as sequence:
            while (start := sequence.num_tokens) < len(tokens):
                size = len(tokens) if next_size is None else next_size()
                if size == 0:
                    break
                sequence.append(tokens[start : start + size])
            return sequence.num_computed


def make_prefix_cache(language_model: PreTrainedModel, budget: KvBudget) -> PrefixCache | None:
    """A cache for one session; None, with the reason in the log, where the model's cache cannot be reused."""
    reason = why_not_croppable(language_model)
    if reason is not None:
        logger.info("each prompt is computed from its start: %s, %s", type(language_model).__name__, reason)
        return None
    return PrefixCache(language_model, budget)
