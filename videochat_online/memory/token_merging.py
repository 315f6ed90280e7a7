"""Merging instead of dropping: the most similar neighbours become one frame.

Source: the ablation "token merging" of VideoChat-Online (arXiv 2501.00584), which stands for the merging of MovieChat
(arXiv 2307.16449) and of ToMe (arXiv 2210.09461). From ToMe: merging by cosine similarity, with weights carried. Our
decision: whole frames merge, token by token of their grids, and only with their neighbour in time. Merging single
tokens, as ToMe does, would leave frames that are no rectangle of tokens.
"""

from __future__ import annotations

from typing import cast

import torch

from videochat_online.memory.merging import MergingStore
from videochat_online.memory.schedule import (
    DEFAULT_FULL_GRID,
    Grid,
    check_count,
    check_grid,
    coarser_grid,
)
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.types import FrameTokens


class TokenMergingMemoryBank(TieredMemoryBank):
    """At most `num_frames` frames; beyond that the two most similar neighbours become their weighted average.

    A frame that arrives takes part at once. Similar is the cosine of mean tokens (fp32; the earliest pair on a tie).
    A frame's weight is the number of frames merged in it. A merged frame has its newest member's index and time and a
    new, negative content id. With `num_frames=1` all is one average.

    Args:
        num_frames: frames at most.
        full_grid: rows and columns of tokens of a full-size frame; only the default of `grid` needs it.
        grid: token grid of each frame; default: `full_grid` halved. Budget: `num_frames` times its tokens.
        device: device that frames are kept on; None for that of the first frame.

    Raises:
        InputError: `num_frames` is no whole number of at least 1, or a grid is none.
    """

    kind = "token_merging"

    def __init__(
        self,
        *,
        num_frames: int = 13,
        full_grid: Grid = DEFAULT_FULL_GRID,
        grid: Grid | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._num_frames = check_count(num_frames, "num_frames of a token_merging memory", 1)
        self._grid = coarser_grid(full_grid, 2) if grid is None else check_grid(grid, "grid")
        super().__init__(options={"num_frames": self._num_frames, "grid": self._grid}, device=device)

    def _empty_stores(self) -> list[FrameStore]:
        return [MergingStore(self._num_frames, self._grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = cast(MergingStore, self.stores[level])
        store.insert(len(store), self._fit(frame, store))
        if store.is_overfull:
            store.merge_most_similar(self._new_content_id())
