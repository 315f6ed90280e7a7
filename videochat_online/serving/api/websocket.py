"""A stream over one WebSocket: frames in, commands in, answers out while frames go on arriving.

Messages are taken one after the other: while a frame is being decoded, the next ones wait in the network, so that a
client that is too fast is slowed down and the server holds one frame of it. What is faster than the model is dropped
by the stream, the oldest first.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from contextlib import aclosing
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from videochat_online.errors import InputError, shown
from videochat_online.serving.api.schemas import (
    RequestError,
    answer_document,
    check_fields,
    parse_json,
    question_of,
    request_id_of,
    status_document,
)
from videochat_online.serving.api.service import ApiService, pieces_of, too_large
from videochat_online.serving.streams.live_answer import LiveAnswer, UnknownStreamError

logger = logging.getLogger(__name__)

FRAME_HEAD = struct.Struct("<d")
"""Stream time of a frame in seconds, before its image; NaN for now."""

MAX_COMMAND_BYTES = 64 * 2**10

COMMANDS = {"ask": ("type", "question", "request_id"), "stop": ("type",), "status": ("type",)}
"""Fields that each takes."""

STREAM_CLOSED = 1001
"""Close code: "going away"."""


class StreamSocket:
    """One client at one stream; answers that it has not heard to the end are stopped when it goes."""

    def __init__(self, service: ApiService, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._name = str(socket.path_params["id"])
        self._sending = anyio.Lock()
        self._answer: LiveAnswer | None = None

    async def run(self) -> None:
        """Serve it until it goes, or the stream is closed.

        Raises:
            UnknownStreamError: there is no such stream; it comes before the socket is accepted.
        """
        await self._service.find(self._name)
        await self._socket.accept()
        async with self._service.in_use(self._name, on_gone=self._close), anyio.create_task_group() as group:
            try:
                while (message := await self._socket.receive())["type"] != "websocket.disconnect":
                    await self._take(message, group)
            except WebSocketDisconnect:
                logger.debug("a client has gone")
            finally:
                if self._answer is not None:
                    self._answer.stop()
                group.cancel_scope.cancel()

    async def _take(self, message: Any, group: TaskGroup) -> None:
        request_id = None
        try:
            data = message.get("bytes")
            if data is not None:
                await self._take_frame(data)
                return
            if len(message["text"]) > MAX_COMMAND_BYTES:
                raise too_large(MAX_COMMAND_BYTES, "command")
            document = parse_json(message["text"])
            kind = document.get("type")
            if not isinstance(kind, str) or kind not in COMMANDS:
                raise RequestError(f"type: expected one of {', '.join(COMMANDS)}, found {shown(kind)}")
            check_fields(document, COMMANDS[kind])
            request_id = request_id_of(document)
            await self._obey(kind, document, request_id, group)
        except UnknownStreamError:
            await self._close()
        except InputError as error:
            await self._send("error", {"message": " ".join(str(error).split()), "request_id": request_id})

    async def _take_frame(self, data: bytes) -> None:
        if len(data) <= FRAME_HEAD.size:
            raise RequestError(f"expected 8 bytes of time, then an image, got {len(data)} bytes")
        (time_s,) = FRAME_HEAD.unpack_from(data)
        entry = await self._service.find(self._name)
        await self._service.push_frame(entry, data[FRAME_HEAD.size :], None if math.isnan(time_s) else time_s)

    async def _obey(self, kind: str, document: dict[str, Any], request_id: str | int | None, group: TaskGroup) -> None:
        entry = await self._service.find(self._name)
        if kind == "status":
            await self._send("status", await self._service.call(status_document, entry.stream))
        elif kind == "stop":
            await self._service.call(entry.stream.stop_answer)
        else:
            self._answer = await self._service.call(entry.stream.ask, question_of(document))
            group.start_soon(self._tell, self._answer, request_id)

    async def _tell(self, answer: LiveAnswer, request_id: str | int | None) -> None:
        try:
            async with aclosing(pieces_of(answer)) as pieces:
                async for piece in pieces:
                    await self._send("piece", {"text": piece, "request_id": request_id})
            await self._send("answer", answer_document(answer) | {"request_id": request_id})
        except WebSocketDisconnect:
            answer.stop()

    async def _send(self, kind: str, document: dict[str, Any]) -> None:
        async with self._sending:
            if self._socket.application_state is WebSocketState.CONNECTED:
                await self._socket.send_text(json.dumps({"type": kind} | document))

    async def _close(self) -> None:
        async with self._sending:
            if self._socket.application_state is WebSocketState.CONNECTED:
                await self._socket.close(STREAM_CLOSED, "the stream is closed")
