"""Every frame, for clips of known length: the reference's sliding-window setting.

Source: the released evaluation of VideoChat-Online on OVBench in the sliding-window setting, which keeps all
(at most 64) frames of the window with the 256/64/16 tokens of the schedule and no bank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videochat_online.memory.options import MemoryOptions
from videochat_online.memory.schedule import DEFAULT_INTERVALS, TokenSchedule
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens


class KeepAllMemoryBank(TieredMemoryBank):
    """Every frame that the schedule does not skip, on the grid of its level. Grows with the stream."""

    kind = "keep_all"
    goes_by_order = True

    @dataclass(frozen=True, kw_only=True)
    class Options(MemoryOptions):
        """Options of the memory."""

        intervals: tuple[int, ...] = option(
            DEFAULT_INTERVALS, "see `TokenSchedule`; (1,) keeps every frame at full size", from_model=True
        )

    options: Options

    def _prepare(self) -> dict[str, Any]:
        self._schedule = TokenSchedule(self.options.intervals)
        self._grids = self._schedule.grids(self.full_grid)
        return {"grids": self._grids}

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(None, grid) for grid in self._grids]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        store.insert(len(store), self._fit(frame, store))
