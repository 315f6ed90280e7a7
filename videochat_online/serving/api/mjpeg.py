"""The frame being shown, sent to many viewers: encoded once for all of them, by one thread of the stream.

All but that thread's loop runs in the server's event loop, so that viewers cost no threads and need no locks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from weakref import WeakKeyDictionary

import anyio
from starlette.requests import Request
from starlette.responses import Response

from videochat_online.serving.api.schemas import RequestError
from videochat_online.serving.api.service import ApiService, LiveResponse, StreamId, call_in_loop
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.serving.streams.pool import BusyError, PoolEntry

logger = logging.getLogger(__name__)

BOUNDARY = "frame"
MJPEG = f"multipart/x-mixed-replace; boundary={BOUNDARY}"

SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds after which a picture is sent again if there is no newer one, and that a thread outlives its last viewer."""

SECONDS_TO_FIRST_PICTURE = 2.0
"""Seconds for which `frame.jpg` waits for a stream that has just begun."""


class StreamViews:
    """The routes that show what a stream shows."""

    def __init__(self, service: ApiService) -> None:
        self._service = service
        self._feeds: WeakKeyDictionary[LiveStream, PictureFeed] = WeakKeyDictionary()

    async def view(self, request: Request, name: StreamId) -> Response:
        """The frame being shown, again and again."""
        entry = await self._service.find(name)
        if request.method == "HEAD":
            return Response(media_type=MJPEG)
        feed = self._join(entry)
        return LiveResponse(self._pictures(entry.id, feed), MJPEG, on_end=feed.leave)

    async def newest(self, name: StreamId) -> Response:
        """The frame being shown, once."""
        entry = await self._service.find(name)
        feed, newest = self._join(entry), None
        try:
            with anyio.move_on_after(SECONDS_TO_FIRST_PICTURE):
                newest = await feed.newer_than(0)
        finally:
            feed.leave()
        if newest is None:
            raise RequestError("the stream has no frame yet", 404)
        return Response(newest[1], media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    def _join(self, entry: PoolEntry) -> PictureFeed:
        feed = self._feeds.setdefault(entry.stream, PictureFeed())
        if feed.num_viewers >= self._service.limits.max_views:
            raise BusyError(f"the stream has {feed.num_viewers} viewers: try again later")
        feed.join(entry.stream)
        return feed

    async def _pictures(self, name: str, feed: PictureFeed) -> AsyncGenerator[bytes, None]:
        number = 0
        async with self._service.in_use(name):
            yield f"--{BOUNDARY}\r\n".encode()
            while (newest := await feed.newer_than(number)) is not None:
                number, jpeg = newest
                yield mjpeg_part(jpeg)


class PictureFeed:
    """Pictures of one stream for any number of viewers; one that is slow gets fewer.

    Attributes:
        num_viewers: viewers that have joined and not left.
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


def mjpeg_part(jpeg: bytes) -> bytes:
    """One picture, with the boundary that follows: a browser shows a picture only when it has seen that."""
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return head.encode() + jpeg + f"\r\n--{BOUNDARY}\r\n".encode()
