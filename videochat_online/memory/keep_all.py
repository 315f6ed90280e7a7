"""Every frame, for clips of known length: the reference's sliding-window setting.

Source: the released evaluation of VideoChat-Online on OVBench in the sliding-window setting, which keeps all
(at most 64) frames of the window with the 256/64/16 tokens of the schedule and no bank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from videochat_online.memory.schedule import DEFAULT_FULL_GRID, DEFAULT_INTERVALS, Grid, TokenSchedule, as_tuple
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.types import FrameTokens


class KeepAllMemoryBank(TieredMemoryBank):
    """Every frame that the schedule does not skip, on the grid of its level. Grows with the stream.

    Args:
        full_grid: rows and columns of tokens of a full-size frame.
        intervals: see `TokenSchedule`; `(1,)` keeps every frame at full size.
        device: device that frames are kept on; None for that of the first frame.
    """

    kind = "keep_all"
    goes_by_order = True

    def __init__(
        self,
        *,
        full_grid: Grid = DEFAULT_FULL_GRID,
        intervals: Sequence[int] = DEFAULT_INTERVALS,
        device: torch.device | str | None = None,
    ) -> None:
        schedule = TokenSchedule(as_tuple(intervals, "intervals"))
        self._grids = schedule.grids(full_grid)
        super().__init__(
            options={"grids": self._grids, "intervals": schedule.intervals}, device=device, schedule=schedule
        )

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(None, grid) for grid in self._grids]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        store.insert(len(store), self._fit(frame, store))
