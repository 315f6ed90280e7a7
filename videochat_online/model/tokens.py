"""What a language model reads: embeddings, where each token stands, and what each of them is.

What belongs to a token never parts from it: a prompt is cut, joined and padded as one. Every pass states its positions,
since what a model would count by itself is wrong for tokens that stand on a grid.

Shapes: `L` tokens, `D` width of the language model, `R` rows of positions (3 where the rope turns by time, row and
column, else 1), `S` vectors of a token that are added after the first layers (0 in most models), `B` prompts,
`N` tokens that come next, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TokenKey = int | tuple[int, int]
"""Identity of a token: the id of a text token, or of a visual one the content id and tokens of its frame."""

NO_TOKEN = -1
"""Key of a token that is not kept."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Consecutive tokens of a prompt or an answer.

    Attributes:
        embeds_LD: Embeddings, on the language model's device.
        positions_RL: Position of each token in each row, int64 on the CPU; none is above that of a later token's
            largest.
        keys: Identity of each token.
        deeper_SLD: Vectors that are added to the hidden states after the first layers (DeepStack), 0 for text.
    """

    embeds_LD: Tensor
    positions_RL: Tensor
    keys: tuple[TokenKey, ...]
    deeper_SLD: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: slice) -> Tokens:
        return Tokens(self.embeds_LD[part], self.positions_RL[:, part], self.keys[part], self.deeper_SLD[:, part])

    @property
    def next_position(self) -> int:
        """Position of a text token that comes next, the same in all rows."""
        return int(self.positions_RL.max()) + 1 if len(self) else 0

    def following(self, embeds_ND: Tensor, ids: Sequence[int]) -> Tokens:
        """Text tokens that come after the last of these, without these."""
        positions_N = torch.arange(self.next_position, self.next_position + len(ids))
        deeper_SND = self.deeper_SLD.new_zeros(len(self.deeper_SLD), *embeds_ND.shape)
        return Tokens(embeds_ND, positions_N.expand(len(self.positions_RL), -1), tuple(ids), deeper_SND)

    def moved(self, num_positions: int) -> Tokens:
        """The same at later positions."""
        return replace(self, positions_RL=self.positions_RL + num_positions)

    def padded(self, length: int) -> Tokens:
        """With zeros on the left, to `length` tokens."""
        num_pads = length - len(self)
        return Tokens(
            functional.pad(self.embeds_LD, (0, 0, num_pads, 0)),
            functional.pad(self.positions_RL, (num_pads, 0)),
            (NO_TOKEN,) * num_pads + self.keys,
            functional.pad(self.deeper_SLD, (0, 0, num_pads, 0)),
        )


def in_a_row(embeds_LD: Tensor, keys: Sequence[TokenKey]) -> Tokens:
    """Tokens that stand at 0, 1, 2, ..., as in every model whose rope turns by one number."""
    return Tokens(embeds_LD, torch.arange(len(keys))[None], tuple(keys), embeds_LD.new_empty(0, *embeds_LD.shape))


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of all parts, one part after another; positions stay as they are."""
    return Tokens(
        torch.cat([part.embeds_LD for part in parts]),
        torch.cat([part.positions_RL for part in parts], dim=1),
        tuple(key for part in parts for key in part.keys),
        torch.cat([part.deeper_SLD for part in parts], dim=1),
    )


def run_language_model(language_model: Callable[..., Any], rows: Sequence[Tokens], **options: Any) -> Tensor:
    """One pass over `B` prompts, or what comes next of each: logits [B, L, V], or of the last tokens only.

    Args:
        language_model: language model, or a compiled form of it.
        rows: tokens of each, all of one length.
        **options: `past_key_values`, `use_cache`, `logits_to_keep`, `attention_mask`.
    """
    embeds_BLD = torch.stack([row.embeds_LD for row in rows])
    positions_RBL = torch.stack([row.positions_RL for row in rows], dim=1).to(embeds_BLD.device)
    position_ids = positions_RBL[0] if len(positions_RBL) == 1 else positions_RBL
    inputs = {"inputs_embeds": embeds_BLD, "position_ids": position_ids, **options}
    if len(rows[0].deeper_SLD):  # the native models take them for some tokens; 0 for the others is the same
        levels = zip(*(row.deeper_SLD for row in rows), strict=True)
        inputs["deepstack_visual_embeds"] = [torch.cat(level) for level in levels]
        inputs["visual_pos_masks"] = torch.ones(embeds_BLD.shape[:2], dtype=torch.bool, device=embeds_BLD.device)
    logits: Tensor = language_model(**inputs).logits
    return logits
