"""Decoding in a process of its own: it goes on while the model works, and it can be killed.

A damaged file can make a decoder hang or crash. Neither may end an evaluation of hours: the process is replaced, and
the video is reported as bad. Owns the process and the talk with it; `frame_selection` says which frames are wanted.

Shape legend: `T` frames, `S` side of the square that the vision tower takes, in pixels.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videochat_online.errors import InputError, VideoError
from videochat_online.evaluation.benchmark import EvalVideo
from videochat_online.evaluation.media.protocol_frames import LabelledFrame, VideoFrames
from videochat_online.evaluation.protocol import EvalProtocol
from videochat_online.isolation import IS_FORKED, SECONDS_TO_DIE, describe_exit, die_with_parent, process_context
from videochat_online.video import FrameTransform

logger = logging.getLogger(__name__)

DECODE_TIMEOUT_S = 300.0
"""Longest wait for the next frames: a decoder that takes longer hangs."""

_ERRORS: dict[str, type[Exception]] = {"VideoError": VideoError, "InputError": InputError}


class DecoderProcess:
    """A process that opens videos, one after another. Use as a context manager.

    Args:
        timeout_s: longest wait for it to open a video, or to come up with the next frames, in seconds.
        private: descriptors of files that it must not hold open: a lock lasts as long as anybody has the file.
    """

    def __init__(self, timeout_s: float = DECODE_TIMEOUT_S, private: Sequence[int] = ()) -> None:
        self.timeout_s = timeout_s
        self._private = tuple(private)
        self.process: BaseProcess | None = None
        """Process at work, None before the first video and after one that was killed."""
        self._connection: Connection | None = None

    def __enter__(self) -> DecoderProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process if there is none: best before a model is loaded, while there is little to copy."""
        if self.process is not None:
            return
        context = process_context()
        ours, theirs = context.Pipe()
        inherited = (ours.fileno(), *self._private) if IS_FORKED else ()
        self.process = context.Process(target=_serve, args=(theirs, inherited), daemon=True, name="decoder")
        self.process.start()
        theirs.close()
        self._connection = ours

    def open(
        self, path: Path, video: EvalVideo, protocol: EvalProtocol, transform: FrameTransform, *, backend: str = "auto"
    ) -> RemoteVideoFrames:
        """Open a video; arguments and errors are those of `VideoFrames`, frames come as squares of `transform`."""
        self.start()
        opened = RemoteVideoFrames(self, path)
        opened.video = opened.ask("open", path, video, protocol, transform, backend)
        return opened

    def send(self, name: str, *arguments: Any) -> None:
        """Ask for something; a process that is gone is noticed by who waits for the answer."""
        with suppress(OSError):
            self._open_connection().send((name, arguments))

    def receive(self, path: Path) -> tuple[str, Any]:
        """The next message about a video.

        Raises:
            VideoError: the process takes too long, or is gone.
        """
        connection = self._open_connection()
        try:
            if not connection.poll(self.timeout_s):
                self.kill()
                raise VideoError(f"{path}: gave no frame for {self.timeout_s:g} s; its decoder was killed")
            kind, value = connection.recv()
            if kind == "group":
                labels, shape = value
                pixels_TSSC = np.empty(shape, dtype=np.uint8)
                connection.recv_bytes_into(pixels_TSSC.data.cast("B"))
                value = [
                    LabelledFrame(index, time_s, pixels_SSC)
                    for (index, time_s), pixels_SSC in zip(labels, pixels_TSSC, strict=True)
                ]
        except (EOFError, ConnectionError) as error:
            process = self.process
            if process is not None:
                process.join(SECONDS_TO_DIE)
            how = describe_exit(None if process is None else process.exitcode)
            self.kill()
            raise VideoError(f"{path}: its decoder ended with {how}") from error
        return kind, value

    def kill(self) -> None:
        """End the process, whatever it does; the next video gets another one."""
        if self._connection is not None:
            self._connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.join(SECONDS_TO_DIE)
        self.process = self._connection = None

    def _open_connection(self) -> Connection:
        if self._connection is None:
            raise VideoError("expected a video that is open, but its decoder is gone")
        return self._connection


class RemoteVideoFrames:
    """`VideoFrames` of another process, of which one group of frames is decoded ahead.

    Attributes:
        video: record of the video that is open.
        num_decoded: number of frames that were handed out.
        waited_s: time that the receiving side had to wait for answers, in seconds.
    """

    def __init__(self, process: DecoderProcess, path: Path) -> None:
        self.process, self._path = process, path
        self.video: EvalVideo
        self._is_reading = False
        self.num_decoded = 0
        self.waited_s = 0.0

    def __enter__(self) -> RemoteVideoFrames:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_reading:  # frames are on their way that nobody wants
            self.process.kill()

    def streaming_indices(self) -> list[int]:
        """As `VideoFrames`."""
        return list(self.ask("streaming_indices"))

    def window_indices(self, question_s: float, starts_s: float | None = None) -> list[int]:
        """As `VideoFrames`."""
        return list(self.ask("window_indices", question_s, starts_s))

    def labels(self, indices: Sequence[int]) -> list[float]:
        """As `VideoFrames`."""
        return list(self.ask("labels", list(indices)))

    def finish(self) -> str | None:
        """As `VideoFrames`; a decoder that fails then has given all that was asked of it."""
        try:
            problem: str | None = self.ask("finish")
        except VideoError as error:
            return str(error)
        return problem

    def read(self, indices: Sequence[int]) -> Iterator[list[LabelledFrame]]:
        """As `VideoFrames`; the pixels are squares.

        Raises:
            VideoError: errors of `VideoFrames`; or a decoder that hangs or crashes.
        """
        self.process.send("read", list(indices))
        self._is_reading = True
        while group := self._receive():
            self.num_decoded += len(group)
            yield group

    def ask(self, name: str, *arguments: Any) -> Any:
        """What the process answers; errors are those of `VideoFrames`, or the decoder hangs or crashes."""
        self.process.send(name, *arguments)
        return self._receive()

    def _receive(self) -> Any:
        """The next answer; of frames that are read, a group, and at their end None."""
        start_s = time.perf_counter()
        try:
            kind, value = self.process.receive(self._path)
        finally:
            self.waited_s += time.perf_counter() - start_s
        self._is_reading = kind == "group"
        if kind in _ERRORS:
            raise _ERRORS[kind](value)
        if kind == "fault":
            # An odd file brings decoders to anything; it costs this video, and the log says what it was.
            logger.error("%s: decoding failed:\n%s", self._path, value)
            raise VideoError(f"{self._path}: decoding failed: {value.strip().splitlines()[-1]}")
        return value


def _serve(connection: Connection, inherited: Sequence[int]) -> None:
    """The process: answer until nobody asks any more, which shows when nobody else has the other end open."""
    die_with_parent()
    for descriptor in inherited:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # threads do not survive a fork
    handler = _RequestHandler(connection)
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            handler.answer(name, arguments)
        except (VideoError, InputError) as error:
            connection.send((type(error).__name__, str(error)))
        except BrokenPipeError:
            return
        except Exception:
            connection.send(("fault", traceback.format_exc()))


class _RequestHandler:
    """What is open in the process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames: VideoFrames | None = None
        self._transform = FrameTransform()

    def answer(self, name: str, arguments: Sequence[Any]) -> None:
        if name == "open":
            if self._frames is not None:
                self._frames.source.close()
                self._frames = None
            path, video, protocol, self._transform, backend = arguments
            self._frames = VideoFrames(path, video, protocol, backend=backend)
            self._connection.send(("value", self._frames.video))
            return
        frames = self._frames
        if frames is None:
            raise VideoError("expected an open video, found none")
        if name == "read":
            for group in frames.read(arguments[0]):
                self._send(group)
            self._connection.send(("end", None))
        else:
            calls: dict[str, Callable[..., Any]] = {
                "window_indices": frames.window_indices,
                "streaming_indices": frames.streaming_indices,
                "labels": frames.labels,
                "finish": frames.finish,
            }
            self._connection.send(("value", calls[name](*arguments)))

    def _send(self, group: Sequence[LabelledFrame]) -> None:
        """A group of frames; a video whose size changes on the way is square by then."""
        squares = [self._transform.resized(frame.pixels_HWC[None])[0] for frame in group]
        pixels_TSSC = np.ascontiguousarray(np.stack(squares))
        labels = [(frame.index, frame.time_s) for frame in group]
        self._connection.send(("group", (labels, pixels_TSSC.shape)))
        self._connection.send_bytes(pixels_TSSC.data.cast("B"))
