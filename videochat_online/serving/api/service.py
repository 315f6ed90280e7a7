"""What the routes of the HTTP API share: streams found and kept in use, frames put in, and no thread kept waiting.

Everything that may block runs in a few threads of the API's own. What lasts (a view, an answer) never holds one of
them: it waits in the event loop for what a thread of the stream tells it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import anyio.to_thread
import numpy as np
import numpy.typing as npt
from anyio import CapacityLimiter

from videochat_online.data.rows.field_values import time_s as checked_time_s
from videochat_online.errors import InputError
from videochat_online.serving.api.mjpeg import PictureFeed
from videochat_online.serving.api.schemas import ApiLimits, RequestError
from videochat_online.serving.streams.image_bytes import read_picture
from videochat_online.serving.streams.live_answer import LiveAnswer
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.pool import StreamPool, UnknownStreamError, Watching

NUM_THREADS = 16
"""Calls that run at once; none of them waits for a model, but for closing a stream."""

NUM_DECODERS = 4
"""Frames that are decoded at once: each may take some 50 MB for a moment."""

MAX_TOUCH_S = 5.0
"""Seconds between two signs of life of a stream that is being read, at most."""

_Result = TypeVar("_Result")


class ApiStreamState:
    """What the API keeps of one stream.

    Attributes:
        lock: held while a frame or a question is put in: times of two requests at once must not cross.
        feed: pictures for those who look at it.
    """

    def __init__(self, watching: Watching) -> None:
        self.lock = threading.Lock()
        self.feed = PictureFeed()
        self._zero = time.monotonic() - max(time.time() - watching.opened_s, 0.0)

    def now_s(self) -> float:
        """Seconds since the stream was opened."""
        return time.monotonic() - self._zero


class ApiAccess:
    """The pool as the routes use it; see the module's docstring."""

    def __init__(self, pool: StreamPool, limits: ApiLimits) -> None:
        self.pool, self.limits = pool, limits
        self._threads, self._decoders = CapacityLimiter(NUM_THREADS), CapacityLimiter(NUM_DECODERS)
        self._ports: WeakKeyDictionary[LiveStream, ApiStreamState] = WeakKeyDictionary()
        self._lock = threading.Lock()

    async def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run what may block in a thread."""
        return await anyio.to_thread.run_sync(partial(function, *arguments), limiter=self._threads)

    async def find(self, name: str) -> Watching:
        """As `StreamPool.find`."""
        return await self.call(self.pool.find, name)

    def port(self, watching: Watching) -> ApiStreamState:
        """What the API keeps of this stream."""
        with self._lock:
            port = self._ports.get(watching.stream)
            if port is None:
                port = self._ports[watching.stream] = ApiStreamState(watching)
            return port

    async def push(self, watching: Watching, data: bytes, time_s: float | None) -> dict[str, Any]:
        """Decode a frame and put it in.

        Args:
            watching: the stream.
            data: an encoded image.
            time_s: stream time; None for now, in seconds since the stream was opened.

        Returns:
            What a client is told about the frame.

        Raises:
            InputError: a bad frame or time, or the stream takes nothing any more.
        """
        if time_s is not None:
            checked_time_s(time_s, "time_s")
        if len(data) > self.limits.max_frame_bytes:
            raise too_large(self.limits.max_frame_bytes, "frame")
        read = partial(read_picture, data, self.limits.max_frame_pixels)
        pixels_HWC = await anyio.to_thread.run_sync(read, limiter=self._decoders)
        return await self.call(self._receive, watching, pixels_HWC, time_s)

    def _receive(self, watching: Watching, pixels_HWC: npt.NDArray[np.uint8], time_s: float | None) -> dict[str, Any]:
        port, stream = self.port(watching), watching.stream
        with port.lock:
            at_s = port.now_s() if time_s is None else time_s
            try:
                is_accepted = stream.receive(pixels_HWC, at_s)
            except InputError as error:
                raise told(stream, error) from error
        status = stream.status()
        return {
            "accepted": is_accepted,
            "time_s": at_s,
            "num_frames_waiting": status.num_frames_waiting,
            "num_frames_dropped": status.num_frames_dropped,
        }

    def ask(self, watching: Watching, question: str) -> LiveAnswer:
        """As `LiveStream.ask`; blocks for a moment.

        Raises:
            InputError: as `LiveStream.ask`, with a status of its own where another answer is being given.
        """
        return self._in_silence(watching, partial(watching.stream.ask, question))

    def forget_dialogue(self, watching: Watching) -> None:
        """As `LiveStream.forget_dialogue`; blocks for a moment. Errors as `ask`."""
        self._in_silence(watching, watching.stream.forget_dialogue)

    def _in_silence(self, watching: Watching, function: Callable[[], _Result]) -> _Result:
        """Do what cannot be done while an answer is being given."""
        with self.port(watching).lock:
            is_answering = watching.stream.status().is_answering
            try:
                return function()
            except InputError as error:
                raise RequestError(str(error), 409) if is_answering else told(watching.stream, error) from error

    @asynccontextmanager
    async def in_use(self, name: str, on_gone: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[None]:
        """A stream that counts as used meanwhile; `on_gone` is called if it is closed nevertheless."""

        async def touch() -> None:
            try:
                while True:
                    await self.find(name)
                    await asyncio.sleep(min(MAX_TOUCH_S, self.pool.idle_s / 4))
            except UnknownStreamError:
                if on_gone is not None:
                    await on_gone()

        task = asyncio.create_task(touch())
        try:
            yield
        finally:
            task.cancel()


def told(stream: LiveStream, error: InputError) -> InputError:
    """What a client is told when its stream has refused something."""
    if stream.is_closed:
        return UnknownStreamError("no such stream: it was closed, or left alone for too long")
    return RequestError(str(error), 409) if stream.status().problem is not None else error


def too_large(max_bytes: int, what: str) -> RequestError:
    """The refusal of something that has too many bytes."""
    return RequestError(f"expected a {what} of at most {max_bytes:,} bytes, got more", 413)
