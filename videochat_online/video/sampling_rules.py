"""Which frames of a video to look at: pure functions from counts, rates and times to indices.

Owns the rules of training (one frame per interval, segments) and of the published evaluation settings. Knows
nothing about files, decoders, pixels or models: whoever has a video asks here and then reads those frames.

Indices count the frames of the whole video in presentation order, from 0; times are seconds. Rounding
differs between the rules (down, to the nearest even, by comparing times) because the published numbers were
made with these very roundings; where that is the case the function says so.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from videochat_online.errors import InputError

TIME_TOLERANCE_S = 1e-6
"""Two times closer than this are the same time: asking for a frame's own, printed start must find it."""

Rounding = Literal["nearest", "down"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class SampledFrames:
    """Frames chosen from a video.

    Attributes:
        indices: absolute in the video, ascending.
        times_s: start of each frame, rounded to 0.1 s as training prompts print it.
    """

    indices: tuple[int, ...]
    times_s: tuple[float, ...]


def uniform_subset(items: Sequence[Item], max_items: int) -> list[Item]:
    """At most `max_items` of `items`, evenly spread, the first and the last among them.

    `max_items` <= 0 means no limit. Indices between two items are rounded down.
    """
    if max_items <= 0 or len(items) <= max_items:
        return list(items)
    return [items[int(index)] for index in np.linspace(0, len(items) - 1, max_items)]


def segment_bounds(num_available: int, num_segments: int) -> list[tuple[int, int]]:
    """Split `num_available` frames into at most `num_segments` runs [start, stop) of nearly equal length."""
    num_segments = min(num_segments, num_available)
    edges = [int(edge) for edge in np.linspace(0, num_available, num_segments + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def sample_segments(
    num_available: int, num_frames: int, *, offset: int | None = None, rng: random.Random | None = None
) -> list[int]:
    """One frame of each of `num_frames` equal segments; fewer where the video has fewer frames.

    With neither option the middle of each segment; `offset` takes the frame that far into each segment; `rng`
    draws one. As in training, the draw leaves out a segment's last frame, and as soon as one segment is a
    single frame it becomes a random subset of all frames instead.
    """
    if offset is not None and rng is not None:
        raise InputError("sample_segments: expected offset or rng, got both")
    _check_counts(num_available, num_frames)
    segments = segment_bounds(num_available, num_frames)
    if offset is not None:
        return [min(start + offset, num_available - 1) for start, _ in segments]
    if rng is None:
        return [(start + stop - 1) // 2 for start, stop in segments]
    if any(stop - start < 2 for start, stop in segments):
        return sorted(rng.sample(range(num_available), len(segments)))
    return [rng.randrange(start, stop - 1) for start, stop in segments]


def sample_at_rate(num_available: int, video_fps: float, rate: float, *, max_num_frames: int = -1) -> list[int]:
    """The frame at the centre of each interval of 1 / `rate` seconds, then an even subset above the maximum.

    A video shorter than half an interval has no centre and gives no frame; a rate above the video's own
    repeats frames. Halves are rounded to the even index, as in training.
    """
    _check_counts(num_available, 1)
    check_rate("video_fps", video_fps)
    check_rate("rate", rate)
    interval_s = 1 / rate
    centres_s = np.arange(interval_s / 2, num_available / video_fps + interval_s / 2, interval_s)
    indices = [int(index) for index in np.rint(centres_s * video_fps) if index < num_available]
    return uniform_subset(indices, max_num_frames)


def sample_clip(
    num_frames: int,
    video_fps: float,
    method: str,
    *,
    max_num_frames: int,
    clip_s: tuple[float, float] | None = None,
    rng: random.Random | None = None,
) -> SampledFrames:
    """The frames of a training row: `method` applied to the whole video or to a clip of it.

    Args:
        num_frames: frames of the whole video.
        video_fps: its average rate.
        method: "fpsN" (one frame per 1/N s), "middle" or "rand" (equal segments).
        max_num_frames: limit for "fpsN" (<= 0: none), number of segments for the others.
        clip_s: start and end. It begins with the frame shown at its start and has as many frames as fit its length,
            both rounded down. One that would go on after the last frame is moved back to end with it, as in training;
            one that is longer than the video is the whole video.
        rng: the generator of "rand"; required there.

    Returns:
        At least one frame: the middle one where the rule finds none (a clip shorter than half an interval).

    Raises:
        InputError: unknown method, "rand" without a generator, an empty or inverted clip, counts below 1.
    """
    _check_counts(num_frames, 1)
    check_rate("video_fps", video_fps)
    first, num_available = (0, num_frames) if clip_s is None else _clip_range(num_frames, video_fps, clip_s)
    if method.startswith("fps"):
        rate = _parse_rate(method)
        inside = sample_at_rate(num_available, video_fps, rate, max_num_frames=max_num_frames)
    elif method == "middle":
        inside = sample_segments(num_available, max_num_frames)
    elif method == "rand":
        if rng is None:
            raise InputError("sampling method 'rand': expected a random generator, got None")
        inside = sample_segments(num_available, max_num_frames, rng=rng)
    else:
        raise InputError(f"sampling method: expected fpsN, middle or rand, got {method!r}")
    indices = tuple(first + index for index in inside or [num_available // 2])
    return SampledFrames(indices, tuple(round(index / video_fps, 1) for index in indices))


def frame_step(video_fps: float, sample_fps: float, *, rounding: Rounding = "nearest") -> int:
    """Every how many frames one is taken to get about `sample_fps` of `video_fps` frames a second; at least 1.

    "nearest" rounds the quotient (halves to even); "down" rounds the video's rate down first and then the
    quotient. The published settings use both: mp4 files "nearest", frame folders "down" (OVBench streaming).
    """
    check_rate("video_fps", video_fps)
    check_rate("sample_fps", sample_fps)
    step = round(video_fps / sample_fps) if rounding == "nearest" else int(int(video_fps) // sample_fps)
    return max(1, step)


def streaming_indices(
    num_frames: int,
    video_fps: float,
    sample_fps: float,
    clip_s: tuple[float, float],
    *,
    tolerance_s: float = TIME_TOLERANCE_S,
) -> list[int]:
    """OVBench streaming on a frame folder: every n-th frame of the clip, both ends included.

    Frame i starts at i / `video_fps`; the clip begins with the frame shown at its start. A `tolerance_s` of 0
    rounds times as they are.
    """
    step = frame_step(video_fps, sample_fps, rounding="down")
    first = max(0, math.floor(clip_s[0] * video_fps + tolerance_s))
    last = min(math.floor(clip_s[1] * video_fps + tolerance_s), num_frames - 1)
    return list(range(first, last + 1, step))


def streaming_indices_at_times(
    frame_ends_s: Sequence[float],
    video_fps: float,
    sample_fps: float,
    clip_s: tuple[float, float],
    *,
    rounding: Rounding = "nearest",
    tolerance_s: float = TIME_TOLERANCE_S,
) -> list[int]:
    """OVBench streaming on a video file: every n-th frame of those that end within the clip.

    Args:
        frame_ends_s: END of each frame (the start of the next), ascending: the setting labels frames with it,
            and so never shows a frame that a question falls into.
        video_fps: average rate.
        sample_fps: rate wanted, 8 in the published setting.
        clip_s: start and end.
        rounding: rounding of the step; the published multi-turn script rounds down.
        tolerance_s: 0 compares times as they are.
    """
    step = frame_step(video_fps, sample_fps, rounding=rounding)
    first = bisect_left(frame_ends_s, clip_s[0] - tolerance_s)
    stop = bisect_right(frame_ends_s, clip_s[1] + tolerance_s)
    return list(range(first, stop, step))


def sliding_window_indices(
    num_frames: int,
    video_fps: float,
    sample_fps: float,
    question_s: float,
    *,
    window_s: float | None = 32.0,
    max_num_frames: int = 64,
    tolerance_s: float = TIME_TOLERANCE_S,
) -> list[int]:
    """OVBench sliding window on a frame folder: backwards from the question's frame, every n-th.

    The question's frame is the last that starts at or before `question_s`; `window_s` (None: no limit) counts
    back from it. Above `max_num_frames` an even subset is kept, the question's frame among it. A `tolerance_s` of 0
    rounds times as they are.
    """
    _check_counts(num_frames, 1)
    step = frame_step(video_fps, sample_fps)
    last = min(math.floor(question_s * video_fps + tolerance_s), num_frames - 1)
    first = 0 if window_s is None else max(0, last - math.floor(window_s * video_fps + tolerance_s))
    return uniform_subset(range(last, first - 1, -step)[::-1], max_num_frames)


def sliding_window_indices_at_times(
    frame_starts_s: Sequence[float],
    frame_ends_s: Sequence[float],
    video_fps: float,
    sample_fps: float,
    question_s: float,
    *,
    window_s: float | None = 32.0,
    max_num_frames: int = 64,
    tolerance_s: float = TIME_TOLERANCE_S,
) -> list[int]:
    """OVBench sliding window on a video file: as `sliding_window_indices`, by the frames' own times.

    The window holds the frames that end at or after `question_s` - `window_s`. A question after the video's
    end still sees the last frame, and what else its window reaches.
    """
    step = frame_step(video_fps, sample_fps)
    last = max(0, bisect_right(frame_starts_s, question_s + tolerance_s) - 1)
    first = 0 if window_s is None else bisect_left(frame_ends_s, question_s - window_s - tolerance_s)
    return uniform_subset(range(last, min(first, last) - 1, -step)[::-1], max_num_frames)


def segment_centre_indices(
    num_frames: int,
    video_fps: float,
    *,
    sample_fps: float = 4.0,
    num_segments: int = 1800,
    clip_s: tuple[float, float] | None = None,
    first_index: int = 0,
) -> list[int]:
    """MVBench and Video-MME: every n-th frame, and of more than `num_segments` the centre of each segment.

    A clip's ends are rounded to the nearest frame and both included; nothing before `first_index` is used. A clip
    after the last frame is that frame.
    """
    step = frame_step(video_fps, sample_fps)
    first, last = first_index, num_frames - 1
    if clip_s is not None:
        first = min(max(first, round(clip_s[0] * video_fps)), last)
        last = min(last, round(clip_s[1] * video_fps))
    candidates = range(first, last + 1, step)
    if len(candidates) <= num_segments:
        return list(candidates)
    length = len(candidates) / num_segments
    return [candidates[int(i * length + length / 2)] for i in range(num_segments)]


def interval_indices(num_frames: int, video_fps: float, interval_s: float) -> list[int]:
    """The demo's rule: a frame every `interval_s` seconds from the start, the step rounded down to frames."""
    check_rate("video_fps", video_fps)
    check_rate("interval_s", interval_s)
    return list(range(0, num_frames, max(1, int(video_fps / (1 / interval_s)))))


def _clip_range(num_frames: int, video_fps: float, clip_s: tuple[float, float]) -> tuple[int, int]:
    """First frame and number of frames of a clip inside the video."""
    start_s, end_s = clip_s
    if not 0 <= start_s <= end_s:
        raise InputError(f"clip: expected 0 <= start <= end in seconds, got [{start_s}, {end_s}]")
    # Counted in whole frames, not seconds: a clip is moved back by the frames that it has too many.
    wanted = min(end_s - start_s, num_frames / video_fps + 1)
    num_available = min(max(1, int(wanted * video_fps)), num_frames)
    return min(int(min(start_s * video_fps, num_frames)), num_frames - num_available), num_available


def _parse_rate(method: str) -> float:
    """The N of "fpsN"."""
    try:
        rate = float(method.removeprefix("fps"))
    except ValueError:
        rate = math.nan
    if not (rate > 0 and math.isfinite(rate)):
        raise InputError(f"sampling method: expected fpsN with a number N > 0, got {method!r}")
    return rate


def check_rate(name: str, value: float) -> None:
    """Raise an InputError unless a rate, or a length of time, is finite and above 0; errors call it `name`."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name}: expected a finite number > 0, got {value}")


def _check_counts(num_available: int, num_frames: int) -> None:
    if num_available < 1 or num_frames < 1:
        raise InputError(f"expected at least 1 frame available and asked for, got {num_available}, {num_frames}")
