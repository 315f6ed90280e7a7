"""The most recent frames at full size: the baseline that any other memory must beat at the same budget."""

from __future__ import annotations

import torch

from videochat_online.memory.schedule import DEFAULT_FULL_GRID, Grid, check_count, check_grid
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.types import FrameTokens


class WindowMemoryBank(TieredMemoryBank):
    """The last `num_frames` frames, each on the full grid; the oldest leaves first.

    Args:
        num_frames: frames at most.
        full_grid: rows and columns of tokens of each frame.
        device: device that frames are kept on; None for that of the first frame.

    Raises:
        InputError: `num_frames` is no whole number of at least 1.
    """

    kind = "window"
    goes_by_order = True

    def __init__(
        self,
        *,
        num_frames: int = 4,
        full_grid: Grid = DEFAULT_FULL_GRID,
        device: torch.device | str | None = None,
    ) -> None:
        self._num_frames = check_count(num_frames, "num_frames of a window memory", 1)
        self._grid = check_grid(full_grid, "full_grid")
        super().__init__(options={"num_frames": num_frames, "full_grid": self._grid}, device=device)

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(self._num_frames, self._grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        fitted = self._fit(frame, store)
        if store.is_full:
            store.remove(0)
        store.insert(len(store), fitted)
