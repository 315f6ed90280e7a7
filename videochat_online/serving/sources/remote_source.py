"""Plays a source of the network into a stream, for as long as it is watched: whatever ends it, it is opened again.

A process of its own connects, reads and decodes, and sends its newest frame over a pipe: it can be killed, and what a
server does to a decoder happens there. No error of FFmpeg's is quoted, but for its cause: they hold the whole address.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait

import av
import av.error
import av.logging
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from videochat_online.errors import InputError
from videochat_online.isolation import SECONDS_TO_DIE, describe_exit, die_with_parent, process_context
from videochat_online.serving.sources.named_sources import PROTOCOLS, NamedSource
from videochat_online.serving.sources.player import VIEW_FPS, Clock, Player
from videochat_online.serving.sources.sandbox import (
    MAX_MEMORY_BYTES,
    MAX_PIXELS,
    SUFFIX_OF_FORMAT,
    check_frame_size,
    confine,
)
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.video.files.container import MAX_READ_ERRORS, choose_stream
from videochat_online.video.files.pyav_reader import to_pixels

logger = logging.getLogger(__name__)

LIVE_FORMATS = frozenset({"mpjpeg", "rtsp"})
"""Sources that give a frame when there is one; the times that they write beside it may be made up."""

STALL_S = 15.0
"""Seconds without a frame, the first one included, after which a source counts as lost."""

LONGEST_RETRY_S, REFUSED_S = 30.0, 60
"""Seconds until a source is tried again, at most, and after it said no: cameras lock users out who try too often."""

STEADY_S = 10.0
"""Seconds of frames after which the next loss is the first again."""

HEADER = struct.Struct("<II")
"""Height and width; pixels follow. Height 0: the process gives up; seconds until the next try, and a text why."""


class RemotePlayer(Player):
    """One source being played into one stream until it is closed: "connecting", "playing" or "waiting" for the source.

    Stream time is the time since the player was made: it goes on while the source is away, and a gap is a gap.

    Args:
        source: source of the network.
        stream: takes the frames, at the times at which they come.
        stall_s: seconds without a frame after which the source counts as lost.
        clock: None for the machine's.
    """

    def __init__(
        self, source: NamedSource, stream: LiveStream, *, stall_s: float = STALL_S, clock: Clock | None = None
    ) -> None:
        super().__init__(stream, "connecting", clock)
        self._source, self._stall_s = source, stall_s
        self._begun_s = self._clock.now()
        # Clock time of the first frame of this connection.
        self._connected_s = math.inf
        self._thread.start()

    def _play(self) -> str | None:
        num_failures = 0
        while True:
            self._connected_s = math.inf
            problem, least_s = self._watch()
            with self._changed:
                if self._is_closed:
                    return None
                now_s = self._clock.now()
                if now_s - self._connected_s >= STEADY_S:
                    num_failures = 0
                if self._waiting_since is None:
                    self._waiting_since = now_s
                    logger.warning("source %s: %s; it is tried again until it is back", self._source, problem)
                self._state, self._problem = "waiting", problem
                delay_s = max(least_s, min(2.0 ** min(num_failures, 8), LONGEST_RETRY_S)) * random.uniform(1.0, 1.2)
                num_failures += 1
                self._clock.wait(self._changed, delay_s)

    def _watch(self) -> tuple[str, float]:
        """Show the frames of one connection; returns why they end, and how long to wait at least."""
        context = process_context()
        receiver, sender = context.Pipe(duplex=False)
        fps = max(VIEW_FPS, self._stream.options.fps)
        process = context.Process(target=_read, args=(sender, self._source, fps, self._stall_s), daemon=True)
        process.start()
        sender.close()
        try:
            while True:
                message = self._receive(receiver, process.sentinel)
                if message is None:
                    return f"no frame came for {self._stall_s:g} s", 0.0
                if not message:
                    process.join(SECONDS_TO_DIE)
                    return f"the process that read it ended with {describe_exit(process.exitcode)}", 0.0
                height, width = HEADER.unpack_from(message)
                if not height:
                    return message[HEADER.size :].decode(), float(width)
                self._show(np.frombuffer(message, np.uint8, offset=HEADER.size).reshape(height, width, 3))
        finally:
            process.kill()
            process.join(SECONDS_TO_DIE)
            receiver.close()

    def _receive(self, receiver: Connection, sentinel: int) -> bytes | None:
        """The next message; empty if the process has ended without one, None if there was none for too long."""
        deadline_s = time.monotonic() + self._stall_s
        while time.monotonic() < deadline_s and not self._is_closed:
            ready = wait([receiver, sentinel], 0.1)
            if receiver in ready:
                try:
                    return receiver.recv_bytes(HEADER.size + 3 * MAX_PIXELS)
                except (EOFError, OSError):
                    return b""
            if ready:
                return b""
        return None

    def _show(self, pixels_HWC: npt.NDArray[np.uint8]) -> None:
        with self._changed:
            if self._is_closed or self._stream.is_closed:
                return
            now_s = self._clock.now()
            self._connected_s = min(self._connected_s, now_s)
            if self._waiting_since is not None:
                logger.warning("source %s: it is back", self._source)
            self._state, self._problem, self._waiting_since = "playing", None, None
            self._position_s = now_s - self._begun_s
        self._stream.receive(pixels_HWC, self._position_s)


def _read(sender: Connection, source: NamedSource, fps: float, stall_s: float) -> None:
    """Read, decode and send at most `fps` frames a second, then why there are no more; in a process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business, which then kills this process
    av.logging.set_level(av.logging.FATAL)  # FFmpeg's messages quote addresses, passwords included
    confine(MAX_MEMORY_BYTES)
    newest: queue.Queue[bytes] = queue.Queue(1)
    sending = threading.Thread(target=_send, args=(sender, newest), daemon=True)
    sending.start()
    problem, least_s = "the source has ended", 0
    try:
        for pixels_HWC in _frames(source.address, fps, stall_s):
            with suppress(queue.Empty):
                newest.get_nowait()
            newest.put(HEADER.pack(*pixels_HWC.shape[:2]) + pixels_HWC.tobytes())
    except InputError as error:
        problem = str(error)
    except MemoryError:
        problem = "expected a video that can be decoded, found one that takes too much memory"
    except av.error.ArgumentError:  # as FFmpeg says of a container that is not on the list
        problem = "expected a video, found a kind of file that is not played"
    except Exception as error:  # the process's last resort: the text of an error may have the address
        problem = getattr(error, "strerror", None) or type(error).__name__
        if isinstance(error, av.error.HTTPClientError):
            least_s = REFUSED_S
    newest.put(HEADER.pack(0, least_s) + problem.encode())
    newest.put(b"")
    sending.join()


def _send(sender: Connection, newest: queue.Queue[bytes]) -> None:
    while message := newest.get():
        sender.send_bytes(message)


def _frames(address: str, fps: float, stall_s: float) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames as they come, at most `fps` a second; those of a file no faster than real time."""
    scheme = address.partition(":")[0].lower()
    formats = ["rtsp"] if scheme == "rtsp" else [*SUFFIX_OF_FORMAT, "mpjpeg"]
    # Without a look at the frame rate, which nobody asks for: the first picture would come seconds later.
    options = {
        "protocol_whitelist": PROTOCOLS[scheme], "format_whitelist": ",".join(formats), "fpsprobesize": "0",
    }  # fmt: skip
    if scheme == "rtsp":
        options |= {"rtsp_transport": "tcp", "allowed_media_types": "video"}
    with av.open(address, options=options) as container:
        stream, reformatter = choose_stream(container), VideoReformatter()
        check_frame_size(stream.codec_context.width, stream.codec_context.height, MAX_PIXELS)
        is_live = container.format.name in LIVE_FORMATS
        packets, num_errors = container.demux(stream), 0
        due_s, offset_s = 0.0, None
        while True:
            try:
                frames = next(packets).decode()
                num_errors = 0
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError:
                num_errors += 1
                if num_errors > MAX_READ_ERRORS:
                    raise
                packets = container.demux(stream)
                continue
            for frame in frames:
                now_s = time.monotonic()
                if not is_live and frame.time is not None:
                    offset_s = now_s - frame.time if offset_s is None else offset_s
                    early_s = frame.time + offset_s - now_s
                    if early_s > stall_s / 2:
                        offset_s = now_s - frame.time  # a jump in the times, which is not waited for
                    elif early_s > 0:
                        time.sleep(early_s)
                        now_s += early_s
                if now_s < due_s - 0.25 / fps:  # frames come a little early and late
                    continue
                due_s = max(due_s, now_s - 0.25 / fps) + 1 / fps
                check_frame_size(frame.width, frame.height, MAX_PIXELS)
                yield to_pixels(frame, reformatter)
