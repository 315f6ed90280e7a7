"""How far a stream has come, and which times that leaves for frames and questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from videochat_online.errors import InputError, NoFrameError


@dataclass
class StreamClock:
    """Frames so far and the newest one's time; times are seconds and never go back.

    Attributes:
        num_frames: frames that have arrived.
        last_time_s: start time of the newest; minus infinity before the first.
    """

    num_frames: int = 0
    last_time_s: float = -math.inf

    def check(self, times_s: Sequence[float]) -> None:
        """Raise an InputError unless frames of these times may come next."""
        previous = self.last_time_s
        for time in times_s:
            if not math.isfinite(time):
                raise InputError(f"push: expected finite times in seconds, got {time}")
            if time < previous:
                raise InputError(f"push: time goes backwards, from {previous} s to {time} s")
            previous = time

    def advance(self, num_frames: int, time_s: float) -> None:
        """So many frames have arrived by now, the last of them of this time."""
        self.num_frames, self.last_time_s = num_frames, time_s

    def asking_time(self, at_s: float | None) -> float:
        """When a question is asked: at the newest frame's time where it does not say.

        Raises:
            NoFrameError: nothing has arrived yet.
            InputError: the time is none, or a later frame has arrived.
        """
        if at_s is not None and not (math.isfinite(at_s) and at_s >= 0):
            raise InputError(f"at_s: expected a time of at least 0 s, got {at_s}")
        if self.num_frames == 0:
            when = "" if at_s is None else f" at {at_s} s"
            raise NoFrameError(f"a question{when} came before the first frame: nothing has been seen yet")
        if at_s is not None and at_s < self.last_time_s:
            raise InputError(
                f"a question at {at_s} s must not see the future, but a frame of {self.last_time_s} s has arrived"
            )
        return self.last_time_s if at_s is None else at_s
