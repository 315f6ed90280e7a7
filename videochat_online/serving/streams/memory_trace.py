"""What became of the frames of a stream: remembered, made smaller, forgotten. The facts behind the memory's picture.

Knows no bank and no model: it compares what is remembered now with what was remembered before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from videochat_online.types import FrameUse

NUM_FORGOTTEN = 12
"""Forgotten frames that are still shown, the newest ones."""


@dataclass(frozen=True, slots=True)
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
    """What is remembered, and what was forgotten lately.

    Attributes:
        remembered: remembered frames in time order.
        forgotten: the latest forgotten ones, in the order in which they left.
        num_forgotten: number of frames that were forgotten so far.
        num_demotions: how often a frame was made smaller so far.
        version: number of changes so far.
    """

    remembered: tuple[TracedFrame, ...] = ()
    forgotten: tuple[TracedFrame, ...] = ()
    num_forgotten: int = 0
    num_demotions: int = 0
    version: int = 0

    @property
    def num_tokens(self) -> int:
        """Visual tokens of all remembered frames."""
        return sum(frame.num_tokens for frame in self.remembered)

    def after(self, frames: Sequence[FrameUse], now_s: float, thumbnails: Mapping[int, bytes]) -> MemoryView:
        """The view once the memory holds other frames.

        Args:
            frames: remembered frames in time order.
            now_s: present stream time.
            thumbnails: small JPEGs of new frames, by index.
        """
        before = {frame.index: frame for frame in self.remembered}
        now, num_demotions = list[TracedFrame](), self.num_demotions
        for frame in frames:
            size = frame.num_tokens
            known = before.pop(frame.index, None)
            if known is None:
                picture = thumbnails.get(frame.index, b"")
                known = TracedFrame(frame.index, frame.time_s, size, first_num_tokens=size, thumbnail=picture)
            elif size < known.num_tokens:
                num_demotions += 1
                known = replace(known, num_tokens=size, demoted_at_s=now_s)
            elif size > known.num_tokens:  # a key frame that was part of an abstract before
                known = replace(known, num_tokens=size)
            now.append(known)
        left = [replace(frame, forgotten_at_s=now_s) for frame in before.values()]
        return MemoryView(
            remembered=tuple(now),
            forgotten=(*self.forgotten, *left)[-NUM_FORGOTTEN:],
            num_forgotten=self.num_forgotten + len(left),
            num_demotions=num_demotions,
            version=self.version + 1,
        )
