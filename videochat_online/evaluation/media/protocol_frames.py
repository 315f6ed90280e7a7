"""From a video and a protocol to frames: which ones, with which time labels, each decoded once.

Owns the choice between the rules of `video.sampling` for files (by the frames' own times) and for folders of
frames (by their rate), and the reading of chosen frames. Knows no model.

Shapes: `T` frames, `H` rows and `W` columns of pixels, `C` = 3 colours.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from videochat_online.errors import VideoError
from videochat_online.evaluation.benchmark import EvalVideo
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.video import (
    TIME_TOLERANCE_S,
    VideoSource,
    frame_step,
    open_video,
    segment_centre_indices,
    sliding_window_indices,
    sliding_window_indices_at_times,
    streaming_indices,
    streaming_indices_at_times,
    uniform_subset,
)

READ_CHUNK = 8
"""Frames read at a time: what the vision tower takes at once."""


@dataclass(frozen=True, slots=True)
class LabelledFrame:
    """A decoded frame.

    Attributes:
        index: position in the whole video, from 0.
        time_s: time as the prompt says it, in seconds.
        pixels_HWC: picture in RGB, uint8.
    """

    index: int
    time_s: float
    pixels_HWC: npt.NDArray[np.uint8]


class VideoFrames:
    """An opened video, as a protocol sees it. Use as a context manager.

    Args:
        path: video file or folder of frames.
        video: entry of the annotation about it.
        protocol: protocol that says which frames are wanted.
        backend: decoder of files, a name in `video.BACKENDS` or "auto".

    Attributes:
        video: the same, with the time of questions that are asked at its end.

    Raises:
        VideoError: a video that is unreadable or without frames, or a folder without a rate.
        InputError: an unknown backend.
    """

    def __init__(self, path: Path, video: EvalVideo, protocol: EvalProtocol, *, backend: str = "auto") -> None:
        self._protocol = protocol
        self._is_folder = path.is_dir()
        if self._is_folder and video.fps is None:
            raise VideoError(f"{path}: expected a frame rate (fps) in the annotation of a folder of frames, found none")
        self.source: VideoSource = open_video(path, fps=video.fps, backend=backend, zero_start=protocol.zero_start)
        try:
            self._starts_s = self.source.frame_times_s()
            self._fps = average_fps(self.source, self._starts_s)
            self._ends_s = (*self._starts_s[1:], self._starts_s[-1] + 1 / self._fps)
            self.video = video.ending_at(self._ends_s[-1])
            if protocol.is_scripted:
                self._ends_s = _as_float32(self._ends_s)
        except BaseException:
            self.source.close()
            raise
        self.num_decoded = 0

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(self, *error: object) -> None:
        self.source.close()

    @property
    def problem(self) -> str | None:
        """What was missing or broken so far, in a line.

        A decoder that waits for the next keyframe gives no error for the frames until then: of those at the start no
        report says how many they are. Questions before the first frame have nothing to be answered from, and those well
        after the last one see nothing of their time.
        """
        first_s = self.source.info.start_s
        num_lost = bisect_left(self._starts_s, first_s - TIME_TOLERANCE_S)
        lost = f"{num_lost} frames before {first_s:g} s do not decode" if num_lost else None
        report = self.source.report
        # Of a file that breaks off, the damage is named: questions are held against the length it should have.
        end_s = max(float(self._ends_s[-1]), report.declared_end_s or 0.0)
        outside = () if self._is_folder else _outside(self.video, self._starts_s[0], end_s)
        return "; ".join(part for part in (*outside, lost, report.warning) if part) or None

    def finish(self) -> str | None:
        """`problem`, when nothing more is going to be read.

        A file that breaks off may give no error: where questions come after its last frame, the whole is looked at.
        """
        needed_s = min(self.video.last_question_s, self.video.clip_s[1])
        if not self._is_folder and needed_s > self._ends_s[-1]:
            self.source.finish(0.0)
        return self.problem

    def streaming_indices(self) -> list[int]:
        """Every n-th frame of the clip up to the last question, from the one shown at the clip's start on.

        As scripted: up to the clip's end.
        """
        fps, protocol, last_s = self._fps, self._protocol, self.video.last_question_s
        start_s, end_s = self.video.clip_s
        stop_s = self._ends_s[-1] if protocol.is_scripted else protocol.until_s(last_s)
        clip_s = (start_s, max(start_s, min(end_s, stop_s)))
        tolerance_s = 0.0 if protocol.is_scripted else TIME_TOLERANCE_S
        if self._is_folder:
            indices = streaming_indices(len(self._starts_s), fps, protocol.fps, clip_s, tolerance_s=tolerance_s)
            return [index for index in indices if not protocol.clips or protocol.shows(self._starts_s[index], last_s)]
        rounding = protocol.step_rounding
        if protocol.frame_times == "end":
            return streaming_indices_at_times(
                self._ends_s, fps, protocol.fps, clip_s, rounding=rounding, tolerance_s=tolerance_s
            )
        first = index_at(self._starts_s, start_s)
        until_s = clip_s[1] + (-2 if protocol.clips else 1) * TIME_TOLERANCE_S
        stop = bisect_right(self._starts_s, until_s)
        return list(range(first, stop, frame_step(fps, protocol.fps, rounding=rounding)))

    def window_indices(self, question_s: float, starts_s: float | None = None) -> list[int]:
        """Frames of the window of a question: none starts after it, none ends before the clip begins.

        None starts before the question's own start, where it has one, and in a benchmark's clip none before the window.
        As scripted: the clip is not looked at, and a question before the first frame gets that one.
        """
        protocol = self._protocol
        if protocol.is_scripted:
            return self._published_window(question_s)
        clip_start_s, clip_end_s = self.video.clip_s
        if question_s < clip_start_s:
            return []
        question_s = min(question_s, clip_end_s)
        until_s = protocol.until_s(question_s)
        window_s = until_s - clip_start_s
        if protocol.window_s is not None:
            window_s = min(protocol.window_s, window_s)
        first_s = until_s - window_s if protocol.clips else -math.inf
        if protocol.own_starts and starts_s is not None:
            first_s = max(first_s, starts_s)
        shown = [
            index
            for index in self._every_nth(until_s - 2 * TIME_TOLERANCE_S if protocol.clips else until_s, window_s)
            # A frame with a negative start is what is shown at 0.
            if max(0.0, self._starts_s[index]) >= first_s - TIME_TOLERANCE_S
            and protocol.shows(self._starts_s[index], question_s)
        ]
        return uniform_subset(shown, protocol.max_frames or 0)

    def _every_nth(
        self, question_s: float, window_s: float | None, limit: int = 0, tolerance_s: float = TIME_TOLERANCE_S
    ) -> list[int]:
        """Every n-th frame of a window, backwards from the question's frame; at most `limit`, 0 for all of them."""
        values = (self._fps, self._protocol.fps, question_s)
        if self._is_folder:
            return sliding_window_indices(
                len(self._starts_s), *values, window_s=window_s, max_num_frames=limit, tolerance_s=tolerance_s
            )
        starts_s = _as_float32(self._starts_s) if self._protocol.is_scripted else self._starts_s
        return sliding_window_indices_at_times(
            starts_s, self._ends_s, *values, window_s=window_s, max_num_frames=limit, tolerance_s=tolerance_s
        )

    def offline_indices(self, last_index: int | None = None) -> list[int]:
        """Every n-th frame of the whole video, or of its frames up to `last_index`, thinned to `max_frames`."""
        num_frames = len(self._starts_s)
        if last_index is not None:
            num_frames = max(1, min(num_frames, last_index + 1))
        limit = self._protocol.max_frames or num_frames
        return segment_centre_indices(num_frames, self._fps, sample_fps=self._protocol.fps, num_segments=limit)

    def _published_window(self, question_s: float) -> list[int]:
        window_s = self._protocol.window_s
        if not self._is_folder and window_s is not None and question_s - window_s > self._ends_s[-1]:
            window_s = None  # the scripts look for the window's first frame, find none, and begin at the first of all
        return self._every_nth(question_s, window_s, self._protocol.max_frames or 0, tolerance_s=0.0)

    def labels(self, indices: Sequence[int]) -> list[float]:
        """Times of frames as a prompt says them, if they decode."""
        return [self._label(self._starts_s[index]) for index in indices]

    def read(self, indices: Sequence[int]) -> Iterator[list[LabelledFrame]]:
        """Chosen frames (ascending) in groups, each decoded once and handed out once.

        A frame that cannot be decoded is left out: the one before it is not shown in its place. Where the video's first
        frames cannot be, it begins with the first one that can.
        """
        # A frame with a negative start is what is shown at 0.
        times_s = [max(0.0, self._starts_s[index]) for index in indices]
        position, last_s = 0, None
        for chunk in self.source.read(times_s=times_s, chunk=READ_CHUNK, may_begin_late=True):
            if last_s is None:
                position = bisect_left(times_s, chunk.times_s[0] - TIME_TOLERANCE_S)
            group = []
            for pixels_HWC, time_s in zip(chunk.pixels_THWC, chunk.times_s, strict=True):
                if time_s != last_s:
                    group.append(LabelledFrame(indices[position], self._label(time_s), pixels_HWC))
                position, last_s = position + 1, time_s
            self.num_decoded += len(group)
            if group:
                yield group

    def _label(self, start_s: float) -> float:
        if self._is_folder and self._protocol.is_scripted:
            return round(start_s, 2)  # as the scripts compare and print it
        if self._protocol.frame_times == "start" or self._is_folder:
            return start_s
        return self._ends_s[index_at(self._starts_s, start_s)]


def index_at(starts_s: Sequence[float], time_s: float) -> int:
    """Index of the frame on view at a time; of the first one before it begins."""
    return max(0, bisect_right(starts_s, time_s + TIME_TOLERANCE_S) - 1)


def average_fps(source: VideoSource, starts_s: Sequence[float]) -> float:
    """Frames a second as a file says, or as its frames' times come to."""
    span_s = starts_s[-1] - starts_s[0]
    return source.info.average_fps or ((len(starts_s) - 1) / span_s if span_s > 0 else 1.0)


def _outside(video: EvalVideo, start_s: float, end_s: float) -> Iterator[str]:
    num_early, num_late = len(video.early_questions(start_s)), len(video.late_questions(end_s))
    if num_early:
        hint = "(--zero_start counts times from there)"
        yield f"{num_early} of {len(video.questions)} questions come before its first frame at {start_s:.2f} s {hint}"
    if num_late:
        yield f"{num_late} of {len(video.questions)} questions come after its end at {end_s:.2f} s"


def _as_float32(times_s: Sequence[float]) -> tuple[float, ...]:
    """Times as the decoder of the published scripts gives them: 1.6 is later than a question at 1.6 s."""
    return tuple(np.asarray(times_s, dtype=np.float32).tolist())
