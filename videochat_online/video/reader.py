"""What every kind of video source offers: one pass over frames that are only decoded to pixels on demand.

Owns the facts about a source (`VideoInfo`), the account of what could be read (`DecodeReport`) and the
contract between a reader and the selection of frames. Knows no file format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

SourceKind = Literal["video", "frame_folder", "array", "stream"]

DEFAULT_FRAME_RATE = 1.0
"""Frames per second of a source without times of its own (folder, array, bare frames) unless `fps` is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What is known about a source once its first frame has been seen.

    Attributes:
        source: its path, or what it is.
        kind: kind of source that the frames come from.
        num_frames_declared: frames that the container declares, or that were counted (folder, array); None where
            unknown.
        duration_s: declared length in seconds; None where unknown.
        average_fps: mean frame rate; None where unknown.
        width: columns as shown, after rotation.
        height: rows as shown, after rotation.
        rotation: degrees, counter-clockwise, by which stored frames are turned to be shown.
        start_s: start of the first frame in the source's own time; not always 0.
        clock_start_s: start of the first frame that there should be, whether it decodes or not; None: `start_s`.
    """

    source: str
    kind: SourceKind
    width: int
    height: int
    num_frames_declared: int | None = None
    duration_s: float | None = None
    average_fps: float | None = None
    rotation: int = 0
    start_s: float = 0.0
    clock_start_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeReport:
    """What could be read so far; `problem` says it in one line.

    Attributes:
        num_decoded: frames (images) decoded in the latest pass, whether they were sampled or not.
        num_declared: frames there should be; None where unknown.
        num_errors: packets or images that failed, and frames without a usable time.
        num_damaged: frames that came out but that the decoder marked as damaged.
        num_undecoded: frames that were found by counting, without decoding them.
        is_complete: whether the pass began at the first frame and has reached the end.
        first_error: place and reason of the first failure.
        ends_at_s: end of what is there, where it is well before the declared end; None otherwise.
        declared_end_s: the declared end, where `ends_at_s` is set.
        notes: remarks on what was odd about the source and how it was read nevertheless, a line each.
    """

    num_decoded: int = 0
    num_declared: int | None = None
    num_errors: int = 0
    num_damaged: int = 0
    num_undecoded: int = 0
    is_complete: bool = False
    first_error: str | None = None
    ends_at_s: float | None = None
    declared_end_s: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """One line for people: `problem` and `notes`; None when there is nothing to say."""
        return "; ".join(part for part in (self.problem, *self.notes) if part) or None

    @property
    def problem(self) -> str | None:
        """One line about what is missing or broken; None when nothing is known to be."""
        parts = []
        num_found = self.num_decoded + self.num_undecoded
        if self.is_complete and self.num_declared is not None and num_found < self.num_declared:
            verb = "found" if self.num_undecoded else "decoded"
            parts.append(f"{verb} {num_found} of {self.num_declared} declared frames")
        elif self.ends_at_s is not None and self.declared_end_s is not None:
            parts.append(f"ends at {self.ends_at_s:.2f} s of {self.declared_end_s:.2f} s declared")
        if self.num_errors:
            parts.append(f"decoding errors: {self.num_errors}, the first {self.first_error}")
        if self.num_damaged:
            parts.append(f"damaged frames: {self.num_damaged}")
        return "; ".join(parts) or None


@dataclass(frozen=True, slots=True)
class LoadedFrame:
    """Pixels of a frame, uint8 RGB as shown, and its start."""

    time_s: float
    pixels_HWC: Pixels


@dataclass(frozen=True, slots=True)
class LazyFrame:
    """A frame whose pixels are made only if it is sampled.

    Attributes:
        time_s: its start.
        end_s: its end where it is the last frame (otherwise the next frame's start counts).
        load: its pixels. Where they are unreadable, those of the nearest readable frame before it (with that
            frame's time), or None.
    """

    time_s: float
    end_s: float
    load: Callable[[], LoadedFrame | None]


class FrameReader(ABC):
    """One source, opened; passes over it may be repeated unless it is a stream.

    Attributes:
        info: facts about the source.
    """

    info: VideoInfo

    @abstractmethod
    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """Begin a pass: frames in time order.

        With `start_s` it may begin after the first frame, but not after the one that is shown at `start_s`.
        """

    @abstractmethod
    def times_s(self) -> tuple[float, ...]:
        """Start of each frame, without decoding."""

    @abstractmethod
    def report(self) -> DecodeReport:
        """The account so far."""

    def skip(self, time_s: float) -> None:
        """A hint for the pass: of the frames to come, none before the one shown at `time_s` is wanted.

        Not heeded where frames that are not sampled cost nothing, or cannot be left out.
        """
        return

    def finish(self, max_decode_s: float) -> None:
        """Go through what the current pass has not reached, for the report's sake; not where nothing can be known."""
        return

    def close(self) -> None:
        """Release files and decoders, where any are held open."""
        return


class RegularReader(FrameReader):
    """Frames without times of their own, known in number: frame i starts at i / fps.

    Args:
        source: its path, or what it is.
        kind: kind of source that the frames come from.
        num_frames: number of all frames.
        fps: frames a second.
        size: height and width of the first, in pixels.
    """

    def __init__(self, source: str, kind: SourceKind, num_frames: int, fps: float, size: tuple[int, int]) -> None:
        self._num_frames, self._fps = num_frames, fps
        self._num_passed = 0
        self.info = VideoInfo(
            source=source,
            kind=kind,
            num_frames_declared=num_frames,
            duration_s=num_frames / fps,
            average_fps=fps,
            width=size[1],
            height=size[0],
        )

    @abstractmethod
    def _load(self, i: int) -> LoadedFrame | None:
        """Frame i, as `LazyFrame.load` gives it."""

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """All frames, from the one shown at `start_s` on; each is loaded when it is sampled."""
        first = 0 if start_s is None else min(max(0, int(start_s * self._fps) - 1), self._num_frames - 1)
        for i in range(first, self._num_frames):
            self._num_passed = max(self._num_passed, i + 1)
            yield LazyFrame(i / self._fps, (i + 1) / self._fps, partial(self._load, i))

    def times_s(self) -> tuple[float, ...]:
        """Start of each frame, readable or not."""
        return tuple(i / self._fps for i in range(self._num_frames))
