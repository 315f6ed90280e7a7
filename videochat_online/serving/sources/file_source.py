"""Plays a video file into a stream in real time: pause, go on, another speed, forward to a later moment.

The page shows what has been decoded, so that viewer and model always look at the same moment. Where decoding is
slower than the asked speed, the video plays slower; nothing is skipped but by `seek`.
"""

from __future__ import annotations

import math
from pathlib import Path

from videochat_online.errors import InputError
from videochat_online.serving.sources.player import VIEW_FPS, Clock, Player
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.video import VideoSource, open_video

SPEEDS = (0.25, 16.0)
"""Slowest and fastest, in seconds of video a second."""

MAX_LAG_S = 0.5
"""A player that is behind by more does not try to catch up."""


class FilePlayer(Player):
    """One file being played into one stream; begins paused.

    Args:
        path: a video file or a folder of frames; checked when the thread opens it.
        stream: takes the frames.
        clock: None for the machine's.
    """

    def __init__(self, path: Path, stream: LiveStream, *, clock: Clock | None = None) -> None:
        super().__init__(stream, "paused", clock)
        self._path = path
        self._target_s: float | None = None
        # Media time `_from_s` is shown at clock time `_since`; None: it has to be set anew by the next frame.
        self._from_s = 0.0
        self._since: float | None = None
        self._thread.start()

    def play(self) -> None:
        """Play on from the frame being shown."""
        with self._changed:
            if self._state == "paused":
                self._state, self._since = "playing", None
                self._changed.notify_all()

    def pause(self) -> None:
        """Stop at the frame being shown; questions may still be asked."""
        with self._changed:
            if self._state == "playing":
                self._state = "paused"
                self._changed.notify_all()

    def set_speed(self, speed: float) -> None:
        """Play that many seconds of video a second.

        Raises:
            InputError: a speed out of `SPEEDS`.
        """
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise InputError(f"speed: expected {SPEEDS[0]:g} to {SPEEDS[1]:g}, got {speed}")
        with self._changed:
            self._speed, self._since = float(speed), None
            self._changed.notify_all()

    def seek(self, time_s: float) -> None:
        """Go forward: what lies between is not seen.

        Raises:
            InputError: a time that is not later than the present one, or not within the video.
        """
        with self._changed:
            if not math.isfinite(time_s) or time_s <= self._position_s:
                raise InputError(
                    f"expected a time later than {self._position_s:g} s, got {time_s:g} s: a stream only goes forward;"
                    " open the video again to watch it from its start"
                )
            if self._duration_s is not None and time_s > self._duration_s:
                raise InputError(f"expected a time within the video, {self._duration_s:g} s, got {time_s:g} s")
            if self._state in ("ended", "failed"):
                raise InputError(f"the video has {self._state}: open it again to watch it from its start")
            self._target_s = time_s
            self._changed.notify_all()

    def _play(self) -> str | None:
        try:
            with open_video(self._path) as source:
                with self._changed:
                    self._duration_s = source.info.duration_s
                start_s: float | None = None
                while self._play_from(source, start_s):
                    with self._changed:
                        start_s, self._target_s, self._since = self._target_s, None, None
                return source.report.warning
        except InputError as error:
            raise InputError(str(error).replace(f"{self._path}: ", "")) from error

    def _play_from(self, source: VideoSource, start_s: float | None) -> bool:
        """Play to the end, or until another position is wanted: then True."""
        per_shown = max(1, math.ceil(VIEW_FPS / self._stream.options.fps))
        for chunk in source.read(fps=self._stream.options.fps * per_shown, start_s=start_s, chunk=1):
            (time_s,) = chunk.times_s
            if time_s < self._position_s:
                continue  # the frame that is still shown at the position that was asked for
            # Whoever goes forward in a pause sees where that is.
            is_first, start_s = start_s is not None, None
            with self._changed:
                if not is_first and not self._wait_until_due(time_s):
                    return not self._is_closed
            self._stream.receive(chunk.pixels_THWC[0], time_s)
            with self._changed:
                self._position_s = time_s
        return False

    def _wait_until_due(self, time_s: float) -> bool:
        """Wait, with `_changed` held, until a frame of that media time is due; False if it is wanted no more."""
        while not self._is_closed and self._target_s is None:
            if self._state == "paused":
                self._clock.wait(self._changed, None)
                continue
            now_s = self._clock.now()
            if self._since is None:
                self._from_s, self._since = time_s, now_s
            left_s = (time_s - self._from_s) / self._speed - (now_s - self._since)
            if left_s < -MAX_LAG_S:
                self._from_s, self._since = time_s, now_s
            if left_s <= 0:
                return True
            self._clock.wait(self._changed, left_s)
        return False
