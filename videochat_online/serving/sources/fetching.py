"""The body of an HTTP response as a file: from a checked address, within limits, never from elsewhere."""

from __future__ import annotations

import http.client
import re
import socket
import ssl

from videochat_online import __version__
from videochat_online.errors import InputError
from videochat_online.serving.sources.addresses import DEFAULT_PORTS, ResolvedUrl

MAX_REQUESTS = 200
"""Most requests for a file: each jump within it is another one, and where sound and picture lie far apart every frame
jumps."""

SHORT_JUMP = 256 * 1024
"""Bytes that are rather read than jumped over."""


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to the address that was checked; host header and certificate are the name's."""

    def __init__(self, url: ResolvedUrl, timeout_s: float) -> None:
        super().__init__(url.host, url.port, timeout=timeout_s)
        self.default_port = DEFAULT_PORTS[url.scheme]
        self._url, self._timeout_s = url, timeout_s

    def connect(self) -> None:
        """Connect; for https with a certificate of the name."""
        self.sock = socket.create_connection((self._url.address, self._url.port), self._timeout_s)
        if self._url.scheme == "https":
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._url.host.rstrip("."))


class HttpFile:
    """Bytes of a URL, as they are read; seekable where the server gives parts and says how many there are.

    Args:
        url: checked address of the file.
        max_bytes: bytes that may be received in all.
        timeout_s: seconds without a byte after which the server counts as lost.

    Attributes:
        problem: reason why there is less than there should be; None where nothing is known to be missing.

    Raises:
        InputError: no connection, another answer than the file, a redirect, or too many bytes; from every method.
    """

    def __init__(self, url: ResolvedUrl, *, max_bytes: int, timeout_s: float) -> None:
        self._url, self._max_bytes, self._timeout_s = url, max_bytes, timeout_s
        self.problem: str | None = None
        self._connection: _PinnedConnection | None = None
        self._size: int | None = None
        self._num_received = self._num_requests = 0
        self._wanted = self._at = 0
        self._is_seekable = False
        self._request()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if self._size is not None and self._wanted >= self._size:
            return b""
        if 0 < self._wanted - self._at <= SHORT_JUMP:
            while self._at < self._wanted and self._receive(self._wanted - self._at):
                pass
        if self._at != self._wanted:
            self._request()
        data = self._receive(size)
        self._wanted = self._at
        if not data and self._size is not None:
            # Not an error: what has come can be shown.
            self.problem = f"expected {self._size} bytes, but the server broke off after {self._at}"
        return data

    def seekable(self) -> bool:
        """Whether `seek` can be used."""
        return self._is_seekable

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go elsewhere; the next `read` asks for it."""
        base = (0, self._wanted, self._size or 0)[whence]
        self._wanted = max(0, base + offset)
        return self._wanted

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._wanted

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _receive(self, size: int) -> bytes:
        try:
            # What has arrived: `read` would wait until all of it has.
            data = self._response.read1(min(size, 2**20))
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"the connection to {self._url.host} was lost ({_reason(error)})") from error
        self._at += len(data)
        self._num_received += len(data)
        if self._num_received > self._max_bytes:
            raise InputError(f"expected at most {self._max_bytes} bytes, found more")
        return data

    def _request(self) -> None:
        """Ask for the bytes from `_wanted` on."""
        self._num_requests += 1
        if self._num_requests > MAX_REQUESTS:
            raise InputError(f"expected a file that can be read in order, found one that needs {MAX_REQUESTS} requests")
        self.close()
        headers = {
            "User-Agent": f"videochat-online/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Range": f"bytes={self._wanted}-",
            "Connection": "close",
        }
        self._connection = _PinnedConnection(self._url, self._timeout_s)
        try:
            self._connection.request("GET", self._url.target, headers=headers)
            self._response = self._connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            raise InputError(f"{self._url.host}: expected a valid certificate ({error.verify_message})") from error
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"{self._url.host}: no answer ({_reason(error)})") from error
        self._check_answer()
        self._at = self._wanted

    def _check_answer(self) -> None:
        response = self._response
        if 300 <= response.status < 400:
            raise InputError("expected a video, found a redirect to another address: open that address itself")
        if response.status not in (200, 206):
            raise InputError(f"expected a video, found HTTP status {response.status}")
        if response.getheader("Content-Encoding", "identity") != "identity":
            raise InputError("expected a video as it is, found a compressed answer")
        if response.status == 206:
            given = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", response.getheader("Content-Range", ""))
            if given is None or int(given[1]) != self._wanted:
                raise InputError("expected the part of the file that was asked for, found another")
            self._size, self._is_seekable = int(given[2]), True
        elif self._wanted:
            raise InputError("expected the part of the file that was asked for, found the whole")
        elif response.length is not None:
            self._size = response.length
        if (self._size or 0) > self._max_bytes:
            raise InputError(f"expected at most {self._max_bytes} bytes, found {self._size}")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
