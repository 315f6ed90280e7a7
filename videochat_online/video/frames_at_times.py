"""Which frames of a pass answer which asked times, and their grouping into chunks.

Owns the one rule about times: a bare time asks for the last frame that starts at or before it. Knows nothing
about files; holds one undecoded frame and its pixels at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from videochat_online.errors import VideoError
from videochat_online.types import FrameChunk
from videochat_online.video.reader import LazyFrame, LoadedFrame, VideoInfo
from videochat_online.video.sampling_rules import TIME_TOLERANCE_S

SKIP_GAP_S = 20.0
"""Asked times further apart than this are worth a jump instead of decoding all that lies between."""


def regular_times(start_s: float, fps: float, end_s: float | None) -> Iterator[float]:
    """start, start + 1 / fps, ... up to and including `end_s`."""
    for i in itertools.count():
        time_s = start_s + i / fps
        if end_s is not None and time_s > end_s + TIME_TOLERANCE_S:
            return
        yield time_s


def frames_between(frames: Iterable[LazyFrame], start_s: float | None, end_s: float | None) -> Iterator[LoadedFrame]:
    """Every readable frame that starts within [start_s, end_s]."""
    first_s = -math.inf if start_s is None else start_s - TIME_TOLERANCE_S
    last_s = math.inf if end_s is None else end_s + TIME_TOLERANCE_S
    for frame in frames:
        if frame.time_s > last_s:
            return
        if frame.time_s < first_s:
            continue
        loaded = frame.load()
        # An unreadable frame loads as the one before it, which has been handed out already.
        if loaded is not None and loaded.time_s == frame.time_s:
            yield loaded


def frames_at_rate(
    frames: Iterable[LazyFrame], times_s: Iterable[float], skip: Callable[[float], None]
) -> Iterator[LoadedFrame]:
    """The frames shown at regular times while the video lasts, none twice.

    Where the video stands still for longer than the times are apart, those that find the same frame again are
    skipped; where a time comes before the first frame, nothing is shown and it is skipped too.
    """
    previous_s: float | None = None
    for loaded in _shown_at(frames, times_s, skip, past_end=False):
        if loaded is not None and loaded.time_s != previous_s:
            previous_s = loaded.time_s
            yield loaded


def frames_at_times(
    frames: Iterable[LazyFrame],
    times_s: tuple[float, ...],
    skip: Callable[[float], None],
    info: VideoInfo,
    *,
    may_begin_late: bool = False,
) -> Iterator[LoadedFrame]:
    """Exactly one frame for each asked time (ascending); after the video's end, the last frame.

    Raises:
        VideoError: no readable frame starts at or before a time; with `may_begin_late` such times give nothing.
    """
    num_found = 0
    for loaded in _shown_at(frames, times_s, skip, past_end=True):
        if loaded is None:
            if may_begin_late:
                continue
            break
        num_found += 1
        yield loaded
    if num_found < len(times_s) and not may_begin_late:
        raise VideoError(
            f"{info.source}: expected times within the video, but no readable frame starts at or before "
            f"{times_s[num_found]:g} s (the video starts at {info.start_s:g} s)"
        )


def group_frames(frames: Iterable[LoadedFrame], chunk: int) -> Iterator[FrameChunk]:
    """Chunks of at most `chunk` frames, each handed out as soon as it is full.

    A change of the picture's size begins a new chunk: an array holds one size.
    """
    held: list[LoadedFrame] = []
    for frame in frames:
        if held and held[0].pixels_HWC.shape != frame.pixels_HWC.shape:
            yield _stack(held)
            held = []
        held.append(frame)
        del frame  # or its pixels would stay alive while the consumer works on the chunk
        if len(held) == chunk:
            yield _stack(held)
            held = []
    if held:
        yield _stack(held)


def _stack(frames: list[LoadedFrame]) -> FrameChunk:
    """Copy into one array and forget the parts, so that a waiting generator holds nothing."""
    times_s = tuple(frame.time_s for frame in frames)
    pixels_THWC = np.stack([frame.pixels_HWC for frame in frames])
    frames.clear()
    return FrameChunk(pixels_THWC, times_s)


def _shown_at(
    frames: Iterable[LazyFrame], times_s: Iterable[float], skip: Callable[[float], None], *, past_end: bool
) -> Iterator[LoadedFrame | None]:
    """For each asked time (ascending) what is shown then; None before the first readable frame.

    Reads no further than needed: a frame that starts exactly at the asked time is handed out at once, others
    when a later frame shows that nothing newer comes in between. Of frames with one and the same start the
    first counts. Times after the last frame's end show that frame if `past_end`, else they end the iteration.
    `skip` is told where a large gap between the times leaves frames unasked.
    """
    rest = iter(frames)
    shown: LazyFrame | None = None
    loaded: LoadedFrame | None = None
    upcoming: LazyFrame | None = None
    has_ended = False
    for time_s in times_s:
        if shown is not None and time_s - shown.time_s > SKIP_GAP_S:
            skip(time_s)
        while not has_ended and not (shown is not None and shown.time_s >= time_s - TIME_TOLERANCE_S):
            upcoming = next(rest, None) if upcoming is None else upcoming
            has_ended = upcoming is None
            if upcoming is None or upcoming.time_s > time_s + TIME_TOLERANCE_S:
                break
            if shown is None or upcoming.time_s > shown.time_s:
                shown, loaded = upcoming, None
            upcoming = None
        if has_ended and (shown is None or (not past_end and time_s > shown.end_s - TIME_TOLERANCE_S)):
            return
        if shown is not None and loaded is None:
            loaded = shown.load()
        yield loaded
