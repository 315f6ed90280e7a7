"""The most recent frames at full size: the baseline that any other memory must beat at the same budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videochat_online.memory.options import Count, MemoryOptions
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
from videochat_online.types import FrameTokens


class WindowMemoryBank(TieredMemoryBank):
    """The last `num_frames` frames, each on the full grid; the oldest leaves first."""

    kind = "window"
    goes_by_order = True

    @dataclass(frozen=True, kw_only=True)
    class Options(MemoryOptions):
        """Options of the memory."""

        num_frames: Count = option(4, "frames kept")

        @classmethod
        def sizes_within(cls, budget: float, given: Mapping[str, Any]) -> dict[str, int]:
            """Frames of full size."""
            return {"num_frames": int(budget)}

    options: Options

    def _prepare(self) -> dict[str, Any]:
        return {"full_grid": self.full_grid}

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(self.options.num_frames, self.full_grid)]

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        fitted = self._fit(frame, store)
        if store.is_full:
            store.remove(0)
        store.insert(len(store), fitted)
