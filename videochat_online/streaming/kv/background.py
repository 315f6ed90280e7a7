"""Prefilling at idle time: a thread that makes way for everything else.

Knows nothing of prompts: it is told what to call, and calls it whenever nothing else is going on.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from videochat_online.errors import InputError

logger = logging.getLogger(__name__)

PIECE_S = 0.03
"""Seconds that one piece should take: what a push or a question may have to wait for."""
SMALLEST_PIECE, LARGEST_PIECE = 8, 2048


class Foreground:
    """Counts the calls that are under way, so that background work can make way for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self.ended = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way, or waits for its turn."""
        return self._count > 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A call that must not be delayed."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self.ended.set()


class Pace:
    """Sizes of the pieces, in tokens: as many as take `PIECE_S`; 0 when it is time to stop.

    Args:
        device: device that they are computed on.
        should_stop: function that is asked before each piece.
    """

    def __init__(self, device: torch.device, should_stop: Callable[[], bool]) -> None:
        self._device, self._should_stop = device, should_stop
        self._size = SMALLEST_PIECE
        self._began_s: float | None = None

    def begin(self) -> Pace:
        """Start the clock anew: what comes next does not follow a piece."""
        self._began_s = None
        return self

    def __call__(self) -> int:
        """Tokens of the next piece."""
        if self._device.type == "cuda":
            # Kernels are only queued: without waiting, the whole prefix would be, and a question behind it.
            torch.cuda.synchronize(self._device)
        now_s = time.perf_counter()
        if self._began_s is not None:
            change = min(2.0, PIECE_S / max(now_s - self._began_s, 1e-6))
            self._size = max(SMALLEST_PIECE, min(LARGEST_PIECE, int(self._size * change)))
        self._began_s = now_s
        return 0 if self._should_stop() else self._size


class BackgroundPrefill:
    """The thread. It ends with `stop`, with its owner, and with the process.

    Args:
        work: a bound method `work(next_size)`: prefills in pieces of that many tokens until it gets 0. Its object
            is not kept alive.
        foreground: work that it makes way for.
        device: device that the pieces are computed on.
    """

    def __init__(self, work: Callable[[Callable[[], int]], Any], foreground: Foreground, device: torch.device) -> None:
        stopped = threading.Event()
        pace = Pace(device, lambda: stopped.is_set() or foreground.is_busy)
        arguments = (weakref.WeakMethod(work), foreground.ended, stopped, pace)
        thread = threading.Thread(target=_run, args=arguments, name="prefill", daemon=True)
        # Also at exit: a thread inside torch while the interpreter is taken down may crash.
        self._end = weakref.finalize(work.__self__, _end, thread, foreground.ended, stopped)  # type: ignore[attr-defined]
        thread.start()

    def stop(self) -> None:
        """End the thread, after the piece that is being computed; a second call does nothing."""
        self._end()


def _end(thread: threading.Thread, wake: threading.Event, stopped: threading.Event) -> None:
    stopped.set()
    wake.set()
    if thread is not threading.current_thread():  # it may hold the last reference to the owner
        thread.join()


def _run(reference: weakref.WeakMethod[Any], wake: threading.Event, stopped: threading.Event, pace: Pace) -> None:
    while True:
        wake.wait()
        wake.clear()
        work = reference()
        if stopped.is_set() or work is None:
            return
        try:
            work(pace.begin())
        except InputError as error:
            logger.info("nothing is prefilled: %s", error)
        except Exception:  # a thread's last resort: the question that comes will meet the same fault, and say so
            logger.exception("prefilling in the background failed")
        del work
