"""The most recent frames at full size: the baseline that any other memory must beat at the same budget."""

from __future__ import annotations

from dataclasses import dataclass

from videochat_online.memory.options import MemoryOptions
from videochat_online.memory.schedule import Count
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

    options: Options

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        fitted = self._fit(frame, store)
        if store.is_full:
            store.remove(0)
        store.insert(len(store), fitted)
