"""Frames spread evenly over the stream so far, without knowing how long it will be."""

from __future__ import annotations

import torch

from videochat_online.errors import InputError
from videochat_online.memory.schedule import DEFAULT_FULL_GRID, Grid, check_count, check_grid
from videochat_online.memory.slots import FrameStore
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.types import FrameTokens


class UniformMemoryBank(TieredMemoryBank):
    """Every s-th frame written and the newest one, on the full grid; s doubles when the memory is full.

    The rule: frames are counted from 0 as they are written. The memory holds the frames whose count is a
    multiple of the stride s, and after them the newest frame, whatever its count. When a frame arrives and
    `num_frames` multiples of s are held, s doubles and the odd multiples of the old s leave.

    So, at any time: at most `num_frames` frames are held, and once that many have been written, more than
    half as many; the first frame is held; all but the newest lie exactly s apart, and the newest lies at most
    s after the one before it. s is a power of two that depends on the number of frames written alone. The
    newest frame is held because a question is mostly about now, as uniform sampling of a finished clip
    includes its end.

    Args:
        num_frames: frames at most.
        full_grid: rows and columns of tokens of each frame.
        device: device that frames are kept on; None for that of the first frame.

    Raises:
        InputError: `num_frames` is no whole number of at least 2: one frame has no spacing.
    """

    kind = "uniform"
    goes_by_order = True

    def __init__(
        self,
        *,
        num_frames: int = 16,
        full_grid: Grid = DEFAULT_FULL_GRID,
        device: torch.device | str | None = None,
    ) -> None:
        self._num_frames = check_count(num_frames, "num_frames of a uniform memory", 2)
        self._grid = check_grid(full_grid, "full_grid")
        super().__init__(options={"num_frames": num_frames, "full_grid": self._grid}, device=device)

    def _empty_stores(self) -> list[FrameStore]:
        return [FrameStore(self._num_frames, self._grid)]

    def _reset_counters(self) -> None:
        super()._reset_counters()
        self._num_written, self._stride = 0, 1

    def _counters(self) -> list[int]:
        return [*super()._counters(), self._num_written, self._stride]

    def _set_counters(self, counters: list[int]) -> None:
        *common, self._num_written, self._stride = counters
        super()._set_counters(common)

    def _check_restored(self) -> None:
        super()._check_restored()
        written, stride, held = self._num_written, self._stride, len(self.stores[0])
        is_power = stride > 0 and not stride & (stride - 1)
        if not is_power or held != (-(-written // stride) + bool(written and (written - 1) % stride)):
            raise InputError(f"memory state: {held} frames cannot be every {stride}-th of {written} and the newest")

    def _admit(self, level: int, frame: FrameTokens) -> None:
        store = self.stores[level]
        fitted = self._fit(frame, store)
        if len(store) and (self._num_written - 1) % self._stride:
            # Held as the newest frame only.
            store.remove(len(store) - 1)
        if store.is_full:
            self._stride *= 2
            # The frame at position p has count p * old stride; from the end, so that positions stay valid.
            for position in reversed(range(1, len(store), 2)):
                store.remove(position)
        store.insert(len(store), fitted)
        self._num_written += 1
