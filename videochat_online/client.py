"""Client of the HTTP API, for programs: `StreamClient` opens streams on a server, `RemoteStream` is one of them."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from videochat_online.errors import InputError, shown
from videochat_online.serving.streams.image_bytes import check_picture
from videochat_online.serving.streams.stream_status import AnswerDocument, StreamStatus


class ClientError(InputError):
    """The server has refused something or has failed; `status` is the HTTP status, None without a response."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message if status is None else f"{message} (status {status})")
        self.status = status


class StreamClient:
    """A server of streams.

    Args:
        url: address of the server, such as "http://127.0.0.1:7860"; the API is at `/v1` below it.
        password: password that the server asks for.
        timeout_s: longest silence of the server. A whole answer is silence until it is there.

    Raises:
        InputError: the address is none.
    """

    def __init__(self, url: str, password: str | None = None, *, timeout_s: float = 300.0) -> None:
        if not _is_address(url):
            raise InputError(f"expected the address of a server, such as http://127.0.0.1:7860, got {shown(url)}")
        # As bytes: httpx takes text of ASCII only.
        headers = {} if password is None else {b"Authorization": b"Bearer " + password.encode()}
        self._http = httpx.Client(base_url=f"{url.rstrip('/')}/v1", headers=headers, timeout=timeout_s)

    def health(self) -> dict[str, Any]:
        """Versions, how many streams there may be, size of frames, memories.

        Raises:
            ClientError: the server cannot be reached.
        """
        return dict(self.request("GET", "/health").json())

    @contextmanager
    def open(self, **options: Any) -> Iterator[RemoteStream]:
        """A new stream, closed at the end of the block.

        Args:
            options: fields of `StreamOptions`, `memory_options` and `generation` as dicts.

        Raises:
            ClientError: all places are taken (status 503), or an option is wrong (422).
        """
        stream = RemoteStream(self, self.request("POST", "/streams", json=options).json()["id"])
        try:
            yield stream
        finally:
            stream.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """A request and its whole response.

        Raises:
            ClientError: the server refuses, or cannot be reached.
        """
        with self.begin(method, path, **arguments) as response:
            response.read()
        return response

    @contextmanager
    def begin(self, method: str, path: str, **arguments: Any) -> Iterator[httpx.Response]:
        """A request whose response is read as it comes; errors as `request`."""
        try:
            with self._http.stream(method, path, **arguments) as response:
                if not response.is_success:
                    response.read()
                    raise ClientError(_problem(response), response.status_code)
                yield response
        except (httpx.TransportError, httpx.InvalidURL, httpx.StreamError) as error:
            raise ClientError(f"{self._http.base_url}: {str(error) or type(error).__name__}") from error


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or a bracket that is none
        return False


def _problem(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):  # something between us and the server
        return f"expected an answer of the API, found {response.text[:60]!r}"


class RemoteStream:
    """A stream on a server.

    Attributes:
        id: whoever knows it (and the password) may use the stream.
    """

    def __init__(self, client: StreamClient, name: str) -> None:
        self._client, self.id = client, name
        self._path = f"/streams/{quote(name, safe='')}"

    def push(
        self, frame: str | Path | bytes | npt.NDArray[np.uint8], time_s: float | None = None
    ) -> dict[str, float | bool]:
        """Send a frame.

        Args:
            frame: path of an image, an encoded image, or pixels, uint8 [H, W, 3], which travel without loss.
            time_s: stream time; None for now.

        Returns:
            `accepted` (whether the model is to see it), `time_s`, `num_frames_waiting`, `num_frames_dropped`.

        Raises:
            ClientError: the server refuses it.
            InputError: the file cannot be read, or it is no picture.
        """
        parameters = {} if time_s is None else {"time_s": time_s}
        response = self._client.request("POST", f"{self._path}/frames", params=parameters, content=_encoded(frame))
        return dict(response.json())

    def ask(self, question: str) -> AnswerDocument:
        """The whole answer to a question about the frames so far.

        Raises:
            ClientError: refused, or the answer has failed.
        """
        document = self._client.request("POST", f"{self._path}/ask", json={"question": question}).json()
        return _answer(document)

    def stream(self, question: str) -> Generator[str, None, AnswerDocument]:
        """An answer piece by piece; it returns all of it. Closing the iterator stops the answer. Errors as `ask`."""
        arguments = {"question": question, "stream": True}
        with self._client.begin("POST", f"{self._path}/ask", json=arguments) as response:
            kind = ""
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "piece":
                    yield json.loads(value)["text"]
                elif name == "data":
                    return _answer(json.loads(value))
        raise ClientError("the server broke the answer off")

    def stop_answer(self) -> None:
        """End the answer that is being given, if there is one."""
        self._client.request("DELETE", f"{self._path}/answer")

    def forget_dialogue(self) -> None:
        """Begin a new dialogue about the same stream."""
        self._client.request("DELETE", f"{self._path}/dialogue")

    def describe(self) -> dict[str, Any]:
        """Options, status, memory and answers, as the API gives them."""
        return dict(self._client.request("GET", self._path).json())

    def status(self) -> StreamStatus:
        """How the stream is doing."""
        return StreamStatus(**self.describe()["status"])

    def memory(self) -> dict[str, Any]:
        """What is remembered and what was forgotten lately: the fields of `MemoryView` without pictures."""
        return dict(self.describe()["memory"])

    def close(self) -> None:
        """End the stream; nothing happens if it has ended already."""
        try:
            self._client.request("DELETE", self._path)
        except ClientError as error:
            if error.status != 404:
                raise


def _answer(document: dict[str, Any]) -> AnswerDocument:
    answer = AnswerDocument(**{field.name: document[field.name] for field in fields(AnswerDocument)})
    if answer.state == "failed":
        raise ClientError(f"no answer: {answer.error}")
    return answer


def _encoded(frame: str | Path | bytes | npt.NDArray[np.uint8]) -> bytes:
    if isinstance(frame, bytes):
        return frame
    if isinstance(frame, (str, Path)):
        try:
            return Path(frame).read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{frame}: expected an image, found {getattr(error, 'strerror', error)}") from error
    check_picture(frame)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
