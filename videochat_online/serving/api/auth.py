"""Who may use the HTTP API: the password, and no page of another origin."""

from __future__ import annotations

import hmac
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.routing import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from videochat_online.errors import InputError

SAFE_METHODS = ("GET", "HEAD")

_READ = re.compile(r"/health|/streams/[^/]+/(view|frame\.jpg)")
OPEN_PATHS = {"GET": _READ, "HEAD": _READ, "POST": re.compile(r"/streams/[^/]+/frames")}
"""Without a password, by method: a page's `<img>` and its camera have none to send, and the id of a stream, given to
whoever has opened it, is as hard to guess."""


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """The response to a request that is refused."""
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


async def deny(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a refusal, to a WebSocket that was not accepted yet, too."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await WebSocketClose()(scope, receive, send)
    else:
        await response(scope, receive, send)


def check_password(password: str | None) -> None:
    """Raise an `InputError` for an empty password, which looks like one and protects nothing; None is none."""
    if password is not None and not password.strip():
        raise InputError("password: expected one, got an empty one")


class AuthMiddleware:
    """Middleware that lets through what may use the API.

    Args:
        app: the API.
        password: that `Authorization: Bearer` has to name; None for none.
    """

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        self._app = app
        self._password = None if password is None else password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""
        response = self._refuse(scope) if scope["type"] in ("http", "websocket") else None
        if response is not None:
            await deny(response, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        is_reading = scope["type"] == "http" and scope["method"] in SAFE_METHODS
        if not is_reading and not is_same_origin(headers):
            return refusal(403, "a page of another origin may not use this server")
        open_paths = OPEN_PATHS.get(scope["method"]) if scope["type"] == "http" else None
        if open_paths is not None and open_paths.fullmatch(get_route_path(scope)):
            return None
        if self._password is not None and not self._is_password(headers.get("authorization", "")):
            message = "expected the header 'Authorization: Bearer PASSWORD' with the server's password"
            return refusal(401, message, {"WWW-Authenticate": "Bearer"})
        return None

    def _is_password(self, authorization: str) -> bool:
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
