"""Whose turn it is at the one model that all streams share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ModelGate:
    """A lock that is given in the order of arrival.

    It is held for one call of the model only (a batch of frames, a prompt, one token), so that streams take turns:
    frames go on arriving while answers are generated, and no stream waits for another's whole answer. A plain lock
    promises no order, and a thread that asks again at once mostly gets it again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self.is_taken = False
        """Whether a call has its turn now."""

    @property
    def num_waiting(self) -> int:
        """Calls that wait for their turn."""
        with self._lock:
            return len(self._waiting)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and give it up at the end."""
        mine = threading.Event()
        with self._lock:
            if self.is_taken:
                self._waiting.append(mine)
            else:
                self.is_taken = True
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._lock:
                # Handed over, not released: nobody can come in between.
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self.is_taken = False
