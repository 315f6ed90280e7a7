"""Several prompts of one question, answered as one: they are the rows of a batch, their logits a weighted sum.

The token that is chosen is appended to every row. Rows are padded on the left and each counts its own positions, so
that a row is what its prompt would be alone. Knows nothing of why a question has several.

Shapes: `B` rows, `L` tokens, `N` tokens that come next, `V` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from videochat_online.model.rope import fixed_regime
from videochat_online.model.tokens import Tokens, run_language_model
from videochat_online.streaming.kv.cache import PIECE_TOKENS


@dataclass(frozen=True)
class Contrast:
    """Another prompt of a question, with other frames.

    Attributes:
        tokens: Tokens of the prompt.
        weight: Factor of its logits; those of the question's own prompt have 1.
    """

    tokens: Tokens
    weight: float


class ContrastedSequence:
    """Prompt and answer so far, in as many rows as there are prompts; without contrasts a plain sequence.

    Attributes:
        num_tokens: Tokens of each row, padding included.

    Args:
        language_model: language model in evaluation mode.
        contrasts: prompts beside the one that is appended first.
        long_regime: whether LongRoPE's long regime is used, for all rows; None where the model has none.
    """

    def __init__(
        self, language_model: PreTrainedModel, contrasts: Sequence[Contrast], long_regime: bool | None
    ) -> None:
        self._model, self._contrasts, self._long_regime = language_model, contrasts, long_regime
        self._cache = DynamicCache(config=language_model.config)
        self._mask_BL: Tensor | None = None
        self._offsets: list[int] = []  # positions that each row is ahead of the question's own
        self.num_tokens = 0

    @torch.inference_mode()
    def append(self, tokens: Tokens) -> Tensor:
        """Compute what comes next; logits [V] after the last token. The first time it is the question's own prompt.

        Args:
            tokens: the prompt, computed together with those of the contrasts, or tokens that follow in every row.
        """
        if self._mask_BL is None:
            rows = [tokens, *(contrast.tokens for contrast in self._contrasts)]
            self._offsets = [row.next_position - tokens.next_position for row in rows]
            longest = max(map(len, rows))
            self._mask_BL = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            rows = [row.padded(longest) for row in rows]
        else:
            rows = self._in_every_row(tokens)
        # A mask hides up to half of what is computed, and takes as much memory as all pairs of tokens.
        size = PIECE_TOKENS if self._contrasts else len(rows[0])
        for start in range(0, len(rows[0]), size):
            logits_BNV = self._run([row[start : start + size] for row in rows], self._cache, num_logits=1)
            self.num_tokens += len(rows[0][start : start + size])
        return self._sum(logits_BNV)[-1]

    @torch.inference_mode()
    def logits_of(self, tokens: Tokens) -> Tensor:
        """Logits [N, V] after each of the tokens that might come next; they are not appended."""
        # A copy: what a continuation adds to a cache cannot be taken back in every kind of layer.
        return self._sum(self._run(self._in_every_row(tokens), copy.deepcopy(self._cache), num_logits=0))

    def _in_every_row(self, tokens: Tokens) -> list[Tokens]:
        return [tokens.moved(offset) for offset in self._offsets]

    def _run(self, rows: Sequence[Tokens], cache: DynamicCache, num_logits: int) -> Tensor:
        """Logits [B, N, V] of the last `num_logits` tokens; 0: of all."""
        mask = {"attention_mask": self._mask_until(self.num_tokens + len(rows[0]))} if self._contrasts else {}
        options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": num_logits, **mask}
        with fixed_regime(self._long_regime):
            return run_language_model(self._model, rows, **options)

    def _mask_until(self, num_tokens: int) -> Tensor:
        """What is no padding of the first `num_tokens` of each row, [B, L]."""
        assert self._mask_BL is not None
        num_after_prompt = max(0, num_tokens - self._mask_BL.shape[1])
        mask_BL = functional.pad(self._mask_BL[:, :num_tokens], (0, num_after_prompt), value=1)
        return mask_BL.to(self._model.device)

    def _sum(self, logits_BNV: Tensor) -> Tensor:
        if not self._contrasts:
            return logits_BNV[0]
        weights = [1.0, *(contrast.weight for contrast in self._contrasts)]
        logits_BNV = logits_BNV.float()
        return (logits_BNV * logits_BNV.new_tensor(weights)[:, None, None]).sum(0)
