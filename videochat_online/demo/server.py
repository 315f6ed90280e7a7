"""One web server: the page, its routes, the API; in the foreground or in a thread; stopped cleanly."""

from __future__ import annotations

import hmac
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from videochat_online.demo.page import HEAD, make_page, theme
from videochat_online.demo.page_routes import make_page_routes
from videochat_online.demo.tabs import DemoOptions, Viewers, memories_of
from videochat_online.errors import InputError
from videochat_online.model import VideoChatModel
from videochat_online.serving.api.routes import AuthMiddleware, check_password, make_api
from videochat_online.serving.api.schemas import ApiLimits
from videochat_online.serving.streams.pool import StreamPool

logger = logging.getLogger(__name__)

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
SECONDS_TO_START, SECONDS_TO_STOP = 60.0, 5


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, and to whom.

    Attributes:
        host: name or address to listen at; others than this machine are served only if it says so.
        port: 0 takes a free one.
        password: password that page and API ask for; None asks nobody.
        allowed_hosts: names that the server goes by, besides its own; a page of another site that has its name point
            to this machine is refused by them.
        max_streams: viewers at once.
        idle_s: seconds after which a stream that nobody uses is closed.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None
    allowed_hosts: Sequence[str] = ()
    max_streams: int = 8
    idle_s: float = 120.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise InputError(f"port: expected 0 to 65535, got {self.port}")
        check_password(self.password)


class DemoServer:
    """The demo of one model. Use as a context manager to run it in a thread, or call `run`.

    Args:
        model: model that all viewers share.
        demo: options of the page: what viewers may open, and how it is watched.
        server: options of the server: where it listens, and to whom.
    """

    def __init__(
        self, model: VideoChatModel, demo: DemoOptions | None = None, server: ServerOptions | None = None
    ) -> None:
        options = server or ServerOptions()
        self._socket = _listen(options.host, options.port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{'localhost' if options.host in LOCAL_HOSTS else options.host}:{self.port}/"
        self.pool = StreamPool(model, max_streams=options.max_streams, idle_s=options.idle_s)
        try:
            app = make_app(self.pool, demo or DemoOptions(), options)
        except BaseException:
            self.pool.close_all()
            self._socket.close()
            raise
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=SECONDS_TO_STOP,
            ws_max_size=ApiLimits.max_frame_bytes + 1024,
            ws_per_message_deflate=False,
        )
        self._server = _Server(config, self.pool)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        self._server.run([self._socket])

    def start(self) -> None:
        """Serve in a thread; returns when requests are answered."""
        self._thread = threading.Thread(target=self.run, name="server", daemon=True)
        self._thread.start()
        if not self._server.is_up.wait(SECONDS_TO_START):
            raise RuntimeError(f"the server did not start within {SECONDS_TO_START:g} s")

    def stop(self) -> None:
        """Close all streams and the server."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(SECONDS_TO_START)

    def __enter__(self) -> DemoServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def make_app(pool: StreamPool, demo: DemoOptions, server: ServerOptions) -> FastAPI:
    """Page, page routes and API in one application."""
    # Gradio reads these when it is used, not when it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ["GRADIO_TEMP_DIR"] = str(pool.make_folder())
    app = FastAPI(title="VideoChat-Online", openapi_url=None)
    if server.host in LOCAL_HOSTS:
        hosts = [*LOCAL_HOSTS, *server.allowed_hosts]
    else:
        hosts = [server.host, *server.allowed_hosts] if server.allowed_hosts else ["*"]
    # Gradio answers pages of any origin, with their visitors' cookies: only the API would ask for the origin itself.
    app.add_middleware(AuthMiddleware, password=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    own = demo.defaults
    limits = ApiLimits(memories=memories_of(own), strategy=own.strategy, strategy_options=own.strategy_options)
    app.mount("/v1", make_api(pool, password=server.password, limits=limits))
    app.include_router(make_page_routes(pool))
    page = make_page(Viewers(pool, demo))
    page.queue(default_concurrency_limit=None)
    password = server.password
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=None if password is None else lambda user, given: hmac.compare_digest(given.encode(), password.encode()),
        auth_message="Any name, and the password that this server was started with.",
        max_file_size=demo.limits.max_bytes,
        blocked_paths=[os.getcwd()],
        footer_links=[],
        ssr_mode=False,
        show_error=False,
        head=HEAD,
        theme=theme(),
        enable_monitoring=False,
    )


class _Server(uvicorn.Server):
    """One that ends the streams first: pictures that never end would keep their connections."""

    def __init__(self, config: uvicorn.Config, pool: StreamPool) -> None:
        super().__init__(config)
        self.is_up = threading.Event()
        self._pool = pool

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM are how a demo ends: nothing is wrong then, and uvicorn would raise them again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await run_in_threadpool(self._pool.close_all)
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Listening: whoever comes before the page is ready waits, rather than being refused.
        return socket.create_server(address, family=family, dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        raise InputError(
            f"{host}:{port}: expected an address to listen at, found: {error.strerror or error}"
        ) from error
