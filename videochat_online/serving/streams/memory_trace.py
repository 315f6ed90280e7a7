"""What became of the frames of a stream: remembered, made smaller, forgotten. The facts behind the memory's picture.

Knows no bank and no model: it compares what is remembered now with what was remembered before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from videochat_online.types import FrameUse

NUM_FORGOTTEN = 12
"""Forgotten frames that are still shown, the newest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedFrame:
    """A frame and what the memory did to it.

    Attributes:
        index: absolute in the stream, from 0.
        time_s: start of the frame.
        num_tokens: tokens that it costs now; of a forgotten frame, tokens that it cost last.
        first_num_tokens: tokens that it cost when it entered the memory.
        thumbnail: a small JPEG, which documents leave out.
        demoted_at_s: stream time at which it was last made smaller; None if it never was.
        forgotten_at_s: stream time at which it left; None while it is remembered.
    """

    index: int
    time_s: float
    num_tokens: int
    first_num_tokens: int
    thumbnail: Annotated[bytes, Field(exclude=True)]
    demoted_at_s: float | None = None
    forgotten_at_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """What is remembered, and what was forgotten lately; see `MemoryTrace`."""

    remembered: tuple[TracedFrame, ...]
    forgotten: tuple[TracedFrame, ...]
    num_forgotten: int
    num_demotions: int
    version: int


class MemoryTrace:
    """Frames of one stream, remembered and lately forgotten."""

    def __init__(self) -> None:
        self._remembered: dict[int, TracedFrame] = {}
        self._forgotten: deque[TracedFrame] = deque(maxlen=NUM_FORGOTTEN)
        self.num_forgotten = 0
        self.num_demotions = 0

    @property
    def remembered(self) -> tuple[TracedFrame, ...]:
        """Remembered frames in time order."""
        return tuple(self._remembered.values())

    @property
    def forgotten(self) -> tuple[TracedFrame, ...]:
        """The latest ones, in the order in which they left."""
        return tuple(self._forgotten)

    @property
    def num_tokens(self) -> int:
        """Visual tokens of all remembered frames."""
        return sum(frame.num_tokens for frame in self._remembered.values())

    def update(self, frames: Sequence[FrameUse], now_s: float, thumbnails: Mapping[int, bytes]) -> None:
        """Take over what is remembered now.

        Args:
            frames: remembered frames in time order.
            now_s: stream time in seconds.
            thumbnails: small JPEGs of the frames that have arrived since the last update, by index.
        """
        before = self._remembered
        now: dict[int, TracedFrame] = {}
        for frame in frames:
            known = before.get(frame.index)
            if known is None:
                known = TracedFrame(
                    index=frame.index,
                    time_s=frame.time_s,
                    num_tokens=frame.num_tokens,
                    first_num_tokens=frame.num_tokens,
                    thumbnail=thumbnails.get(frame.index, b""),
                )
            elif frame.num_tokens < known.num_tokens:
                self.num_demotions += 1
                known = replace(known, num_tokens=frame.num_tokens, demoted_at_s=now_s)
            elif frame.num_tokens > known.num_tokens:  # a key frame that was part of an abstract before
                known = replace(known, num_tokens=frame.num_tokens)
            now[frame.index] = known
        for index, left in before.items():
            if index not in now:
                self.num_forgotten += 1
                self._forgotten.append(replace(left, forgotten_at_s=now_s))
        self._remembered = now
