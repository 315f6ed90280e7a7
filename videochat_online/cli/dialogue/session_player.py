"""Plays a video into a session, up to the times that questions are asked at and never further.

Owns how far has been watched. A session cannot unsee: to go back is to begin again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from functools import cached_property

from videochat_online.errors import InputError, NoFrameError, VideoError
from videochat_online.evaluation.benchmark import OVERRUN_S
from videochat_online.runs.progress import progress
from videochat_online.streaming import StreamingSession
from videochat_online.text.times import clock_time
from videochat_online.types import FrameChunk
from videochat_online.video import VideoSource, read_ahead

READ_CHUNK = 8
"""Frames read at a time: what the vision tower takes at once."""
CHUNKS_AHEAD = 2
"""Chunks that are decoded and resized while the model works."""
SHOWN_TO_S = 0.005
"""Times are shown in hundredths of a second: one that is typed as it is shown is that time."""


class VideoPlayer:
    """A video being watched.

    Args:
        source: opened video that can be read again; nothing else may read it meanwhile.
        session: session that watches.
        fps: frames a second that it sees.
        show_progress: whether progress is shown on stderr while playing.

    Attributes:
        position_s: stream time in seconds that has been watched up to; None before the first frame.
    """

    def __init__(self, source: VideoSource, session: StreamingSession, fps: float, show_progress: bool) -> None:
        self._source, self._session, self._fps, self._show_progress = source, session, fps, show_progress
        self._begin()

    def _begin(self) -> None:
        self._chunks: Generator[FrameChunk, None, None] = read_ahead(self._squares(), CHUNKS_AHEAD)
        self._held: FrameChunk | None = None
        self._is_exhausted = False
        self._failure: InputError | None = None
        self.position_s: float | None = None

    def _squares(self) -> Iterator[FrameChunk]:
        """What the vision tower takes; a session leaves squares as they are."""
        for chunk in self._source.read(fps=self._fps, chunk=READ_CHUNK):
            yield FrameChunk(self._session.model.transform.resized(chunk.pixels_THWC), chunk.times_s)

    def close(self) -> None:
        """Decode no further."""
        self._chunks.close()

    @property
    def start_s(self) -> float:
        """Start of the first frame; 0 where it lies before."""
        return max(0.0, self._source.info.start_s)

    @property
    def is_at_end(self) -> bool:
        """Whether all of the video has been watched."""
        return self._is_exhausted and self.position_s is not None and self.position_s >= self._end_s - SHOWN_TO_S

    def play_until(self, time_s: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Push every sampled frame that starts at or before `time_s`; infinity is the end of the video.

        `stop` is asked after each chunk.

        Raises:
            NoFrameError: `time_s` is before the first frame.
            InputError: stopped before that; or a frame could not be read or encoded, and what comes after it is
                not to be seen as if it had been.
        """
        self._check_begun(time_s)
        if self._failure is not None and (self.position_s is None or time_s > self.position_s):
            raise self._failure
        ends_s = [t for t in (time_s, self._source.info.duration_s) if t is not None and math.isfinite(t)]
        with progress("s watched", show=self._show_progress) as tell:
            while self._push_until(time_s):
                tell(int(self.position_s or 0), int(min(ends_s)) if ends_s else None)
                if stop():
                    raise InputError(f"stopped at {clock_time(self.position_s or 0)}, before {_named(time_s)}")
        reached_s = min(time_s, self._end_s) if self._is_exhausted else time_s
        self.position_s = max(self.start_s, reached_s, self.position_s or 0)

    def _push_until(self, time_s: float) -> bool:
        """Push what of the next chunk starts by then; whether there is more."""
        try:
            chunk = self._held or next(self._chunks, None)
            self._held = None
            if chunk is None:
                self._is_exhausted = True
                return False
            seen = sum(time <= time_s for time in chunk.times_s)
            if seen:
                self._session.push(chunk.pixels_THWC[:seen], chunk.times_s[:seen])
                self.position_s = max(self.start_s, chunk.times_s[seen - 1])
            if seen < len(chunk):
                self._held = FrameChunk(chunk.pixels_THWC[seen:], chunk.times_s[seen:])
            return seen == len(chunk)
        except InputError as error:
            self._failure = error
            raise

    def rewind(self, time_s: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Forget frames and dialogue, begin again and watch up to `time_s`.

        Raises:
            NoFrameError: `time_s` is before the first frame; nothing is forgotten then.
            InputError: errors of `play_until`.
        """
        self._check_begun(time_s)
        self.close()
        self._session.reset()
        self._begin()
        self.play_until(time_s, stop)

    def lateness(self, time_s: float) -> str | None:
        """What is to be said of a time that the video does not reach; None of any other."""
        if not (self._is_exhausted and math.isfinite(time_s)):
            return None
        # Of a file that breaks off, the damage is named: times are held against the length it should have.
        end_s = max(self._end_s, self._source.report.declared_end_s or 0.0)
        return f"{time_s:.7g} s is after the video's end, at {end_s:.1f} s" if time_s > end_s + OVERRUN_S else None

    @cached_property
    def _end_s(self) -> float:
        """End of the last frame, once there is none left."""
        average_fps = self._source.info.average_fps
        try:
            return self._source.frame_times_s()[-1] + (1 / average_fps if average_fps else 0.0)
        except VideoError:  # packets without times; but no frame was left for the next sample
            return (self._session.last_time_s or 0.0) + 1 / self._fps

    def _check_begun(self, time_s: float) -> None:
        if time_s < self.start_s:
            begins = f"{time_s:.7g} s is before the first frame, which is at {self.start_s:.7g} s"
            raise NoFrameError(f"{begins}: nothing has been seen by then (--zero_start counts times from there)")


def _named(time_s: float) -> str:
    return clock_time(time_s) if math.isfinite(time_s) else "the end"
