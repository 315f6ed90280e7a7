"""What the HTTP API does: a method for each route, and what WebSocket and views share with them.

Everything that may block runs in a few threads of the API's own. What lasts (a view, an answer) never holds one of
them: it waits in the event loop for what a thread of the stream tells it.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
from fastapi import Path, Query
from PIL import Image
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from videochat_online import __version__
from videochat_online.documents import TimeS, validated
from videochat_online.memory.labels import settings_of
from videochat_online.serving.api.schemas import (
    ApiLimits,
    AskRequest,
    FrameQuery,
    FrameSize,
    Health,
    OpenedStream,
    Places,
    RequestError,
    StreamDescription,
    TakenFrame,
    Versions,
    answer_document,
    options_of,
    parse_json,
)
from videochat_online.serving.streams.live_answer import LiveAnswer, UnknownStreamError
from videochat_online.serving.streams.pool import PoolEntry, StreamPool
from videochat_online.serving.streams.stream_status import AnswerDocument
from videochat_online.video.still_images import decode_image

logger = logging.getLogger(__name__)

NUM_THREADS = 16
"""Calls that run at once; none of them waits for a model, but for closing a stream."""

NUM_DECODERS = 4
"""Frames that are decoded at once: each may take some 50 MB for a moment."""

MAX_TOUCH_S = 5.0
"""Seconds between two signs of life of a stream that is being read, at most."""

MAX_JSON_BYTES = 64 * 2**10

SECONDS_TO_SEND = 30.0
"""A reader that has taken nothing for so long is no reader."""

FRAME_FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats of frames, as PIL calls them: few decoders, so that few can have holes."""

MAX_KEPT_PX = 1920
"""Longest side of a frame that is kept as it came: no model sees more, and frames wait in memory."""

StreamId = Annotated[str, Path(alias="id", description="id of the stream, as it was opened")]
_Result = TypeVar("_Result")


class ApiService:
    """The streams of a pool as clients use them; see the module's docstring.

    Args:
        pool: streams to serve.
        limits: limits of what one client may ask for.
    """

    def __init__(self, pool: StreamPool, limits: ApiLimits) -> None:
        self.pool, self.limits = pool, limits
        self._threads, self._decoders = anyio.CapacityLimiter(NUM_THREADS), anyio.CapacityLimiter(NUM_DECODERS)

    async def health(self) -> Health:
        """What runs here, and whether a stream may be opened."""
        pool = self.pool
        num_taken = await self.call(len, pool)
        height, width = pool.model.frames.shape
        return Health(
            versions=Versions(videochat_online=__version__, torch=version("torch")),
            places=Places(free=max(pool.max_streams - num_taken, 0), total=pool.max_streams),
            frame_size=FrameSize(width=width, height=height),
            memories={name: list(settings_of(name)) for name in self.limits.memories},
        )

    async def open(self, request: Request) -> OpenedStream:
        """A new stream."""
        options = options_of(await _read_json(request), self.limits)
        entry = await self.call(self.pool.open, options)
        return OpenedStream(id=entry.id, options=options)

    async def describe(self, name: StreamId) -> StreamDescription:
        """A stream: its options, how it is doing, what it remembers, what was asked."""
        entry = await self.find(name)
        return await self.call(_describe, entry)

    async def close(self, name: StreamId) -> None:
        """End a stream."""
        entry = await self.find(name)
        await self.call(self.pool.close, entry.id)

    async def push(self, request: Request, name: StreamId, query: Annotated[FrameQuery, Query()]) -> TakenFrame:
        """A frame: a JPEG, PNG or WebP image."""
        entry = await self.find(name)
        data = await _read(request, self.limits.max_frame_bytes, "frame")
        return await self.push_frame(entry, data, query.time_s)

    async def ask(self, request: Request, name: StreamId) -> AnswerDocument | Response:
        """A question, answered whole or piece by piece."""
        entry = await self.find(name)
        asked = validated(AskRequest, await _read_json(request))
        answer = await self.call(entry.stream.ask, asked.question)
        if asked.stream:
            return LiveResponse(self._answer_events(entry.id, answer), "text/event-stream", on_end=answer.stop)
        await self._wait_for_answer(entry.id, answer, request)
        return answer_document(answer)

    async def stop_answer(self, name: StreamId) -> None:
        """End the answer that is being given, if there is one."""
        entry = await self.find(name)
        await self.call(entry.stream.stop_answer)

    async def forget_dialogue(self, name: StreamId) -> None:
        """Forget what was asked, but not what was seen."""
        entry = await self.find(name)
        await self.call(entry.stream.forget_dialogue)

    async def call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Run what may block in a thread."""
        return await anyio.to_thread.run_sync(partial(function, *arguments), limiter=self._threads)

    async def find(self, name: str) -> PoolEntry:
        """As `StreamPool.find`."""
        return await self.call(self.pool.find, name)

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

    async def push_frame(self, entry: PoolEntry, data: bytes, time_s: float | None) -> TakenFrame:
        """Decode a frame and put it in.

        Args:
            entry: the stream.
            data: an encoded image.
            time_s: stream time; None for now, in seconds since the stream was opened.

        Returns:
            What a client is told about the frame.

        Raises:
            InputError: a bad frame or time, or the stream takes nothing any more.
        """
        if time_s is not None:
            validated(TimeS, time_s, "time_s")
        if len(data) > self.limits.max_frame_bytes:
            raise too_large(self.limits.max_frame_bytes, "frame")
        decode = partial(decode_frame, data, self.limits.max_frame_pixels)
        pixels_HWC = await anyio.to_thread.run_sync(decode, limiter=self._decoders)
        return await self.call(_receive, entry, pixels_HWC, time_s)

    async def _wait_for_answer(self, name: str, answer: LiveAnswer, request: Request) -> None:
        """Wait until an answer is over; it is stopped when nobody listens any more."""

        async def stop_when_gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            answer.stop()

        try:
            async with self.in_use(name), anyio.create_task_group() as group, aclosing(pieces_of(answer)) as pieces:
                group.start_soon(stop_when_gone)
                async for _ in pieces:
                    pass
                group.cancel_scope.cancel()
        finally:
            answer.stop()

    async def _answer_events(self, name: str, answer: LiveAnswer) -> AsyncGenerator[bytes, None]:
        """Server-sent events: `piece` for each piece of text, then `answer` with all of it."""
        async with self.in_use(name), aclosing(pieces_of(answer)) as pieces:
            async for piece in pieces:
                yield _event("piece", {"text": piece})
            yield _event("answer", asdict(answer_document(answer)))


class LiveResponse(StreamingResponse):
    """A response that goes on until there is nothing more to say, or nobody who listens.

    Args:
        body: parts that are sent.
        media_type: type of the body.
        on_end: function that is called when it is over, in any case.
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


async def pieces_of(answer: LiveAnswer) -> AsyncGenerator[str, None]:
    """Text as it comes, until the answer is over; a thread of its own waits for it."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def relay() -> None:
        for piece in answer.pieces():
            call_in_loop(loop, queue.put_nowait, piece)
        call_in_loop(loop, queue.put_nowait, None)

    threading.Thread(target=relay, name="reader", daemon=True).start()
    while (piece := await queue.get()) is not None:
        yield piece


def call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> bool:
    """Call a function in an event loop; False if the loop is closed, as its server is."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)
        return True
    return False


def _event(kind: str, document: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(document)}\n\n".encode()


def decode_frame(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    """A frame that a client has sent, uint8 [H, W, 3], upright; made smaller where a side exceeds `MAX_KEPT_PX`.

    Raises:
        InputError: data of none of `FRAME_FORMATS`, a broken image, or one of more than `max_pixels` pixels.
    """
    image = decode_image(io.BytesIO(data), "the frame", formats=FRAME_FORMATS, max_pixels=max_pixels)
    image.thumbnail((MAX_KEPT_PX, MAX_KEPT_PX), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def _receive(entry: PoolEntry, pixels_HWC: npt.NDArray[np.uint8], time_s: float | None) -> TakenFrame:
    stream = entry.stream
    with entry.lock:
        at_s = time.monotonic() - entry.opened_s if time_s is None else time_s
        is_accepted = stream.receive(pixels_HWC, at_s)
    status = stream.status()
    return TakenFrame(
        accepted=is_accepted,
        time_s=at_s,
        num_frames_waiting=status.num_frames_waiting,
        num_frames_dropped=status.num_frames_dropped,
    )


def _describe(entry: PoolEntry) -> StreamDescription:
    stream = entry.stream
    return StreamDescription(
        id=entry.id,
        options=stream.options,
        status=stream.status(),
        memory=stream.memory(),
        answers=[answer_document(answer) for answer in stream.answers],
    )


async def _read_json(request: Request) -> dict[str, Any]:
    return parse_json(await _read(request, MAX_JSON_BYTES, "request"))


async def _read(request: Request, max_bytes: int, what: str) -> bytes:
    """The body; one that is too long is read a little further, as many clients listen only when they have sent."""
    body, num_bytes = bytearray(), 0
    try:
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes <= max_bytes:
                body += chunk
            elif num_bytes > 4 * max_bytes:
                break
    except ClientDisconnect as error:
        raise RequestError("the client has gone before the end of its request", 400) from error
    if num_bytes > max_bytes:
        raise too_large(max_bytes, what)
    return bytes(body)


def too_large(max_bytes: int, what: str) -> RequestError:
    """The refusal of something that has too many bytes."""
    return RequestError(f"expected a {what} of at most {max_bytes:,} bytes, got more", 413)
