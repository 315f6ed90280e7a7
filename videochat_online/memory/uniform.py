"""Frames spread evenly over the stream so far, without knowing how long it will be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from videochat_online.errors import InputError
from videochat_online.memory.options import MemoryOptions
from videochat_online.memory.tiered import TieredMemoryBank
from videochat_online.parts import option
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
    """

    kind = "uniform"
    goes_by_order = True

    @dataclass(frozen=True, kw_only=True)
    class Options(MemoryOptions):
        """Options of the memory."""

        # One frame has no spacing.
        num_frames: Annotated[int, Ge(2)] = option(16, "frames kept")

    options: Options

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
