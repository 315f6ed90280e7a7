"""The HTTP API: streams are opened, fed, asked and closed by programs. `docs/api.md` describes each route.

An application of its own, to be mounted at `/v1`; knows no page and no server. Errors are JSON, `{"error": "..."}`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from importlib.metadata import version
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from videochat_online import __version__
from videochat_online.errors import InputError, shown
from videochat_online.memory.settings import settings_of
from videochat_online.serving.api.answer_routes import respond_in_pieces, respond_whole
from videochat_online.serving.api.auth import AuthMiddleware, check_password, refusal
from videochat_online.serving.api.mjpeg import BOUNDARY, MJPEG, LiveResponse, PictureFeed, mjpeg_part
from videochat_online.serving.api.schemas import (
    ApiLimits,
    RequestError,
    answer_document,
    check_fields,
    memory_document,
    options_document,
    options_of,
    parse_json,
    question_of,
    status_document,
)
from videochat_online.serving.api.service import ApiAccess, too_large
from videochat_online.serving.api.websocket import StreamSocket
from videochat_online.serving.streams.pool import BusyError, StreamPool, UnknownStreamError, Watching

MAX_JSON_BYTES = 64 * 2**10

RETRY_AFTER_S = 30
"""After which a client that found no place may try again."""

SECONDS_TO_FIRST_PICTURE = 2.0
"""For which `frame.jpg` waits for a stream that has just begun."""


def make_api(pool: StreamPool, *, password: str | None = None, limits: ApiLimits | None = None) -> Starlette:
    """An application with the routes, which another one mounts at `/v1`.

    Args:
        pool: of streams; whoever made it closes it, which ends all views, answers and sockets.
        password: that clients have to name; None lets everybody in who reaches the server.
        limits: what one client may ask for.

    Raises:
        InputError: an empty password.
    """
    check_password(password)
    routes = ApiRoutes(ApiAccess(pool, limits or ApiLimits()))
    one = "/streams/{id}"
    app = Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/streams", routes.open, methods=["POST"]),
            Route(one, routes.describe),
            Route(one, routes.close, methods=["DELETE"]),
            Route(f"{one}/frames", routes.push, methods=["POST"]),
            Route(f"{one}/ask", routes.ask, methods=["POST"]),
            Route(f"{one}/answer", routes.stop_answer, methods=["DELETE"]),
            Route(f"{one}/dialogue", routes.forget_dialogue, methods=["DELETE"]),
            Route(f"{one}/view", routes.view),
            Route(f"{one}/frame.jpg", routes.newest),
            WebSocketRoute(f"{one}/ws", routes.talk),
        ],
        middleware=[Middleware(AuthMiddleware, password=password)],
        exception_handlers={InputError: _refused, HTTPException: _no_route, Exception: _failed},
    )
    app.router.redirect_slashes = False
    return app


class ApiRoutes:
    """The routes, one method each."""

    def __init__(self, access: ApiAccess) -> None:
        self._access = access

    async def health(self, request: Request) -> Response:
        """What runs here, and whether there is a place."""
        pool = self._access.pool
        num_taken = await self._access.call(len, pool)
        size = pool.model.config.image_size
        return JSONResponse(
            {
                "versions": {"videochat_online": __version__, "torch": version("torch")},
                "places": {"free": max(pool.max_streams - num_taken, 0), "total": pool.max_streams},
                "frame_size": {"width": size, "height": size},
                "memories": {name: list(settings_of(name)) for name in self._access.limits.memories},
            }
        )

    async def open(self, request: Request) -> Response:
        """A new stream."""
        document = parse_json(await _read(request, MAX_JSON_BYTES, "request"))
        options = options_of(document, self._access.limits)
        watching = await self._access.call(self._access.pool.open, options)
        self._access.port(watching)  # its clock begins now
        return JSONResponse({"id": watching.id, "options": options_document(options)}, 201)

    async def describe(self, request: Request) -> Response:
        """A stream: its options, how it is doing, what it remembers, what was asked."""
        watching = await self._find(request)
        return JSONResponse(await self._access.call(_describe, watching))

    async def close(self, request: Request) -> Response:
        """End a stream."""
        watching = await self._find(request)
        await self._access.call(self._access.pool.close, watching.id)
        return Response(status_code=204)

    async def push(self, request: Request) -> Response:
        """A frame."""
        watching = await self._find(request)
        check_fields(request.query_params, ("time_s",))
        time_s = _seconds(request.query_params.get("time_s"))
        data = await _read(request, self._access.limits.max_frame_bytes, "frame")
        return JSONResponse(await self._access.push(watching, data, time_s))

    async def ask(self, request: Request) -> Response:
        """A question, answered whole or piece by piece."""
        watching = await self._find(request)
        document = parse_json(await _read(request, MAX_JSON_BYTES, "request"))
        check_fields(document, ("question", "stream"))
        question, in_pieces = question_of(document), document.get("stream", False)
        if not isinstance(in_pieces, bool):
            raise RequestError(f"stream: expected true or false, found {shown(in_pieces)}")
        answer = await self._access.call(self._access.ask, watching, question)
        if in_pieces:
            return respond_in_pieces(self._access, watching.id, answer)
        return await respond_whole(self._access, watching.id, request, answer)

    async def stop_answer(self, request: Request) -> Response:
        """End the answer that is being given, if there is one."""
        watching = await self._find(request)
        await self._access.call(watching.stream.stop_answer)
        return Response(status_code=204)

    async def forget_dialogue(self, request: Request) -> Response:
        """Forget what was asked, but not what was seen."""
        watching = await self._find(request)
        await self._access.call(self._access.forget_dialogue, watching)
        return Response(status_code=204)

    async def view(self, request: Request) -> Response:
        """The frame being shown, again and again."""
        watching = await self._find(request)
        if request.method == "HEAD":
            return Response(media_type=MJPEG)
        feed = self._join(watching)
        return LiveResponse(self._pictures(watching.id, feed), MJPEG, on_end=feed.leave)

    async def newest(self, request: Request) -> Response:
        """The frame being shown, once."""
        watching = await self._find(request)
        feed, newest = self._join(watching), None
        try:
            with anyio.move_on_after(SECONDS_TO_FIRST_PICTURE):
                newest = await feed.newer_than(0)
        finally:
            feed.leave()
        if newest is None:
            raise RequestError("the stream has no frame yet", 404)
        return Response(newest[1], media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def talk(self, socket: WebSocket) -> None:
        """Frames in, answers out, over one WebSocket."""
        await StreamSocket(self._access, socket).run()

    async def _find(self, request: Request) -> Watching:
        return await self._access.find(request.path_params["id"])

    def _join(self, watching: Watching) -> PictureFeed:
        feed = self._access.port(watching).feed
        if feed.num_viewers >= self._access.limits.max_views:
            raise BusyError(f"the stream has {feed.num_viewers} viewers: try again later")
        feed.join(watching.stream)
        return feed

    async def _pictures(self, name: str, feed: PictureFeed) -> AsyncGenerator[bytes, None]:
        number = 0
        async with self._access.in_use(name):
            yield f"--{BOUNDARY}\r\n".encode()
            while (newest := await feed.newer_than(number)) is not None:
                number, jpeg = newest
                yield mjpeg_part(jpeg)


def _describe(watching: Watching) -> dict[str, Any]:
    stream = watching.stream
    return {
        "id": watching.id,
        "options": options_document(stream.options),
        "status": status_document(stream),
        "memory": memory_document(stream),
        "answers": [answer_document(answer) for answer in stream.answers],
    }


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError as error:
        raise RequestError(f"time_s: expected seconds, found {shown(value)}") from error


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


def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, BusyError):
        return refusal(503, str(error), {"Retry-After": str(RETRY_AFTER_S)})
    status = 404 if isinstance(error, UnknownStreamError) else getattr(error, "status", 422)
    return refusal(status, str(error))


def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail, dict(error.headers or {}))


def _failed(_: Request, error: Exception) -> Response:
    return refusal(500, f"the server has failed: {type(error).__name__}")
