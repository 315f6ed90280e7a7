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
from contextlib import aclosing, suppress
from dataclasses import asdict
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from videochat_online.documents import validated
from videochat_online.errors import InputError, one_line
from videochat_online.serving.api.schemas import (
    AskCommand,
    Command,
    RequestError,
    RequestId,
    StatusCommand,
    StopCommand,
    answer_document,
    parse_json,
)
from videochat_online.serving.api.service import ApiService, pieces_of, too_large
from videochat_online.serving.streams.live_answer import LiveAnswer, UnknownStreamError

logger = logging.getLogger(__name__)

FRAME_HEAD = struct.Struct("<d")
"""Stream time of a frame in seconds, before its image; NaN for now."""

MAX_COMMAND_BYTES = 64 * 2**10

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
            with suppress(InputError):  # one that is none is said of the command
                request_id = validated(RequestId, document.get("request_id"))
            await self._obey(validated(Command, document), group)
        except UnknownStreamError:
            await self._close()
        except InputError as error:
            await self._send("error", {"message": one_line(error), "request_id": request_id})

    async def _take_frame(self, data: bytes) -> None:
        if len(data) <= FRAME_HEAD.size:
            raise RequestError(f"expected 8 bytes of time, then an image, got {len(data)} bytes")
        (time_s,) = FRAME_HEAD.unpack_from(data)
        entry = await self._service.find(self._name)
        await self._service.push_frame(entry, data[FRAME_HEAD.size :], None if math.isnan(time_s) else time_s)

    async def _obey(self, command: AskCommand | StopCommand | StatusCommand, group: TaskGroup) -> None:
        entry = await self._service.find(self._name)
        if isinstance(command, StatusCommand):
            await self._send("status", asdict(await self._service.call(entry.stream.status)))
        elif isinstance(command, StopCommand):
            await self._service.call(entry.stream.stop_answer)
        else:
            self._answer = await self._service.call(entry.stream.ask, command.question)
            group.start_soon(self._tell, self._answer, command.request_id)

    async def _tell(self, answer: LiveAnswer, request_id: str | int | None) -> None:
        try:
            async with aclosing(pieces_of(answer)) as pieces:
                async for piece in pieces:
                    await self._send("piece", {"text": piece, "request_id": request_id})
            await self._send("answer", asdict(answer_document(answer)) | {"request_id": request_id})
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
