"""Whose turn it is at the one model that all streams share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ModelGate:
    """A lock that is given in the order of arrival.

    It is held for one call of the model only (a batch of frames, a prompt, one token), so that streams take turns:
    frames go on arriving while answers are generated, and no stream waits for another's whole answer. A plain lock
    promises no order, and a thread that asks again at once mostly gets it again. Here each call draws a number, and
    the numbers are served one after another.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_drawn = self._num_served = 0

    @property
    def is_taken(self) -> bool:
        """Whether a call has its turn now."""
        return self._num_drawn > self._num_served

    @property
    def num_waiting(self) -> int:
        """Calls that wait for their turn."""
        with self._changed:
            return max(0, self._num_drawn - self._num_served - 1)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and give it up at the end."""
        with self._changed:
            mine = self._num_drawn
            self._num_drawn += 1
            self._changed.wait_for(lambda: self._num_served == mine)
        try:
            yield
        finally:
            with self._changed:
                self._num_served += 1
                self._changed.notify_all()
