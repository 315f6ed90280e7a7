"""One forward pass over a video file with PyAV: packets, frames, and what failed on the way.

Owns opening, threads, seeking and the tally. Times are the container's own (pts * time base), not shifted.
Knows nothing about sampling.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.container
import av.error
import av.stream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from videochat_online.errors import VideoError
from videochat_online.video.files.declared import INDEXED_FORMATS
from videochat_online.video.files.timestamps import PacketClock, VideoPacket, is_untimed

REFUSED_FORMATS = frozenset({"tty", "concat", "hls", "ffmetadata", "lavfi", "sdp"})
"""Text that FFmpeg would draw as a picture, and lists that would open other files."""

THREADED_PIXELS = 640 * 360
"""Pictures up to this size decode faster on one thread than their hand-over between threads costs."""

MAX_THREADS = 8
"""Largest number of threads of the decoder: each holds frames of its own."""

HEADED_FORMATS = INDEXED_FORMATS | {"flv", "asf"}
"""Containers with a beginning that comes once."""

MIN_UNREAD_BYTES = 1 << 10
"""So much behind the last packet is more than what a packet that is cut short leaves."""

MAX_PACKETS_PEEKED = 256
"""Packets looked at of the video streams of a file that has several: a still has one packet among so many."""

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
        failures: place and reason of each failure, once.
        is_whole: whether nothing was left out at the beginning.
        at_end: whether the end of the file was reached.
        ends_at_s: end of the last packet of any stream.
        notes: remarks on what was odd about the file and is mended, each once.
    """

    num_decoded: int = 0
    num_discarded: int = 0
    num_undecoded: int = 0
    num_damaged: int = 0
    failures: dict[tuple[str, object], str] = field(default_factory=dict)
    is_whole: bool = True
    at_end: bool = False
    ends_at_s: float = -math.inf
    notes: dict[str, None] = field(default_factory=dict)


def open_container(path: Path) -> tuple[InputContainer, VideoStream]:
    """Open a file and find its video stream.

    A file whose index cannot be read, because it breaks off in the middle of one, is opened as if it were a pipe: then
    nobody looks for what is missing, and frames come until the file ends. `is_pipe` tells.

    Raises:
        VideoError: no such file, empty, not a video, or without a video stream (a cover picture is none).
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise VideoError(f"{path}: expected a video file, found {found}")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: expected a video file, found an empty one (0 bytes)")
    try:
        container = _open(path)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        try:
            container = _open(path, seekable="0")
        except (av.error.FFmpegError, OSError, ValueError):
            raise VideoError(f"{path}: expected a video file, found something unreadable ({reason(error)})") from error
    try:
        stream = choose_stream(container, _stills(path, container))
        if container.format.name in REFUSED_FORMATS:
            raise VideoError(f"expected a video file, found a text file ({container.format.name})")
    except VideoError as error:
        container.close()
        raise VideoError(f"{path}: {error}") from None
    return container, stream


def _open(path: Path, **options: str) -> InputContainer:
    # "file:" keeps a colon in a name from being read as a protocol.
    return av.open(f"file:{path}", options={**options, "protocol_whitelist": "file"})


def is_pipe(container: InputContainer) -> bool:
    """Whether `open_container` had to open a file without its index."""
    return container.options.get("seekable") == "0"


def choose_stream(container: InputContainer, stills: Collection[int] = ()) -> VideoStream:
    """The stream that players show: moving pictures before a still, then the default one, then the largest.

    Args:
        container: an opened file.
        stills: indices of streams that are known to hold a single picture.

    Raises:
        VideoError: there is none of a codec that FFmpeg knows (a cover picture is none).
    """
    videos = _candidates(container)
    if not videos:
        kinds: list[str] = sorted({s.type for s in container.streams if s.type != "video"})
        kinds += ["a cover picture"] if container.streams.video else []
        raise VideoError(f"expected a video file, found no video stream (only: {', '.join(kinds) or 'nothing'})")
    known = [s for s in videos if getattr(s, "codec_context", None) is not None]  # PyAV's types promise one
    if not known:
        raise VideoError("expected a video of a codec that FFmpeg knows, found another one")

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        is_default = bool(stream.disposition & av.stream.Disposition.default)
        return stream.index not in stills, is_default, stream.codec_context.width * stream.codec_context.height

    return max(known, key=rank)


def _candidates(container: InputContainer) -> list[VideoStream]:
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def _stills(path: Path, container: InputContainer) -> set[int]:
    """Which of several video streams hold a single picture: the container says so, or no second packet comes soon."""
    videos = _candidates(container)
    if len(videos) < 2:
        return set()
    marks = av.stream.Disposition.still_image | av.stream.Disposition.timed_thumbnails
    moving = {s.index for s in videos if s.frames > 1 and not s.disposition & marks}
    unclear = {s.index for s in videos if not s.frames and not s.disposition & marks}
    counts: Counter[int] = Counter()
    if unclear:
        with _open(path, **container.options) as peeking, suppress(av.error.FFmpegError):
            for packet in itertools.islice(
                peeking.demux(*(peeking.streams[index] for index in unclear)), MAX_PACKETS_PEEKED
            ):
                counts[packet.stream.index] += packet.size > 0
    return {s.index for s in videos} - moving - {index for index in unclear if counts[index] != 1}


def reason(error: Exception) -> str:
    """The cause in FFmpeg's or the system's words, without numbers and paths."""
    return str(getattr(error, "strerror", None) or error)


class ContainerPass:
    """One opened file and its decoder, moving forward only.

    Attributes:
        first_ticks: earliest time of a packet so far. (FFmpeg's `start_time` may be that of another stream.)
    """

    def __init__(self, path: Path, tally: Tally, *, is_threaded: bool) -> None:
        self.container, self.stream = open_container(path)
        codec = self.stream.codec_context
        self.is_threaded = is_threaded and codec.width * codec.height > THREADED_PIXELS
        codec.thread_type = "AUTO" if self.is_threaded else "SLICE"
        codec.thread_count = min(MAX_THREADS, os.cpu_count() or 1) if self.is_threaded else 1
        self._tally = tally
        of_file = self.container.format
        self._clock = PacketClock(self.stream, of_file.name, tally.notes, is_untimed=is_untimed(of_file))
        self._path = path
        self._num_discarded = 0
        self._has_corrupt_packet = False
        self.num_packets = 0
        self.first_ticks: int | None = None

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
            if packet is not None:
                self._clock.order(packet)
            try:
                # Without a packet: what the decoder still holds.
                frames = self.stream.codec_context.decode(None) if packet is None else packet.decode()
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                self._fail(packet, error)
                if packet is not None:
                    self._clock.forget(packet)
                continue
            num_frames += len(frames)
            yield from map(self._clock.time, frames)
        if self.is_threaded and (self._has_corrupt_packet or num_frames < self.num_packets):
            raise BrokenPassError

    def packets(self) -> Iterator[VideoPacket | None]:
        """Packets of the video stream on one clock, then None; notes the end of all streams."""
        for packet in self._clock.packets(self._demux()):
            self._note_end(packet.pts, packet.duration, packet.time_base)
            self._count(packet)
            if packet.pts is not None and not packet.is_discard:
                self.first_ticks = packet.pts if self.first_ticks is None else min(packet.pts, self.first_ticks)
            yield packet
        yield None

    def _demux(self) -> Iterator[VideoPacket]:
        num_errors = read_to = 0
        iterator = self.container.demux()
        while num_errors < MAX_READ_ERRORS:
            try:
                packet = next(iterator)
            except (StopIteration, av.error.EOFError):
                self._note_rest(read_to)
                return
            except av.error.FFmpegError as error:
                num_errors += 1
                self._fail(None, error)
                iterator = self.container.demux()
                continue
            if packet.size == 0:  # asks the decoders of all streams for their last frames; None does that here
                continue
            num_errors, read_to = 0, max(read_to, (packet.pos or 0) + packet.size)
            if packet.stream.index == self.stream.index:
                yield cast(VideoPacket, packet)
            else:
                self._note_end(packet.pts, packet.duration, packet.time_base)

    def _note_rest(self, read_to: int) -> None:
        """Look for a second beginning behind the last packet: FFmpeg reads one file, and says nothing of more."""
        num_unread = self._path.stat().st_size - read_to
        if self.container.format.name not in HEADED_FORMATS or not read_to or num_unread < MIN_UNREAD_BYTES:
            return
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # An MP4 begins with the length of its first box, which may differ.
            skipped = 4 if content[4:8] == b"ftyp" else 0
            second = content.find(content[skipped : skipped + 4], read_to) - skipped
        if second >= read_to:
            self._tally.notes.setdefault(f"another file is appended at byte {second:,}, which is not read")

    def _note_end(self, pts: int | None, duration: int | None, time_base: Fraction | None) -> None:
        if pts is not None and time_base:
            self._tally.ends_at_s = max(self._tally.ends_at_s, float((pts + (duration or 0)) * time_base))

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
