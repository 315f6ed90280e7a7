"""Open a page in the browser: play a video, a camera or images, and ask while it plays.

    videochat-online demo --model DIR [--port N]

Listens to this machine only unless --host says otherwise. Programs use the same server over HTTP and WebSocket, see
docs/api.md. Ctrl-C ends it and removes all uploads.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from videochat_online.cli.options import (
    add_generation_arguments,
    add_memory_arguments,
    add_model_arguments,
    add_strategy_arguments,
    generation_of,
    load_model_of,
    memory_options_of,
)
from videochat_online.cli.parser import Parser
from videochat_online.demo.server import LOCAL_HOSTS, DemoServer, ServerOptions
from videochat_online.demo.tabs import DemoOptions
from videochat_online.errors import InputError
from videochat_online.serving.sources.named_sources import read_sources
from videochat_online.serving.sources.uploads import UploadLimits
from videochat_online.serving.streams.stream_options import StreamOptions

PASSWORD_VARIABLE = "VIDEOCHAT_ONLINE_PASSWORD"


def add_arguments(parser: Parser) -> None:
    """Arguments of the subcommand."""
    server, limits = ServerOptions(), UploadLimits()
    parser.add_argument("--host", default=server.host, metavar="NAME", help=f"to listen at (default: {server.host})")
    parser.add_argument("--port", type=int, default=server.port, metavar="N", help="0: a free one (default: 7860)")
    parser.add_argument(
        "--allowed_host", nargs="+", default=[], metavar="NAME", help="names that the server is reached by from outside"
    )
    parser.add_argument(
        "--password_file", type=Path, metavar="FILE", help=f"ask for this password (or set {PASSWORD_VARIABLE})"
    )
    parser.add_argument(
        "--max_streams", type=int, default=server.max_streams, metavar="N", help="viewers at once (default: 8)"
    )
    parser.add_argument(
        "--idle_s", type=float, default=server.idle_s, metavar="S", help="a stream left alone is closed (default: 120)"
    )
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second shown to the model (default: 1)")
    parser.add_argument("--system_message", metavar="TEXT", help="instead of the checkpoint's")
    parser.add_argument(
        "--max_upload_mb", type=int, default=limits.max_bytes >> 20, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--max_minutes", type=float, default=limits.max_duration_s / 60, metavar="N", help="of a video (default: 60)"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="viewers may watch it: an rtsp, http or https address, a video or a folder of frames; may be repeated",
    )
    parser.add_argument(
        "--sources", type=Path, metavar="FILE", help="lines NAME=ADDRESS, for addresses with a password: mode 600"
    )
    for replaced in ("--allow_urls", "--media_root"):
        parser.add_replaced(replaced, "--source NAME=ADDRESS for each of what viewers may watch")
    add_model_arguments(parser)
    add_memory_arguments(parser)
    add_strategy_arguments(parser)
    add_generation_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Load the model, serve until interrupted."""
    names = ("fps", "memory", "strategy", "strategy_options", "system_message")
    watched: dict[str, Any] = {name: getattr(options, name) for name in names}
    watched |= {"memory_options": memory_options_of(options), "generation": generation_of(options)}
    limits = UploadLimits(max_bytes=options.max_upload_mb << 20, max_duration_s=options.max_minutes * 60)
    defaults = StreamOptions(**watched)
    demo = DemoOptions(limits=limits, sources=read_sources(options.source, options.sources), defaults=defaults)
    given = {name: getattr(options, name) for name in ("host", "port", "max_streams", "idle_s")}
    server = ServerOptions(**given, password=_password(options.password_file), allowed_hosts=options.allowed_host)
    serving = DemoServer(load_model_of(options), demo, server)
    if options.host not in LOCAL_HOSTS and server.password is None:
        print("warning: everybody who reaches this machine can use the demo; see --password_file", flush=True)  # noqa: T201
    print(f"open {serving.url} in a browser; Ctrl-C ends", flush=True)  # noqa: T201
    serving.run()
    return 0


def _password(file: Path | None) -> str | None:
    if file is None:
        password = os.environ.get(PASSWORD_VARIABLE)
        return None if password is None else password.strip()
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--password_file {file}: expected a file with a password, found: {error}") from error
