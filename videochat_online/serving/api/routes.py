"""The HTTP API: its routes, who may use them, and how it refuses.

`docs/api.md` describes each route, and `docs/openapi.json`, made by `scripts/tools/openapi_document.py`, each field.
An application of its own, to be mounted at `/v1`; knows no page and no server. Errors are JSON, `{"error": "..."}`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketClose

from videochat_online import __version__
from videochat_online.documents import Document, first_fault
from videochat_online.errors import InputError
from videochat_online.serving.api.mjpeg import StreamViews
from videochat_online.serving.api.schemas import ApiLimits, AskRequest, ErrorDocument, FrameQuery, StreamRequest
from videochat_online.serving.api.service import FRAME_FORMATS, ApiService
from videochat_online.serving.api.websocket import StreamSocket
from videochat_online.serving.streams.live_answer import ConflictError, UnknownStreamError
from videochat_online.serving.streams.pool import BusyError, StreamPool
from videochat_online.serving.streams.stream_status import AnswerDocument

RETRY_AFTER_S = 30
"""Seconds after which a client that was told to come back may try again."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorDocument, "description": "The body is no JSON object."},
    401: {"model": ErrorDocument, "description": "The password is missing or wrong."},
    403: {"model": ErrorDocument, "description": "A page of another origin asks."},
    404: {"model": ErrorDocument, "description": "There is no such stream, or no frame yet."},
    409: {"model": ErrorDocument, "description": "An answer is still being given, or the stream has failed."},
    413: {"model": ErrorDocument, "description": "Too many bytes."},
    422: {"model": ErrorDocument, "description": "A field is unknown, of another type or out of its range."},
    503: {"model": ErrorDocument, "description": "All places are taken: try again after Retry-After seconds."},
}
_SCHEMAS = "#/components/schemas/{model}"
BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE_TYPES = [f"image/{kind.lower()}" for kind in FRAME_FORMATS]

_READ = re.compile(r"/health|/docs(-files/[\w.-]+)?|/openapi\.json|/streams/[^/]+/(view|frame\.jpg)")
OPEN_PATHS = {"GET": _READ, "HEAD": _READ, "POST": re.compile(r"/streams/[^/]+/frames")}
"""Paths that need no password, by method: a page's `<img>` and its camera have none to send, and the id of a stream,
given to whoever has opened it, is as hard to guess."""


def make_api(pool: StreamPool, *, password: str | None = None, limits: ApiLimits | None = None) -> FastAPI:
    """An application with the routes, which another one mounts at `/v1`.

    Args:
        pool: streams to serve; whoever made it closes it, which ends all views, answers and sockets.
        password: password that clients have to name; None lets everybody in who reaches the server.
        limits: limits of what one client may ask for.

    Raises:
        InputError: an empty password.
    """
    check_password(password)
    app = FastAPIOffline(
        title="VideoChat-Online",
        summary="Streams over HTTP: open one, send frames, ask, close it.",
        version=__version__,
        servers=[{"url": "/v1"}],
        root_path_in_servers=False,
        redirect_slashes=False,
        redoc_url=None,
        static_url="/docs-files",
        responses=REFUSALS,
        middleware=[Middleware(AuthMiddleware, password=password)],
        exception_handlers={
            InputError: _refused,
            RequestValidationError: _bad_query,
            HTTPException: _no_route,
            Exception: _failed,
        },
    )

    _add_routes(app, ApiService(pool, limits or ApiLimits()))
    app.openapi = _with_requests(app)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, service: ApiService) -> None:
    views = StreamViews(service)

    async def talk(socket: WebSocket) -> None:
        await StreamSocket(service, socket).run()

    def add(method: str, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        summary = str(endpoint.__doc__).partition("\n")[0].rstrip(".")
        app.add_api_route(path, endpoint, methods=[method], summary=summary, **options)

    def get(path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        add("GET", path, endpoint, **options)
        add("HEAD", path, endpoint, include_in_schema=False, **options)

    def post(path: str, endpoint: Callable[..., Any], content: dict[str, Any], **options: Any) -> None:
        add("POST", path, endpoint, openapi_extra={"requestBody": content}, **options)

    def delete(path: str, endpoint: Callable[..., Any]) -> None:
        add("DELETE", path, endpoint, status_code=204, response_class=Response, **asked)

    # Said in the document alone: the middleware asks for it.
    asked: dict[str, Any] = {"dependencies": [Depends(HTTPBearer(auto_error=False, description="The password."))]}
    one = "/streams/{id}"
    get("/health", service.health)
    post("/streams", service.open, _body(StreamRequest, is_needed=False), status_code=201, **asked)
    get(one, service.describe, **asked)
    delete(one, service.close)
    post(f"{one}/frames", service.push, {"content": dict.fromkeys(IMAGE_TYPES, BINARY), "required": True})
    events = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
    post(f"{one}/ask", service.ask, _body(AskRequest), response_model=AnswerDocument, responses=events, **asked)
    delete(f"{one}/answer", service.stop_answer)
    delete(f"{one}/dialogue", service.forget_dialogue)
    pictures = {200: {"content": {"multipart/x-mixed-replace": BINARY}}}
    get(f"{one}/view", views.view, response_class=Response, responses=pictures)
    get(f"{one}/frame.jpg", views.newest, response_class=Response, responses={200: {"content": {"image/jpeg": BINARY}}})
    app.add_api_websocket_route(f"{one}/ws", talk)


def _body(kind: type[Document], *, is_needed: bool = True) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _SCHEMAS.format(model=kind.__name__)}}}
    return {"content": content, "required": is_needed}


def _with_requests(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The application's OpenAPI document with what requests hold: FastAPI has not read them, and knows responses."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        for kind in (StreamRequest, AskRequest):
            schema = kind.model_json_schema(ref_template=_SCHEMAS)
            document["components"]["schemas"] |= {**schema.pop("$defs", {}), kind.__name__: schema}
        return document

    return openapi


def check_password(password: str | None) -> None:
    """Raise an `InputError` for an empty password, which looks like one and protects nothing; None is none."""
    if password is not None and not password.strip():
        raise InputError("password: expected one, got an empty one")


class AuthMiddleware:
    """Middleware that lets through what may use the API.

    Args:
        app: the API.
        password: password that `Authorization: Bearer` has to name; None for none.
    """

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        self._app = app
        self._password = None if password is None else password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on to the API."""
        refusal = self._refuse(scope) if scope["type"] in ("http", "websocket") else None
        await (refusal or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        is_reading = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if not is_reading and not is_same_origin(headers):
            return Refusal(403, "a page of another origin may not use this server")
        open_paths = OPEN_PATHS.get(scope["method"]) if scope["type"] == "http" else None
        if open_paths is not None and open_paths.fullmatch(get_route_path(scope)):
            return None
        if self._password is not None and not self.is_password(headers.get("authorization", "")):
            message = "expected the header 'Authorization: Bearer PASSWORD' with the server's password"
            return Refusal(401, message, {"WWW-Authenticate": "Bearer"})
        return None

    def is_password(self, authorization: str) -> bool:
        """Whether the value of that header holds the password."""
        scheme, _, given = authorization.partition(" ")
        assert self._password is not None
        # Headers are read as latin-1: back to the bytes that came.
        is_same = hmac.compare_digest(given.strip().encode("latin-1"), self._password.strip())
        return is_same and scheme.lower() == "bearer"


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of this server, or from no page at all.

    Browsers send `Origin` with every request that may change something and with every WebSocket; programs do not.
    The scheme is not compared: behind a proxy that speaks https the server itself sees http.
    """
    origins = headers.getlist("origin")
    if not origins:
        return True
    host = headers.get("host", "").lower()
    try:
        return bool(host) and len(origins) == 1 and urlsplit(origins[0]).netloc.lower() == host
    except ValueError:  # "https://[": a page cannot have such an address, whoever sends it is no page of ours
        return False


class Refusal(JSONResponse):
    """The response to a request that is refused, or to a WebSocket that was not accepted yet."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__({"error": " ".join(message.split())}, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a server that knows no responses to WebSockets only closes them."""
        if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
            await WebSocketClose()(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, BusyError):
        return Refusal(503, str(error), {"Retry-After": str(RETRY_AFTER_S)})
    status = 404 if isinstance(error, UnknownStreamError) else 409 if isinstance(error, ConflictError) else 422
    return Refusal(getattr(error, "status", status), str(error))


async def _bad_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults: list[Any] = [{**fault, "loc": fault["loc"][1:]} for fault in error.errors()]
    return Refusal(422, first_fault(faults, dict(request.query_params), kind=FrameQuery))


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Refusal(error.status_code, error.detail, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    return Refusal(500, f"the server has failed: {type(error).__name__}")
