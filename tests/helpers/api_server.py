"""The HTTP API behind a real server in a thread, for tests."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.sync.client import connect

from videochat_online.serving.api.routes import make_api
from videochat_online.serving.sources.player import Clock
from videochat_online.serving.streams.pool import StreamPool

WAIT_S = 60.0
"""Longer than anything here takes: a hang fails instead of stopping the tests."""


class ThreadedServer(uvicorn.Server):
    """Closes the pool before it waits for its connections: views and answers end, and it can."""

    def __init__(self, pool: StreamPool, **options: Any) -> None:
        app = Starlette(routes=[Mount("/v1", make_api(pool, **options))])
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=20)
        super().__init__(config)
        self.pool, self.has_started = pool, threading.Event()
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.run, args=([self.socket],), daemon=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self.pool.close_all)
        await super().shutdown(sockets)

    def stop(self) -> None:
        self.should_exit = True
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the server did not end"


@contextmanager
def serving(pool: StreamPool, **options: Any) -> Iterator[ThreadedServer]:
    """A server of the pool's API on a free port; `options` as `make_api` takes them. Closes the pool."""
    server = ThreadedServer(pool, **options)
    server.thread.start()
    assert server.has_started.wait(WAIT_S)
    try:
        yield server
    finally:
        server.stop()


class SimulatedClock(Clock):
    """One that jumps to the end of every wait: an hour of video passes as fast as it can be processed."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now(self) -> float:
        return self._now_s

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Let the time pass at once; what waits for a notification alone really waits."""
        if seconds is None:
            condition.wait()
        else:
            self._now_s += max(seconds, 1e-6)  # never nothing: what is due would wait for ever


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wait_for(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def problem(response, status):
    """The message of a refusal, which is one line of JSON."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (message,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert message
    assert "\n" not in message
    return message


def events_of(response):
    """(event, data) of a stream of events, as they come."""
    kind = None
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def socket_of(server, name, **options):
    """A WebSocket to the stream of that id."""
    return connect(f"ws://127.0.0.1:{server.port}/v1/streams/{name}/ws", max_size=None, **options)


def heard(socket, kind):
    """Messages until the first of a kind, which is the last."""
    messages = []
    while not messages or messages[-1]["type"] != kind:
        messages.append(json.loads(socket.recv(timeout=WAIT_S)))
    return messages


def framed(pixels, time_s=float("nan")):
    return struct.pack("<d", time_s) + png(pixels)


def until_five_frames(original, session, prepared):
    """An answer that goes on until five frames were taken in; turn by turn it says nothing meanwhile."""
    pieces, end = original(session, prepared), time.monotonic() + WAIT_S
    yield next(pieces)
    while session.num_frames < 5:
        assert time.monotonic() < end, "frames do not come in"
        time.sleep(0.002)
        yield ""
    yield from pieces


def endless(original, session, prepared):
    """An answer that only ends when it is stopped."""
    pieces = original(session, prepared)
    try:
        yield next(pieces)
        while True:
            time.sleep(0.002)
            yield ""
    finally:
        pieces.close()
