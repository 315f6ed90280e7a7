"""Plays a video of the network into a stream, as it arrives and no faster than real time.

A process of its own connects, reads and decodes: it can be killed, and what a hostile server does to a decoder
happens there. Frames come back as plain bytes over a pipe. Nothing is read ahead but what the pipe holds, so that a
file is fetched at the pace at which it plays.
"""

from __future__ import annotations

import math
import signal
import struct
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import av.error
import av.stream
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from videochat_online.errors import InputError
from videochat_online.isolation import SECONDS_TO_DIE, describe_exit, die_with_parent, process_context
from videochat_online.serving.sources.addresses import ResolvedUrl
from videochat_online.serving.sources.fetching import HttpFile
from videochat_online.serving.sources.player import VIEW_FPS, Clock, Player
from videochat_online.serving.sources.rtsp_proxy import RtspProxy
from videochat_online.serving.sources.sandbox import (
    SUFFIX_OF_FORMAT,
    MediaLimits,
    check_frame_size,
    confine,
    open_listed,
)
from videochat_online.serving.streams.live_stream import LiveStream
from videochat_online.video.files.container import MAX_READ_ERRORS, choose_stream, reason
from videochat_online.video.files.pyav_reader import to_pixels

LIVE_FORMATS = frozenset({"mpjpeg", "rtsp"})
"""Sources that give a frame when there is one; the times that they write beside it may be made up."""

HEADER = struct.Struct("<dII")
"""Media time in seconds, NaN where it is unknown; height; width. Pixels follow, or a text where the height is 0."""


@dataclass(frozen=True, kw_only=True)
class NetworkLimits(MediaLimits):
    """What is too much of a video of the network.

    Attributes:
        stall_s: seconds without a frame, the first one included.
    """

    stall_s: float = 15.0


class NetworkPlayer(Player):
    """One address being played into one stream; begins at once. The first frame is at 0 s, the length is unknown.

    Args:
        url: checked address.
        stream: takes the frames, at the times at which they are shown.
        limits: the defaults where None.
        clock: None for the machine's.
    """

    max_gap_s = 60.0

    def __init__(
        self,
        url: ResolvedUrl,
        stream: LiveStream,
        *,
        limits: NetworkLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(stream, "connecting", clock)
        self._url, self._limits = url, limits or NetworkLimits()
        self._begun_s: float | None = None
        self._thread.start()

    def _final_state(self, problem: str | None, is_error: bool) -> str:
        # What has shown something has ended, however it came to it.
        return "failed" if self._begun_s is None and problem is not None else "ended"

    def _play(self) -> str | None:
        context = process_context()
        receiver, sender = context.Pipe(duplex=False)
        fps = max(VIEW_FPS, self._stream.options.fps)
        process = context.Process(target=_read, args=(sender, self._url, self._limits, fps), daemon=True)
        process.start()
        sender.close()
        try:
            while True:
                message = self._receive(receiver, process.sentinel)
                if message is None:
                    return None
                if not message:
                    process.join(SECONDS_TO_DIE)
                    return f"the process that read it ended with {describe_exit(process.exitcode)}"
                media_s, height, width = HEADER.unpack_from(message)
                if not height:
                    return message[HEADER.size :].decode() or None
                pixels = np.frombuffer(message, np.uint8, offset=HEADER.size).reshape(height, width, 3)
                if not self._show(pixels, media_s):
                    return None
        finally:
            process.kill()
            process.join(SECONDS_TO_DIE)
            receiver.close()

    def _receive(self, receiver: Connection, sentinel: int) -> bytes | None:
        """The next message; empty if the process has ended without one, None if the reader is closed."""
        deadline_s = time.monotonic() + self._limits.stall_s
        while not self._is_closed:
            ready = wait([receiver, sentinel], 0.1)
            if receiver in ready:
                try:
                    return receiver.recv_bytes(HEADER.size + 3 * self._limits.max_pixels)
                except (EOFError, OSError):
                    return b""
            if ready:
                return b""
            if time.monotonic() > deadline_s:
                raise InputError(f"{self._url.host}: no frame came for {self._limits.stall_s:g} s")
        return None

    def _show(self, pixels_HWC: npt.NDArray[np.uint8], media_s: float) -> bool:
        """Show a frame when it is due; False if there is nobody to see it."""
        with self._changed:
            if math.isfinite(media_s):
                self._wait_until_due(media_s)
            if self._is_closed or self._stream.is_closed:
                return False
            now_s = self._clock.now()
            if self._begun_s is None:
                self._begun_s, self._state = now_s, "playing"
            time_s = now_s - self._begun_s
        if time_s > self._limits.max_duration_s:
            raise InputError(f"expected at most {self._limits.max_duration_s:g} s of video: it was stopped there")
        self._stream.receive(pixels_HWC, time_s)
        with self._changed:
            self._position_s = time_s
        return True


def _read(sender: Connection, url: ResolvedUrl, limits: NetworkLimits, fps: float) -> None:
    """Read, decode and send at most `fps` frames a second, then a text that says what was wrong; in a process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's business, which then kills this process
    confine(limits.max_memory_bytes)
    try:
        problem = _read_http(sender, url, limits, fps) if url.scheme != "rtsp" else _read_rtsp(sender, url, limits, fps)
    except InputError as error:
        problem = str(error)
    except MemoryError:
        problem = "expected a video that can be decoded, found one that takes too much memory"
    sender.send_bytes(HEADER.pack(math.nan, 0, 0) + (problem or "").encode())


def _read_http(sender: Connection, url: ResolvedUrl, limits: NetworkLimits, fps: float) -> str | None:
    # Twice: it is the server that waits for a frame, and tells of it.
    with closing(HttpFile(url, max_bytes=limits.max_bytes, timeout_s=2 * limits.stall_s)) as file:
        formats = [*SUFFIX_OF_FORMAT, "mpjpeg"]
        with open_listed(file, formats, {"protocol_whitelist": "none"}) as container:
            problem = _send_frames(sender, container, limits, fps)
        return file.problem or problem


def _read_rtsp(sender: Connection, url: ResolvedUrl, limits: NetworkLimits, fps: float) -> str | None:
    options = {"rtsp_transport": "tcp", "protocol_whitelist": "tcp", "allowed_media_types": "video"}
    with closing(RtspProxy(url, timeout_s=2 * limits.stall_s)) as proxy:
        try:
            with open_listed(proxy.url, ["rtsp"], options) as container:
                return proxy.problem or _send_frames(sender, container, limits, fps)
        except InputError:
            if proxy.problem is None:
                raise
            return proxy.problem


def _send_frames(sender: Connection, container: InputContainer, limits: NetworkLimits, fps: float) -> str | None:
    """Send the frames of the video; returns what could not be read."""
    stream, reformatter = choose_stream(container), VideoReformatter()
    check_frame_size(stream.codec_context.width, stream.codec_context.height, limits.max_pixels)
    is_live = container.format.name in LIVE_FORMATS
    problem, num_errors = None, 0
    first_s, last_slot = math.nan, -1
    packets = container.demux(stream)
    while True:
        try:
            frames = next(packets).decode()
            num_errors = 0
        except (StopIteration, av.error.EOFError):
            return problem
        except av.error.FFmpegError as error:
            problem, num_errors = problem or f"while reading ({reason(error)})", num_errors + 1
            if num_errors > MAX_READ_ERRORS:
                return problem
            packets = container.demux(stream)
            continue
        for frame in frames:
            media_s = math.nan if frame.time is None or is_live else float(frame.time)
            time_s = time.monotonic() if math.isnan(media_s) else media_s
            first_s = time_s if math.isnan(first_s) else first_s
            slot = math.floor((time_s - first_s) * fps + 1e-6)
            if slot <= last_slot:
                continue
            last_slot = slot
            check_frame_size(frame.width, frame.height, limits.max_pixels)
            pixels_HWC = to_pixels(frame, reformatter)
            sender.send_bytes(HEADER.pack(media_s, *pixels_HWC.shape[:2]) + pixels_HWC.tobytes())
