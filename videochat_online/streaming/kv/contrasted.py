"""Several prompts of one question, answered as one: they are the rows of a batch, their logits a weighted sum.

The token that is chosen is appended to every row. Rows are padded on the left and each counts its own positions, so
that a row is what its prompt would be alone. Knows nothing of why a question has several.

Shapes: `B` rows, `L` tokens, `N` tokens that come next, `D` width of the language model, `V` vocabulary.
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
from videochat_online.streaming.kv.cache import PIECE_TOKENS, TokenKey


@dataclass(frozen=True)
class Contrast:
    """Another prompt of a question, with other frames.

    Attributes:
        embeds_LD: Embeddings of the prompt.
        weight: Factor of its logits; those of the question's own prompt have 1.
    """

    embeds_LD: Tensor
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
        self.num_tokens = 0

    @torch.inference_mode()
    def append(self, embeds_ND: Tensor, keys: Sequence[TokenKey] = ()) -> Tensor:
        """Compute what comes next; logits [V] after the last token. The first time it is the question's own prompt.

        Args:
            embeds_ND: the prompt, computed together with those of the contrasts, or tokens that follow in every row.
            keys: keys of the tokens, not needed here; see `CachedSequence`.
        """
        if self._mask_BL is None:
            embeds_BND, self._mask_BL = _padded([embeds_ND, *(contrast.embeds_LD for contrast in self._contrasts)])
        else:
            embeds_BND = self._in_every_row(embeds_ND)
        # A mask hides up to half of what is computed, and takes as much memory as all pairs of tokens.
        for piece_BND in embeds_BND.split(PIECE_TOKENS, dim=1) if self._contrasts else (embeds_BND,):
            logits_BNV = self._run(piece_BND, self._cache, num_logits=1)
            self.num_tokens += piece_BND.shape[1]
        return self._sum(logits_BNV)[-1]

    @torch.inference_mode()
    def logits_of(self, embeds_ND: Tensor) -> Tensor:
        """Logits [N, V] after each of the tokens that might come next; they are not appended."""
        # A copy: what a continuation adds to a cache cannot be taken back in every kind of layer.
        return self._sum(self._run(self._in_every_row(embeds_ND), copy.deepcopy(self._cache), num_logits=0))

    def _in_every_row(self, embeds_ND: Tensor) -> Tensor:
        return embeds_ND.expand(1 + len(self._contrasts), -1, -1)

    def _run(self, embeds_BND: Tensor, cache: DynamicCache, num_logits: int) -> Tensor:
        """Logits [B, N, V] of the last `num_logits` tokens; 0: of all."""
        positions = self._positions(embeds_BND.shape[1]) if self._contrasts else {}
        with fixed_regime(self._long_regime):
            out = self._model(
                inputs_embeds=embeds_BND, past_key_values=cache, use_cache=True, logits_to_keep=num_logits, **positions
            )
        logits_BNV: Tensor = out.logits
        return logits_BNV

    def _positions(self, num_tokens: int) -> dict[str, Tensor]:
        """Of the next tokens: what there is of each row, padding left out, and their own positions in it."""
        assert self._mask_BL is not None
        stop = self.num_tokens + num_tokens
        num_after_prompt = max(0, stop - self._mask_BL.shape[1])
        mask_BL = functional.pad(self._mask_BL[:, :stop], (0, num_after_prompt), value=1)
        positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
        return {"attention_mask": mask_BL, "position_ids": positions_BL[:, self.num_tokens :]}

    def _sum(self, logits_BNV: Tensor) -> Tensor:
        if not self._contrasts:
            return logits_BNV[0]
        weights = [1.0, *(contrast.weight for contrast in self._contrasts)]
        logits_BNV = logits_BNV.float()
        return (logits_BNV * logits_BNV.new_tensor(weights)[:, None, None]).sum(0)


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows [L, D] as one batch [B, L, D], zeros on the left, and what is no padding [B, L]."""
    longest = max(map(len, rows))
    embeds_BLD = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    mask_BL = torch.zeros(len(rows), longest, dtype=torch.long, device=rows[0].device)
    for row, embeds_LD in enumerate(rows):
        embeds_BLD[row, longest - len(embeds_LD) :] = embeds_LD
        mask_BL[row, longest - len(embeds_LD) :] = 1
    return embeds_BLD, mask_BL
