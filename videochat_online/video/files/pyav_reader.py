"""Reader of video files with PyAV: repeated passes, seeking, and the account of what was missing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from videochat_online.errors import VideoError
from videochat_online.video.files.container import BrokenPassError, ContainerPass, Tally, is_pipe
from videochat_online.video.files.declared import INDEXED_FORMATS, MP4_FORMATS, declared_length, is_cut_mp4
from videochat_online.video.files.timestamps import frame_rate, is_untimed
from videochat_online.video.reader import DecodeReport, FrameReader, LazyFrame, LoadedFrame, Pixels, VideoInfo
from videochat_online.video.sampling_rules import TIME_TOLERANCE_S

SLOTTED_FORMATS = frozenset({"avi"})
"""Formats in which a frame has a slot rather than a time, and slots may be empty."""

MIN_SEEK_S = 4.0
"""Less video than this is skipped as fast by decoding it: keyframes are seldom closer together."""

SEEK_MARGINS_S = (0.0, 2.0, 10.0)
"""Seconds to aim before the wanted time: a keyframe may be shown later than its position in the file says."""

MIN_LOST_S = 0.5
"""Less than this at the beginning are the frames before the first key frame that any cut leaves."""

MIN_MISSING_S = 1.0
MIN_MISSING_PART = 0.02
"""A video that ends earlier than declared by both is cut short; declared lengths are rounded."""


class PyavReader(FrameReader):
    """A video file, opened."""

    def __init__(self, path: Path) -> None:
        """Decode the first frame; VideoError unless the file has a video stream of which something decodes."""
        self._path = path
        self._tally = Tally()
        self._last_s: float | None = None
        self._rotation = 0
        self._is_closed = False
        # One for all frames: setting up a conversion takes longer than converting a small frame.
        self._reformatter = VideoReformatter()
        self._whole: Tally | None = None
        self._starts_s: set[float | None] | None = None  # known once the packets have been counted
        self._pass = ContainerPass(path, self._tally, is_threaded=True)
        container = self._pass.container
        rate = frame_rate(self._pass.stream, is_untimed=is_untimed(container.format))
        self._is_indexed = container.format.name in INDEXED_FORMATS and not is_pipe(container)
        self._has_empty_slots = container.format.name in SLOTTED_FORMATS
        self._average_fps = float(rate) if rate else None
        declared = declared_length(container, self._pass.stream, path.stat().st_size)
        self._declared_end_s = declared.end_s
        is_mp4, has_no_total = container.format.name in MP4_FORMATS, declared.num_frames is None
        if is_pipe(container) or (is_mp4 and is_cut_mp4(path, is_fragmented=has_no_total)):
            self._tally.failures["end", None] = "at the end, where the file breaks off"
        self._source = self._pass.frames()
        self._frames = self._read()
        self._fresh = next(self._frames, None)
        first = None if self._fresh is None else self._fresh.load()
        if first is None:
            num_failed = len(self._tally.failures)
            self.close()
            raise VideoError(f"{path}: expected a video, found no frame that decodes ({num_failed} failures)")
        clock_start_s = self._pass.time_of(self._pass.first_ticks)
        if self._has_empty_slots:
            declared, clock_start_s = declared.without_start(first.time_s, self._average_fps), None
        if clock_start_s is not None and first.time_s - clock_start_s > MIN_LOST_S and not self._tally.failures:
            self._tally.notes[f"its first {first.time_s - clock_start_s:.2f} s do not decode"] = None
        self.info = VideoInfo(
            source=str(path),
            kind="video",
            num_frames_declared=declared.num_frames,
            duration_s=declared.duration_s,
            average_fps=self._average_fps,
            width=first.pixels_HWC.shape[1],
            height=first.pixels_HWC.shape[0],
            rotation=self._rotation,
            start_s=first.time_s,
            clock_start_s=clock_start_s,
        )

    def frames(self, start_s: float | None = None) -> Iterator[LazyFrame]:
        """A pass over the file; an earlier one that is still going on ends with a VideoError."""
        self._check_open()
        begin_s = self.info.start_s if start_s is None else start_s
        is_far = self._is_worth_seeking(self.info.start_s, begin_s)
        if self._fresh is not None and not is_far:
            self._frames = itertools.chain([self._fresh], self._frames)
        else:
            self._tally = Tally(failures=self._tally.failures, notes=self._tally.notes)
            self._last_s = None
            if not (is_far and self._seek(begin_s, is_threaded=True)):
                self._restart(is_threaded=True)
            self._frames = self._read()
        self._fresh = None
        mine = self._frames
        # Not `yield from`: that would end the pass with its consumer, and `finish` goes on with it.
        while True:
            self._check_open()
            if self._frames is not mine:
                raise VideoError(f"{self._path}: expected one pass at a time, but another one has begun")
            frame = next(mine, None)
            if frame is None:
                return
            yield frame

    def skip(self, time_s: float) -> None:
        """Jump to a keyframe at or before `time_s` if that is ahead of the pass."""
        last_s = self._last_s
        if last_s is not None and self._is_worth_seeking(last_s, time_s):
            self._tally.is_whole = not self._seek(time_s, after_s=last_s, is_threaded=True) and self._tally.is_whole

    def times_s(self) -> tuple[float, ...]:
        """Start of each frame as its packet says, without decoding; VideoError where packets carry no times."""
        if self._starts_s is None:
            counting = ContainerPass(self._path, Tally(notes=self._tally.notes), is_threaded=False)
            with counting.container:
                self._starts_s = _packet_times(counting)
        if None in self._starts_s:
            raise VideoError(f"{self._path}: expected a time in each packet, found one without")
        return tuple(sorted(time_s for time_s in self._starts_s if time_s is not None))

    def finish(self, max_decode_s: float) -> None:
        """Go to the end of the file: decode if at most `max_decode_s` are left, else only count packets.

        Where the length is unknown, `max_decode_s` are decoded first.
        """
        if self._tally.at_end:
            return
        self._fresh = None
        position_s = self.info.start_s if self._last_s is None else self._last_s
        if self._declared_end_s is None or self._declared_end_s - position_s <= max_decode_s:
            for frame in self._frames:
                if frame.time_s > position_s + max_decode_s:
                    break
        if not self._tally.at_end:
            self._count_packets()
        self._frames = iter(())

    def report(self) -> DecodeReport:
        """The account of a pass that saw everything, else of the latest; failures of all passes."""
        tally = self._whole or self._tally
        end_s = self._declared_end_s
        missing_s = 0.0 if end_s is None or not tally.at_end else end_s - tally.ends_at_s
        length_s = 0.0 if end_s is None else end_s - self.info.start_s
        ends_early = missing_s > max(MIN_MISSING_S, MIN_MISSING_PART * length_s)
        num_declared = self.info.num_frames_declared
        if num_declared is not None and (tally.num_discarded or self._has_empty_slots):
            # What an edit list hides was never to be shown; it may also leave out packets without a trace, as AVI does
            # where nothing changes, so that a smaller number means something only if the end is missing, too.
            num_declared = num_declared - tally.num_discarded if ends_early else None
        return DecodeReport(
            num_decoded=tally.num_decoded,
            num_declared=num_declared,
            num_errors=len(tally.failures),
            num_damaged=tally.num_damaged,
            num_undecoded=tally.num_undecoded,
            is_complete=tally.at_end and tally.is_whole,
            first_error=next(iter(tally.failures.values()), None),
            ends_at_s=tally.ends_at_s if ends_early else None,
            declared_end_s=end_s if ends_early else None,
            notes=tuple(self._tally.notes),
        )

    def close(self) -> None:
        """Close the file."""
        self._is_closed = True
        self._frames = iter(())
        self._fresh = None
        self._pass.container.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise VideoError(f"{self._path}: expected an open video, but it was closed")

    def _read(self) -> Iterator[LazyFrame]:
        """Frames with strictly rising times; one thread goes on where a threaded pass breaks."""
        tally = self._tally
        while True:
            try:
                frame = next(self._source, None)
            except BrokenPassError:
                self._go_on_with_one_thread()
                continue
            if frame is None:
                tally.at_end = True
                self._whole = tally if tally.is_whole else self._whole
                return
            time_s = self._pass.time_of(frame.pts)
            if time_s is None or (self._last_s is not None and time_s <= self._last_s):
                where = "at the start" if self._last_s is None else f"after {self._last_s:.3f} s"
                tally.failures.setdefault(("time", time_s), f"{where} (a frame without a later time)")
                continue
            self._last_s = time_s
            tally.num_decoded += 1
            tally.num_damaged += frame.is_corrupt
            yield self._wrap(frame, time_s)

    def _go_on_with_one_thread(self) -> None:
        """Come back to the frame after the last one handed out."""
        last_s = self._last_s
        if last_s is None:
            self._restart(is_threaded=False)
            return
        if not self._seek(last_s, is_threaded=False):
            self._restart(is_threaded=False)
        self._source = itertools.dropwhile(lambda frame: not self._is_after(frame, last_s), self._source)

    def _is_worth_seeking(self, from_s: float, to_s: float) -> bool:
        return self._is_indexed and to_s - from_s > MIN_SEEK_S

    def _seek(self, wanted_s: float, *, after_s: float = -math.inf, is_threaded: bool) -> bool:
        """Go on from a keyframe that starts at or before `wanted_s`, and after `after_s`, if one is found."""
        if not self._is_indexed:
            return False
        for margin_s in SEEK_MARGINS_S:
            candidate = ContainerPass(self._path, self._tally, is_threaded=is_threaded)
            try:
                candidate.seek(wanted_s - margin_s)
                frames = candidate.frames()
                first = next(frames, None)
            except (av.error.FFmpegError, BrokenPassError):
                first = None
            time_s = None if first is None else candidate.time_of(first.pts)
            if first is not None and time_s is not None and time_s <= wanted_s + TIME_TOLERANCE_S:
                if time_s <= after_s:
                    candidate.container.close()
                    return False
                # Frames between the last one handed out and this one are left out.
                begins_s = self.info.start_s if self._last_s is None else self._last_s
                self._tally.is_whole = self._tally.is_whole and time_s <= begins_s
                self._replace_pass(candidate, itertools.chain([first], frames))
                return True
            candidate.container.close()
        return False

    def _restart(self, *, is_threaded: bool) -> None:
        begun = ContainerPass(self._path, self._tally, is_threaded=is_threaded)
        self._replace_pass(begun, begun.frames())

    def _replace_pass(self, begun: ContainerPass, frames: Iterator[VideoFrame]) -> None:
        self._pass.container.close()
        self._pass, self._source = begun, frames

    def _is_after(self, frame: VideoFrame, time_s: float) -> bool:
        start_s = self._pass.time_of(frame.pts)
        return start_s is not None and start_s > time_s

    def _count_packets(self) -> None:
        """Count the whole file's packets: a pass that sought has not seen its beginning."""
        self._restart(is_threaded=False)
        self._starts_s = _packet_times(self._pass)
        tally = self._whole = self._tally
        tally.num_undecoded = max(0, self._pass.num_packets - tally.num_decoded - len(tally.failures))
        tally.at_end = tally.is_whole = True

    def _wrap(self, frame: VideoFrame, time_s: float) -> LazyFrame:
        """A frame whose conversion to RGB waits until it is sampled."""
        self._rotation = frame.rotation
        end_s = self._end_of(time_s, self._pass.time_of(frame.duration))
        return LazyFrame(time_s, end_s, lambda: LoadedFrame(time_s, to_pixels(frame, self._reformatter)))

    def _end_of(self, time_s: float, duration_s: float | None) -> float:
        """End of a frame; without a duration of its own it lasts as long as the mean frame."""
        return time_s + (duration_s or (1 / self._average_fps if self._average_fps else 0.0))


def _packet_times(counting: ContainerPass) -> set[float | None]:
    """Start of each frame that a file shows, as its packet says, read to the end; None for a packet without a time."""
    return {
        counting.time_of(packet.pts) for packet in counting.packets() if packet is not None and not packet.is_discard
    }


def to_pixels(frame: VideoFrame, reformatter: VideoReformatter) -> Pixels:
    """RGB uint8 [H,W,3] as the frame is shown: turned by its rotation, to the nearest quarter turn."""
    stored_HWC = reformatter.reformat(frame, format="rgb24").to_ndarray()
    # FFmpeg's angle is counter-clockwise, as np.rot90's quarter turns are.
    return np.rot90(stored_HWC, k=round(frame.rotation / 90) % 4)
