"""The frame being shown, sent to many viewers: encoded once for all of them, by one thread of the stream.

All but that thread's loop runs in the server's event loop, so that viewers cost no threads and need no locks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from videochat_online.serving.streams.live_stream import LiveStream

logger = logging.getLogger(__name__)

BOUNDARY = "frame"
MJPEG = f"multipart/x-mixed-replace; boundary={BOUNDARY}"

SECONDS_BETWEEN_LOOKS = 1.0
"""After which a picture is sent again if there is no newer one, and how long a thread outlives its last viewer."""

SECONDS_TO_SEND = 30.0
"""A reader that has taken nothing for so long is no reader."""


class PictureFeed:
    """Pictures of one stream for any number of viewers; one that is slow gets fewer.

    Attributes:
        num_viewers: that have joined and not left.
    """

    def __init__(self) -> None:
        self.num_viewers = 0
        self._quit: threading.Event | None = None
        self._changed = asyncio.Event()
        self._latest: bytes | None = None
        self._number = 0
        self._is_over = False

    def join(self, stream: LiveStream) -> None:
        """One viewer more of the feed's stream, which is not kept: a feed must not outlive it."""
        self.num_viewers += 1
        if self._quit is None and not self._is_over:
            self._quit = threading.Event()
            arguments = (stream, asyncio.get_running_loop(), self._quit)
            threading.Thread(target=self._watch, args=arguments, name="view", daemon=True).start()

    def leave(self) -> None:
        """One viewer less; the thread notices with its next picture."""
        self.num_viewers -= 1

    async def newer_than(self, number: int) -> tuple[int, bytes] | None:
        """The newest picture as JPEG, with its number, once it is newer than that; None when the stream is closed."""
        while not self._is_over:
            if self._latest is not None and self._number > number:
                return self._number, self._latest
            await self._changed.wait()
        return None

    def _watch(self, stream: LiveStream, loop: asyncio.AbstractEventLoop, leaving: threading.Event) -> None:
        try:
            for jpeg in stream.pictures(SECONDS_BETWEEN_LOOKS):
                if leaving.is_set() or not call_in_loop(loop, self._publish, jpeg, leaving):
                    return
        except Exception:  # the thread's last resort: the viewers have to be let go, whatever it was
            logger.exception("a view failed")
        call_in_loop(loop, self._end)

    def _publish(self, jpeg: bytes, leaving: threading.Event) -> None:
        if leaving is not self._quit:
            return
        if not self.num_viewers:
            leaving.set()
            self._quit = self._latest = None
            return
        self._latest = jpeg
        self._number += 1
        self._wake()

    def _end(self) -> None:
        self._is_over = True
        self._latest = None
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> bool:
    """Call a function in an event loop; False if the loop is closed, as its server is."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
        return True
    return False


def mjpeg_part(jpeg: bytes) -> bytes:
    """One picture, with the boundary that follows: a browser shows a picture only when it has seen that."""
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return head.encode() + jpeg + f"\r\n--{BOUNDARY}\r\n".encode()


class LiveResponse(StreamingResponse):
    """A response that goes on until there is nothing more to say, or nobody who listens.

    Args:
        body: what is sent.
        media_type: of it.
        on_end: called in any case, when it is over.
    """

    def __init__(self, body: AsyncGenerator[bytes, None], media_type: str, on_end: Callable[[], object]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not hold it back
        super().__init__(body, media_type=media_type, headers=headers)
        self._body, self._on_end = body, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end; see the class."""

        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(SECONDS_TO_SEND):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            logger.info("a reader has taken nothing for %g s", SECONDS_TO_SEND)
        finally:
            self._on_end()
            # Not left to the garbage collector: it holds the stream in use.
            await self._body.aclose()
