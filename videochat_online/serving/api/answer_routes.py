"""Answers over HTTP: in one piece, or piece by piece as server-sent events.

Whoever stops listening stops the answer.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from videochat_online.serving.api.mjpeg import LiveResponse, call_in_loop
from videochat_online.serving.api.schemas import answer_document
from videochat_online.serving.api.service import ApiAccess
from videochat_online.serving.streams.live_answer import LiveAnswer


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


async def respond_whole(access: ApiAccess, name: str, request: Request, answer: LiveAnswer) -> Response:
    """The answer when it is over, as JSON."""

    async def stop_when_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        answer.stop()

    try:
        async with access.in_use(name), anyio.create_task_group() as group, aclosing(pieces_of(answer)) as pieces:
            group.start_soon(stop_when_gone)
            async for _ in pieces:
                pass
            group.cancel_scope.cancel()
    finally:
        answer.stop()
    return JSONResponse(answer_document(answer))


def respond_in_pieces(access: ApiAccess, name: str, answer: LiveAnswer) -> Response:
    """Server-sent events: `piece` for each piece of text, then `answer` with all of it."""

    async def events() -> AsyncGenerator[bytes, None]:
        async with access.in_use(name), aclosing(pieces_of(answer)) as pieces:
            async for piece in pieces:
                yield _event("piece", {"text": piece})
            yield _event("answer", answer_document(answer))

    return LiveResponse(events(), "text/event-stream", on_end=answer.stop)


def _event(kind: str, document: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(document)}\n\n".encode()
