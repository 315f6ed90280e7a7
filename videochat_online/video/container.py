"""One forward pass over a video file with PyAV: packets, frames, and what failed on the way.

Owns opening, threads, seeking and the tally. Times are the container's own (pts * time base), not shifted.
Knows nothing about sampling.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

import av
import av.container
import av.error
import av.stream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from videochat_online.errors import VideoError

VideoPacket: TypeAlias = "Packet[VideoStream]"

INDEXED_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
"""Containers with an index of keyframes and true times after a seek."""

DECLARING_FORMATS = INDEXED_FORMATS | {"avi", "flv", "asf"}
"""Containers that write their length down; for others FFmpeg estimates it."""

REFUSED_FORMATS = frozenset({"tty", "concat", "hls", "ffmetadata", "lavfi", "sdp"})
"""Text that FFmpeg would draw as a picture, and lists that would open other files."""

THREADED_PIXELS = 640 * 360
"""Pictures up to this size decode faster on one thread than their hand-over between threads costs."""

MAX_THREADS = 8
"""Each thread of the decoder holds frames of its own."""

MAX_READ_ERRORS = 100
"""Read errors in a row after which the rest of a file counts as unreadable."""


class BrokenPassError(Exception):
    """A pass with several threads met something broken; one thread must go on.

    Threads swallow intact frames around a broken one, and how many depends on the number of cores.
    """


@dataclass
class Tally:
    """What has been met in a file.

    Attributes:
        num_decoded: frames handed out, each once.
        num_discarded: packets that an edit list hides.
        num_undecoded: frames that were only counted.
        num_damaged: frames that the decoder marked as damaged.
        failures: where and why, each failure once.
        is_whole: nothing was left out at the beginning.
        at_end: the end of the file was reached.
        ends_at_s: end of the last packet of any stream.
    """

    num_decoded: int = 0
    num_discarded: int = 0
    num_undecoded: int = 0
    num_damaged: int = 0
    failures: dict[tuple[str, object], str] = field(default_factory=dict)
    is_whole: bool = True
    at_end: bool = False
    ends_at_s: float = -math.inf


def open_container(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a file and find its video stream.

    Raises:
        VideoError: no such file, empty, not a video, or without a video stream (a cover picture is none).
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise VideoError(f"{path}: expected a video file, found {found}")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: expected a video file, found an empty one (0 bytes)")
    try:
        # "file:" keeps a colon in a name from being read as a protocol.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: expected a video file, found something unreadable ({reason(error)})") from error
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if container.format.name in REFUSED_FORMATS or not streams:
        types = ", ".join(sorted({s.type for s in container.streams})) or "no stream at all"
        found = f"a text file ({container.format.name})" if streams else f"no video stream (only: {types})"
        container.close()
        raise VideoError(f"{path}: expected a video file, found {found}")
    if getattr(streams[0], "codec_context", None) is None:  # PyAV's types promise one
        container.close()
        raise VideoError(f"{path}: expected a video of a codec that FFmpeg knows, found another one")
    return container, streams[0]


def reason(error: Exception) -> str:
    """The cause in FFmpeg's or the system's words, without numbers and paths."""
    return str(getattr(error, "strerror", None) or error)


class ContainerPass:
    """One opened file and its decoder, moving forward only."""

    def __init__(self, path: Path, tally: Tally, *, is_threaded: bool) -> None:
        self.container, self.stream = open_container(path)
        codec = self.stream.codec_context
        self.is_threaded = is_threaded and codec.width * codec.height > THREADED_PIXELS
        codec.thread_type = "AUTO" if self.is_threaded else "SLICE"
        codec.thread_count = min(MAX_THREADS, os.cpu_count() or 1) if self.is_threaded else 1
        self._tally = tally
        self._num_discarded = 0
        self._has_corrupt_packet = False
        self.num_packets = 0

    def seek(self, time_s: float) -> None:
        """Move to the keyframe at or before a time; the first frame may still start after it."""
        if self.stream.time_base:
            offset = math.floor(time_s / self.stream.time_base)
            self.container.seek(offset, backward=True, stream=self.stream)

    def time_of(self, ticks: int | None) -> float | None:
        """Seconds of a time of the video stream."""
        if ticks is None or not self.stream.time_base:
            return None
        return float(ticks * self.stream.time_base)

    def frames(self) -> Iterator[VideoFrame]:
        """Frames to the end of the file; with several threads BrokenPassError at the first failure."""
        num_frames = 0
        for packet in self.packets():
            try:
                # Without a packet: what the decoder still holds.
                frames = self.stream.codec_context.decode(None) if packet is None else packet.decode()
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                self._fail(packet, error)
                continue
            num_frames += len(frames)
            yield from frames
        if self.is_threaded and (self._has_corrupt_packet or num_frames < self.num_packets):
            raise BrokenPassError

    def packets(self) -> Iterator[VideoPacket | None]:
        """Packets of the video stream, then None; notes the end of all streams."""
        num_errors = 0
        iterator = self.container.demux()
        while num_errors < MAX_READ_ERRORS:
            try:
                packet = next(iterator)
            except (StopIteration, av.error.EOFError):
                break
            except av.error.FFmpegError as error:
                num_errors += 1
                self._fail(None, error)
                iterator = self.container.demux()
                continue
            if packet.size == 0:  # asks the decoders of all streams for their last frames; None does that here
                continue
            num_errors = 0
            if packet.pts is not None and packet.time_base:
                end = (packet.pts + (packet.duration or 0)) * packet.time_base
                self._tally.ends_at_s = max(self._tally.ends_at_s, float(end))
            if packet.stream.index == self.stream.index:
                video_packet = cast(VideoPacket, packet)
                self._count(video_packet)
                yield video_packet
        yield None

    def _count(self, packet: VideoPacket) -> None:
        self._has_corrupt_packet = self._has_corrupt_packet or packet.is_corrupt
        if packet.is_discard:
            self._num_discarded += 1
            # A second pass over the same file meets the same packets.
            self._tally.num_discarded = max(self._tally.num_discarded, self._num_discarded)
        else:
            self.num_packets += 1

    def _fail(self, packet: VideoPacket | None, error: Exception) -> None:
        if self.is_threaded:
            raise BrokenPassError from error
        failures = self._tally.failures
        if packet is None:
            failures.setdefault(("read", len(failures)), f"while reading ({reason(error)})")
            return
        time_s = self.time_of(packet.pts if packet.pts is not None else packet.dts)
        where = "at an unknown time" if time_s is None else f"at {time_s:.3f} s"
        failures.setdefault(("packet", packet.dts), f"{where} ({reason(error)})")
