"""Plays a video file into a stream in real time: pause, go on, another speed, forward to a later moment.

The page shows what has been decoded, so that viewer and model always look at the same moment. Where decoding is
slower than the asked speed, the video plays slower; nothing is skipped but by `seek`.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from pathlib import Path

from videochat_online.errors import InputError
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.play_clock import Clock, RealClock
from videochat_online.serving.streams.stream_status import SECONDS_TO_END
from videochat_online.video import VideoSource, open_video

logger = logging.getLogger(__name__)

VIEW_FPS = 8.0
"""Frames a second that are shown, if the model does not see more."""

MAX_LAG_S = 0.5
"""A player that is behind by more does not try to catch up."""

SPEEDS = (0.25, 16.0)
"""Slowest and fastest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerStatus:
    """Where a player is.

    Attributes:
        state: "playing", "paused", "ended" or "failed".
        position_s: start of the frame being shown.
        duration_s: of the video; None where it is not known.
        speed: seconds of video a second.
        problem: what is damaged or has failed; None where nothing is known to be.
    """

    state: str
    position_s: float
    duration_s: float | None
    speed: float
    problem: str | None


class FilePlayer:
    """One file being played into one stream; begins paused.

    Args:
        path: of a video file or a folder of frames; checked when the thread opens it.
        stream: takes the frames.
        clock: another than the machine's, for tests.
    """

    def __init__(self, path: Path, stream: LiveStream, *, clock: Clock | None = None) -> None:
        self._path, self._stream = path, stream
        self._clock: Clock = clock or RealClock()
        self._changed = threading.Condition()
        self._state = "paused"
        self._problem: str | None = None
        self._position_s = 0.0
        self._duration_s: float | None = None
        self._speed = 1.0
        self._target_s: float | None = None
        self._is_closed = False
        # Media time `_from_s` is shown at clock time `_since`; None: it has to be set anew by the next frame.
        self._from_s = 0.0
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self._thread.start()

    def play(self) -> None:
        """Go on."""
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
        """Seconds of video a second.

        Raises:
            InputError: out of `SPEEDS`.
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

    def status(self) -> PlayerStatus:
        """Where it is now."""
        with self._changed:
            return PlayerStatus(
                state=self._state,
                position_s=self._position_s,
                duration_s=self._duration_s,
                speed=self._speed,
                problem=self._problem,
            )

    def wait_until_over(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the video; False if it is not reached by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state in ("ended", "failed"), timeout_s)

    def close(self) -> None:
        """Stop playing and let go of the file."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(SECONDS_TO_END)

    def _run(self) -> None:
        problem = None
        try:
            with open_video(self._path) as source:
                with self._changed:
                    self._duration_s = source.info.duration_s
                start_s: float | None = None
                while self._play_from(source, start_s):
                    with self._changed:
                        start_s, self._target_s, self._since = self._target_s, None, None
                problem = source.report.warning
            state = "ended"
        except InputError as error:
            state, problem = "failed", str(error).replace(f"{self._path}: ", "")
        except Exception as error:  # the thread's last resort: the viewer has to be told, whatever it was
            logger.exception("a player failed")
            state, problem = "failed", f"the player has failed: {type(error).__name__}"
        with self._changed:
            self._state, self._problem = state, problem
            self._changed.notify_all()

    def _play_from(self, source: VideoSource, start_s: float | None) -> bool:
        """Play to the end, or until another place is wanted: then True."""
        per_shown = max(1, math.ceil(VIEW_FPS / self._stream.options.fps))
        for chunk in source.read(fps=self._stream.options.fps * per_shown, start_s=start_s, chunk=1):
            (time_s,) = chunk.times_s
            if time_s < self._position_s:
                continue  # the frame that is still shown at the place that was asked for
            # Whoever goes forward in a pause sees where that is.
            is_first, start_s = start_s is not None, None
            if not is_first and not self._wait_for(time_s):
                return not self._is_closed
            self._stream.receive(chunk.pixels_THWC[0], time_s)
            with self._changed:
                self._position_s = time_s
        return False

    def _wait_for(self, time_s: float) -> bool:
        """Wait until a frame is due; False if another place is wanted, or none."""
        with self._changed:
            while not self._is_closed and self._target_s is None:
                if self._state == "paused":
                    self._clock.wait(self._changed, None)
                    continue
                if self._since is None:
                    self._from_s, self._since = time_s, self._clock.now()
                left_s = (time_s - self._from_s) / self._speed - (self._clock.now() - self._since)
                if left_s <= 0:
                    if left_s < -MAX_LAG_S:
                        self._from_s, self._since = time_s, self._clock.now()
                    return True
                self._clock.wait(self._changed, left_s)
            return False
