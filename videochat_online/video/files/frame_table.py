"""Frames of a file as its packets name them: their times, and from which of them decoding can begin.

A library that fetches frames by number seeks to a key frame and counts on from there. That is right only where every
packet is one frame, and where the order in the file and the order in time agree at key frames. Owns what can be known
about this without decoding; whether the pictures are the right ones is the question of `pyav_comparison`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av.stream

from videochat_online.errors import VideoError
from videochat_online.video.files.container import ContainerPass, Tally
from videochat_online.video.files.declared import INDEXED_FORMATS
from videochat_online.video.files.timestamps import VideoPacket
from videochat_online.video.reader import VideoInfo

H264_PICTURES = {1: False, 2: False, 5: True}
"""H.264's units with a picture, and whether the decoder forgets all that came before (IDR)."""


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Frames in the order in which they are shown.

    Attributes:
        ticks: start of each, in time bases of the stream.
        times_s: the same in seconds.
        end_s: end of the last.
        keys: positions of key frames; the first is 0.
        seek_problem: why frames counted from a key frame are others; None where they are not.
    """

    ticks: tuple[int, ...]
    times_s: tuple[float, ...]
    end_s: float
    keys: tuple[int, ...]
    seek_problem: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is kept of a packet; times are ticks."""

    pts: int
    dts: int | None
    duration: int | None
    is_key: bool


def refused(source: str, expected: str, found: str) -> VideoError:
    """What a fast path says of a file that it may be wrong about: one line, which names the way out."""
    return VideoError(f"{source}: expected {expected}, found {found}; use backend 'pyav'")


def read_frame_table(path: Path, source: str, info: VideoInfo, codecs: frozenset[str]) -> FrameTable:
    """The frames of a file, which is read through once without decoding.

    Args:
        path: the file.
        source: its name in errors.
        info: facts about it.
        codecs: FFmpeg's names of those that are accepted.

    Raises:
        VideoError: another container or codec, several video streams, hidden or damaged packets, frames without a
            time of their own, or key frames at which decoding cannot begin.
    """
    tally = Tally()
    reading = ContainerPass(path, tally, is_threaded=False)
    with reading.container:
        _check_kind(reading, source, codecs)
        tick_s = reading.stream.time_base or Fraction(1)
        entries = [_entry(packet, source, reading) for packet in reading.packets() if packet is not None]
    oddity = next(iter((*tally.failures.values(), *tally.notes)), None)
    if oddity is not None:
        raise refused(source, "a file that is whole, with times in order", oddity)
    ends = {entry.pts: entry.pts + (entry.duration or 0) for entry in entries}
    ticks = tuple(sorted(ends))
    if len(ticks) < len(entries):
        raise refused(source, "a time of its own for each frame", f"{len(ticks)} times of {len(entries)} frames")
    mean_s = 1 / info.average_fps if info.average_fps else 0.0
    is_timed = ends[ticks[-1]] > ticks[-1]
    position_of = {tick: position for position, tick in enumerate(ticks)}
    keys = tuple(sorted(position_of[entry.pts] for entry in entries if entry.is_key))
    if keys[:1] != (0,):
        raise refused(source, "a key frame at the beginning", "another frame")
    return FrameTable(
        ticks=ticks,
        times_s=tuple(float(tick * tick_s) for tick in ticks),
        end_s=float(ends[ticks[-1]] * tick_s) + (0.0 if is_timed else mean_s),
        keys=keys,
        seek_problem=_seek_problem(entries, position_of, tick_s),
    )


def _check_kind(reading: ContainerPass, source: str, codecs: frozenset[str]) -> None:
    format_name, codec_name = reading.container.format.name, reading.stream.codec_context.codec.canonical_name
    if format_name not in INDEXED_FORMATS:
        raise refused(source, "an mp4, mov, mkv or webm file", format_name)
    if codec_name not in codecs:
        raise refused(source, f"a codec among {', '.join(sorted(codecs))}", codec_name)
    covers = av.stream.Disposition.attached_pic
    num_videos = sum(not stream.disposition & covers for stream in reading.container.streams.video)
    if num_videos > 1:
        raise refused(source, "one video stream", f"{num_videos}")


def _entry(packet: VideoPacket, source: str, reading: ContainerPass) -> _Entry:
    if packet.is_corrupt:
        raise refused(source, "a file that is whole", "a damaged packet")
    if packet.pts is None:
        raise refused(source, "a time in each packet", "one without")
    if packet.is_discard or packet.pts < 0:
        raise refused(source, "a file without an edit list", "one that hides frames (cut without re-encoding)")
    if packet.is_keyframe and not _begins_anew(packet):
        found = f"another kind at {reading.time_of(packet.pts):.3f} s"
        raise refused(source, "key frames at which decoding can begin (IDR)", found)
    return _Entry(packet.pts, packet.dts, packet.duration, packet.is_keyframe)


def _begins_anew(packet: VideoPacket) -> bool:
    """Whether a decoder that starts here gives this frame.

    Containers mark more as key frames in H.264: recovery points, after which the picture is whole only some frames
    later. HEVC's are told by their order (`seek_problem`); in the other codecs that are accepted, all key frames are.
    """
    codec = packet.stream.codec_context
    if codec.name != "h264":
        return True
    configuration = bytes(codec.extradata or b"")
    if len(configuration) < 5 or configuration[0] != 1:
        return False  # not in units with their length before them, as mp4 and Matroska want it
    data, length_bytes, start = bytes(packet), (configuration[4] & 3) + 1, 0
    while start + length_bytes < len(data):
        body = start + length_bytes
        kind = data[body] & 31
        if kind in H264_PICTURES:
            return H264_PICTURES[kind]
        start = body + int.from_bytes(data[start:body], "big")
    return False


def _seek_problem(entries: Sequence[_Entry], position_of: dict[int, int], tick_s: Fraction) -> str | None:
    """What a library meets that takes the n-th packet for the n-th frame, and seeks to presentation times.

    mp4's index holds decoding times. A seek to a key frame's presentation time therefore finds that key frame only if
    the next one is decoded later than that.
    """
    keys = [(i, entry) for i, entry in enumerate(entries) if entry.is_key]
    for i, entry in keys:
        if position_of[entry.pts] != i:
            at_s = float(entry.pts * tick_s)
            return f"frames that are stored after the key frame at {at_s:.3f} s and shown before it (open GOP)"
    for (_, entry), (_, following) in pairwise(keys):
        if following.dts is None or following.dts <= entry.pts:
            return f"key frames too close to be told apart at {float(entry.pts * tick_s):.3f} s"
    return None
