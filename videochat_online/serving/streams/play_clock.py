"""Time that a demo plays by: the machine's, or one that a test moves."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that pass."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait, with the condition held, until it is notified or that long; None: only until it is notified."""
        ...


class RealClock:
    """The machine's."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait as `Clock` says."""
        condition.wait(seconds)


class SimulatedClock:
    """One that jumps to the end of every wait: an hour of video passes as fast as it can be processed."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now(self) -> float:
        """Seconds waited so far."""
        return self._now_s

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Let the time pass at once; what waits for a notification alone really waits."""
        if seconds is None:
            condition.wait()
        else:
            self._now_s += max(seconds, 1e-6)  # never nothing: what is due would wait for ever
