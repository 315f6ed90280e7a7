"""Times of a video stream as one clock that only goes forward, whatever the file says.

Owns three repairs, each with a note for the report: a clock that jumps back (files joined byte by byte) goes on behind
the last frame; packets without any time (raw streams) follow each other at the stream's rate; frames of containers
that store no presentation times (AVI) take their packets' times in order. Knows nothing of files or pixels.

Times are ticks of the stream's time base throughout. The same packets give the same times in every pass, decoded or
only counted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeAlias, cast

from av.format import ContainerFormat
from av.format import Flags as FormatFlags
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

VideoPacket: TypeAlias = "Packet[VideoStream]"

MAX_AVERAGE_FPS = 1_000
"""FFmpeg's estimate of a mean rate beyond this is none: it says 60,000 for DV."""

WRAPPING_FORMATS = frozenset({"mpegts", "mpeg"})
"""Containers whose clock has 33 bits: FFmpeg takes a jump back for the clock's overflow, and adds 2^33 ticks."""

WRAP_TICKS = 1 << 32
"""A step forward by more than half the range of such a clock is a jump back."""

MAX_REORDER_S = 1.0
"""Frames are not stored further from the position in which they are shown than this, but by rare encoders."""

UNORDERED_CODECS = {"avi": frozenset({"h264", "hevc"}), "asf": frozenset({"h264", "hevc", "mpeg1video", "mpeg2video"})}
"""Codecs, by format, where FFmpeg can only guess presentation times: it gives them to packets in decoding order."""

TIMED_RAW_FORMATS = frozenset({"m4v"})
"""Raw streams whose coded pictures say when they are shown; of all others FFmpeg makes the times up."""


def is_untimed(container_format: ContainerFormat) -> bool:
    """Whether a file is a raw stream, of whose times FFmpeg knows nothing."""
    is_raw = bool(container_format.flags & cast(int, FormatFlags.no_timestamps.value))
    return is_raw and container_format.name not in TIMED_RAW_FORMATS


def frame_rate(stream: VideoStream, *, is_untimed: bool = False) -> Fraction | None:
    """Mean frames per second; of a stream without times, those that its coded pictures name."""
    average = stream.average_rate
    if average and average <= MAX_AVERAGE_FPS and stream.start_time is not None and not is_untimed:
        return average
    return stream.guessed_rate or average


class PacketClock:
    """The clock of one pass over a stream.

    Args:
        stream: gives time base and rate.
        format_name: FFmpeg's name of the container.
        notes: every repair is written here once, in one line.
        is_untimed: the times of the packets are made up.
    """

    def __init__(
        self, stream: VideoStream, format_name: str, notes: dict[str, None], *, is_untimed: bool = False
    ) -> None:
        self._tick_s = stream.time_base or Fraction(1)
        self._is_untimed = is_untimed
        self._fps = frame_rate(stream, is_untimed=is_untimed) or Fraction(1)
        self._wraps = format_name in WRAPPING_FORMATS
        self._takes_in_order = stream.codec_context.name in UNORDERED_CODECS.get(format_name, ())
        self._notes = notes
        self._waiting: list[int] = []  # a heap: times of packets whose frames have not come out yet
        self._delay: int | None = None  # how many wait when a frame comes out
        self._offset = 0
        self._last_dts: int | None = None
        self._end: int | None = None
        self._num_untimed: int | None = None  # None: the first packet will tell whether the file has times

    def packets(self, packets: Iterable[VideoPacket]) -> Iterator[VideoPacket]:
        """The same packets, with their times repaired; at most one is held back, where the clock jumps."""
        suspect: VideoPacket | None = None
        for packet in packets:
            if suspect is not None:
                # A single wrong time is no jump: the next packet is nearer to the clock that goes on.
                if self._is_nearer(packet, suspect):
                    self._jump_to(suspect)
                yield self._timed(suspect)
                suspect = None
            if self._is_jump(packet):
                suspect = packet
            else:
                yield self._timed(packet)
        if suspect is not None:
            yield self._timed(suspect)

    def order(self, packet: VideoPacket) -> None:
        """Note a packet that is about to be decoded."""
        if self._takes_in_order and packet.pts is not None and not packet.is_discard:
            heapq.heappush(self._waiting, packet.pts)

    def forget(self, packet: VideoPacket) -> None:
        """Note that a packet gave no frame."""
        if packet.pts in self._waiting:
            self._waiting.remove(packet.pts)
            heapq.heapify(self._waiting)

    def time(self, frame: VideoFrame) -> VideoFrame:
        """The frame, with the time at which it is shown."""
        if self._takes_in_order and self._waiting:
            if self._delay is None:
                self._delay = len(self._waiting)
            while len(self._waiting) > self._delay:  # a frame was lost without an error
                heapq.heappop(self._waiting)
            frame.pts = heapq.heappop(self._waiting)
        return frame

    def _is_jump(self, packet: VideoPacket) -> bool:
        if packet.dts is None or self._last_dts is None:
            return False
        step = packet.dts - self._last_dts
        # Where a decoding time was guessed, that of a frame between two others may go back a little.
        is_back = step < 0 and (packet.is_keyframe or -step * self._tick_s > MAX_REORDER_S)
        return is_back or (self._wraps and step > WRAP_TICKS)

    def _is_nearer(self, packet: VideoPacket, suspect: VideoPacket) -> bool:
        """Whether a packet goes on from the suspect; one that does not even follow what came before it does, too."""
        if packet.dts is None or suspect.dts is None or self._last_dts is None:
            return False
        step = packet.dts - suspect.dts
        return step >= 0 and (packet.dts <= self._last_dts or step < abs(packet.dts - self._last_dts))

    def _jump_to(self, packet: VideoPacket) -> None:
        first = packet.dts if packet.pts is None else packet.pts
        if first is None or self._end is None:
            return
        shown = first - 2 * WRAP_TICKS if self._wraps and first > WRAP_TICKS else first
        end_s, first_s = float(self._end * self._tick_s), float(shown * self._tick_s)
        self._notes.setdefault(
            f"the clock jumps from {end_s:.2f} s to {first_s:.2f} s: what follows is shown from {end_s:.2f} s on"
        )
        self._offset = self._end - first

    def _timed(self, packet: VideoPacket) -> VideoPacket:
        has_time = (packet.pts is not None or packet.dts is not None) and not self._is_untimed
        if self._num_untimed is None:
            self._num_untimed = 0
            if not has_time:
                self._takes_in_order = True
                rate = f"{float(self._fps):g}"
                self._notes.setdefault(f"the file carries no times: its frames are shown at {rate} a second")
        if self._takes_in_order and not has_time:
            packet.pts, packet.dts, packet.duration = self._ticks(self._num_untimed), None, self._ticks(1)
            self._num_untimed += 1
        if packet.dts is not None:
            self._last_dts = packet.dts
            packet.dts += self._offset
        if packet.pts is not None:
            packet.pts += self._offset
            end = packet.pts + (packet.duration or self._ticks(1))
            self._end = end if self._end is None else max(end, self._end)
        return packet

    def _ticks(self, number: int) -> int:
        """Length of so many frames at the stream's rate."""
        return round(number / self._fps / self._tick_s)
