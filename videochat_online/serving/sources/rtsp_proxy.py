"""Stands between FFmpeg and an RTSP server: FFmpeg goes wherever the server sends it, the proxy goes nowhere else.

FFmpeg 7 and 8.0 follow a server's redirect to any host and port, whatever protocols are allowed. So FFmpeg is given an
address of this machine, and what the server says reaches it only as replies without an address, written anew from
the few headers that playing needs.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from videochat_online.errors import InputError
from videochat_online.serving.sources.addresses import ResolvedUrl

PASSED_HEADERS = frozenset(
    {"cseq", "session", "transport", "public", "range", "rtp-info", "content-base", "content-type"}
)

MAX_LINE, MAX_LINES, MAX_BODY = 4096, 64, 256 * 1024


class RtspProxy:
    """One connection of FFmpeg's, passed on to the address that was checked.

    Args:
        url: checked address, of scheme rtsp.
        timeout_s: seconds that connecting may take.

    Attributes:
        url: address that FFmpeg is to open.
        problem: reason why the proxy has ended the connection; None if it has not.

    Raises:
        InputError: no connection.
    """

    def __init__(self, url: ResolvedUrl, *, timeout_s: float) -> None:
        try:
            self._server = socket.create_connection((url.address, url.port), timeout_s)
        except OSError as error:
            raise InputError(f"{url.host}: no answer ({error.strerror or error})") from error
        self._server.settimeout(None)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        here = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._here, self._there = here.encode(), f"rtsp://{url.netloc}".encode()
        self.url = here + url.target
        self.problem: str | None = None
        self._player: socket.socket | None = None
        threading.Thread(target=self._run, name="relay", daemon=True).start()

    def close(self) -> None:
        """Close the connections to both sides."""
        for side in (self._listener, self._server, self._player):
            if side is not None:
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()

    def _run(self) -> None:
        try:
            self._player, _ = self._listener.accept()
            self._listener.close()  # a second connection finds nobody
            threading.Thread(target=self._pass_requests, name="relay", daemon=True).start()
            with self._server.makefile("rb") as source:
                for message in _replies(source):
                    self._player.sendall(message)
        except InputError as error:
            self.problem = str(error)
        except OSError:
            pass  # the other side has hung up
        finally:
            self.close()

    def _pass_requests(self) -> None:
        assert self._player is not None
        with suppress(OSError, InputError), self._player.makefile("rb") as source:
            for packet, lines in _messages(source):
                if packet:
                    self._server.sendall(packet)
                else:
                    first = lines[0].replace(self._here, self._there)
                    self._server.sendall(b"\r\n".join([first, *lines[1:], b"", b""]))
        self.close()


def _messages(source: BinaryIO) -> Iterator[tuple[bytes, list[bytes]]]:
    """Packets of media, and messages as the lines of their head: the one or the other is empty."""
    while start := source.read(1):
        if start == b"$":
            head = source.read(3)
            yield start + head + source.read(int.from_bytes(head[1:], "big")), []
            continue
        lines: list[bytes] = []
        line = start + source.readline(MAX_LINE)
        while line.strip():
            if not line.endswith(b"\n") or len(lines) >= MAX_LINES:
                raise InputError("expected an RTSP server, found one that says something else")
            lines.append(line.strip())
            line = source.readline(MAX_LINE)
        if lines:
            yield b"", lines


def _replies(source: BinaryIO) -> Iterator[bytes]:
    """What may reach the player: packets, and replies with nothing in them but what playing needs."""
    for packet, lines in _messages(source):
        if packet:
            yield packet
            continue
        status = re.fullmatch(rb"RTSP/1\.\d ([1-5]\d\d)( [\x20-\x7e]*)?", lines[0])
        headers = _headers(lines[1:])
        length = headers.get("content-length", b"0")
        if not re.fullmatch(rb"\d{1,7}", length) or int(length) > MAX_BODY:
            raise InputError(f"expected an RTSP server that describes its video in {MAX_BODY} bytes, found another")
        body = source.read(int(length))
        if status is None:
            if re.fullmatch(rb"[A-Z_]+ \S+ RTSP/1\.\d", lines[0]):
                continue  # a request of the server's, such as to go elsewhere: not for the player
            raise InputError("expected an RTSP server, found one that says something else")
        if status[1].startswith(b"3"):
            raise InputError("expected a video, found a redirect to another address: open that address itself")
        if status[1] == b"401":
            raise InputError("expected a video that anybody may watch, found one behind a password")
        kept = [name.encode() + b": " + headers[name] for name in headers if name in PASSED_HEADERS]
        kept.append(b"Content-Length: %d" % len(body))
        yield b"\r\n".join([b"RTSP/1.0 " + status[1] + b" Relayed", *kept, b"", b""]) + body


def _headers(lines: list[bytes]) -> dict[str, bytes]:
    """By name in small letters, each once, printable."""
    headers: dict[str, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        if re.fullmatch(rb"[A-Za-z-]+", name) and re.fullmatch(rb"[\x20-\x7e]*", value):
            headers.setdefault(name.decode().lower(), value.strip())
    return headers
