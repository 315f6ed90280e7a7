"""What plays a video into a stream: a thread that shows each frame when it is due, and can be closed at any moment."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from videochat_online.errors import InputError
from videochat_online.serving.streams.live_answer import SECONDS_TO_END
from videochat_online.serving.streams.live_stream import LiveStream

logger = logging.getLogger(__name__)

VIEW_FPS = 8.0
"""Frames a second that are shown, if the model does not see more."""


class Clock:
    """Seconds that pass: the machine's. A test may have its own."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait, with the condition held, until it is notified or that long; None: only until it is notified."""
        condition.wait(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerStatus:
    """How far a player is.

    Attributes:
        state: one of "connecting", "playing", "waiting", "paused", "ended", "failed".
        waiting_s: seconds since the source was lost; None where it is not.
        position_s: start of the frame being shown.
        duration_s: length of the video; None where it is not known.
        speed: seconds of video a second.
        problem: damage, loss or failure in one line; None where nothing is known to be.
    """

    state: str
    waiting_s: float | None
    position_s: float
    duration_s: float | None
    speed: float
    problem: str | None


class Player(ABC):
    """One video being played into one stream by a thread of its own, which a subclass starts when it is ready.

    Args:
        stream: takes the frames.
        state: first state of `PlayerStatus`.
        clock: None for the machine's.
    """

    def __init__(self, stream: LiveStream, state: str, clock: Clock | None) -> None:
        self._stream, self._state, self._clock = stream, state, clock or Clock()
        self._changed = threading.Condition()
        self._problem: str | None = None
        self._position_s = 0.0
        self._duration_s: float | None = None
        self._speed = 1.0
        self._waiting_since: float | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)

    def status(self) -> PlayerStatus:
        """How far it is now."""
        with self._changed:
            return PlayerStatus(
                state=self._state,
                waiting_s=None if self._waiting_since is None else self._clock.now() - self._waiting_since,
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
        """Stop playing and let go of the source."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(SECONDS_TO_END)

    @abstractmethod
    def _play(self) -> str | None:
        """Play to the end; returns what is damaged, None where nothing is known to be.

        Raises:
            InputError: a problem that keeps it from playing on.
        """

    def _run(self) -> None:
        state = "failed"
        try:
            problem = self._play()
            state = "ended"
        except InputError as error:
            problem = str(error)
        except Exception as error:  # the thread's last resort: the viewer has to be told, whatever it was
            logger.exception("a player failed")
            problem = f"the player has failed: {type(error).__name__}"
        with self._changed:
            self._state, self._problem, self._waiting_since = state, problem, None
            self._changed.notify_all()
