"""Frames that show something new: what repeats the last frame that was kept is dropped.

Source: the differential token drop of TimeChat-Online (arXiv 2504.17343), which drops each token that is more similar
than a threshold to the token at the same grid position before it. Our decision: a frame is kept or dropped as a whole,
by the mean of those similarities over its grid, since a remembered frame is a rectangle of tokens; it is compared with
the last frame that was kept, so that slow changes add up. The paper keeps what passes for ever; here the oldest go.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from videochat_online.errors import InputError
from videochat_online.memory.schedule import DEFAULT_FULL_GRID, Grid, check_count, check_grid
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.types import FrameTokens


class SimilarityDropMemoryBank(TieredMemoryBank):
    """The last `num_frames` frames that differ from the one kept before them; the oldest leaves first.

    A frame is dropped if the cosine similarity of its tokens to the tokens at the same positions of the last frame that
    was kept (fp32, on the memory's grid), averaged over the grid, is above `threshold`.

    Args:
        num_frames: frames at most.
        threshold: bound of the mean similarity; 1 drops next to nothing, -1 keeps little but the first frame.
        full_grid: rows and columns of tokens of a full-size frame.
        grid: token grid of each frame; default: `full_grid`. Budget: `num_frames` times its tokens.
        device: device that frames are kept on; None for that of the first frame.

    Raises:
        InputError: `num_frames` is no whole number of at least 1, `threshold` is not within -1 and 1, or a grid is
            none.
    """

    kind = "similarity_drop"

    def __init__(
        self,
        *,
        num_frames: int = 4,
        threshold: float = 0.9,
        full_grid: Grid = DEFAULT_FULL_GRID,
        grid: Grid | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._num_frames = check_count(num_frames, "num_frames of a similarity_drop memory", 1)
        is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
        if not is_number or not math.isfinite(threshold) or not -1 <= threshold <= 1:
            raise InputError(
                f"threshold of a similarity_drop memory: expected a number within -1 and 1, got {threshold!r}"
            )
        self._threshold = float(threshold)
        self._grid = check_grid(full_grid, "full_grid") if grid is None else check_grid(grid, "grid")
        options = {"num_frames": self._num_frames, "threshold": self._threshold, "grid": self._grid}
        super().__init__(options=options, device=device)

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(self._num_frames, self._grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        fitted = self._fit(frame, store)
        if len(store):
            last_CHW = store.slots[store.entries[-1].slot].float()
            similarity = functional.cosine_similarity(last_CHW, fitted.tokens_CHW.to(last_CHW), dim=0).mean()
            if float(similarity) > self._threshold:
                return
        if store.is_full:
            store.remove(0)
        store.insert(len(store), fitted)
